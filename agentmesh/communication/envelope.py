"""ACP envelopes: their three parts, how they are signed, and when they are believed.

An envelope travels as a compact JWS of one algorithm, Ed25519 (RFC 9864), over the bytes sent.
`verify` looks at nothing inside before the signature holds, parses those bytes once, and answers
every fault with the same error. An auth_token is never signed: what is signed is kept as evidence.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn
from uuid import UUID

from joserfc import jws
from joserfc.errors import JoseError
from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from agentmesh.communication.keys import PublicKey, SigningKey
from agentmesh.errors import BadJson, BadPermission, BadPolicy, EnvelopeRefused, PayloadTooLarge
from agentmesh.infrastructure import jsontext
from agentmesh.records import ContextId, Json, Locale, Name, Permissions, PolicyPatch, Record, check_permissions

ALGORITHM = "Ed25519"
TYPE = "acp+jws"
MAX_TOKEN_BYTES = 64 * 1024
INLINE_PAYLOAD_BYTES = 32 * 1024
"""A payload of at most this much JSON fits an envelope beside 64 permissions of full length."""
MAX_LIFE_S = 600
LEEWAY_S = 30

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_KID = re.compile(r"[A-Za-z0-9_-]{43}\Z")
# At most 64 KiB in all: a header as ours needs 120 characters, a signature 86.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,256}\.[A-Za-z0-9_-]{1,65000}\.[A-Za-z0-9_-]{86}\Z")
_CLAIMS = {"aud", "jti", "iat", "exp", "tenant", "meta", "context", "command"}
_registry = jws.JWSRegistry(algorithms=[ALGORITHM])


def parse_id(value: object) -> UUID | None:
    """The id, where `value` is one as we write them: lower case, with hyphens. None otherwise."""
    return UUID(value) if isinstance(value, str) and _UUID.match(value) else None


def _id(value: object) -> object:
    return parse_id(value) or value


def _permissions(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    try:
        return check_permissions(value)
    except BadPermission as bad:
        raise ValueError(bad.what) from None


def _policy(value: object) -> object:
    if not isinstance(value, dict):
        return value
    try:  # as JSON, where strict allows a list for a tuple
        return PolicyPatch.model_validate_json(jsontext.dumps(value, what="the policy"))
    except ValidationError as bad:
        raise ValueError(bad.errors()[0]["msg"]) from None
    except (BadJson, BadPolicy) as bad:
        raise ValueError(bad.what) from None


SomePermissions = Annotated[Permissions | None, BeforeValidator(_permissions)]
"""Permissions as JSON has them; None: all that the sender may give."""
SomePolicy = Annotated[PolicyPatch | None, BeforeValidator(_policy)]
"""An intent's own policy as JSON has it; None: nothing is overridden."""


class _Part(Record):
    # Faults are told without their input: it may be an auth_token.
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, hide_input_in_errors=True)


class Meta(_Part):
    """Which trace, when (unix seconds, as its sender says), from whom, to which agent."""

    trace_id: Annotated[UUID, BeforeValidator(_id)]
    timestamp: Annotated[int, Field(ge=0, lt=2**38)]
    from_: Annotated[ContextId, Field(alias="from")]
    to: Name


class Context(_Part):
    """The session it belongs to, and what the sender allows. `permissions` None: all it may."""

    context_id: ContextId
    locale: Locale | None = None
    auth_token: Annotated[str, Field(max_length=8192)] | None = Field(default=None, repr=False)
    permissions: SomePermissions = None


class Command(_Part):
    """What is wanted. `policy` None: nothing is overridden."""

    intent: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.:-]{0,127}$")]
    payload: dict[str, Json]
    policy: SomePolicy = None


class Envelope(_Part):
    """An ACP message, before it is signed or after it was verified."""

    meta: Meta
    context: Context
    command: Command


@dataclass(frozen=True, slots=True)
class Verified:
    """An envelope that is believed, and by whom: the key's tenant, owner and grants."""

    envelope: Envelope
    jti: UUID
    kid: str
    tenant: str
    owner: str
    grants: tuple[str, ...]


def audience(mesh: str, queue: str) -> str:
    """What an envelope for this queue says in `aud`, and nothing else."""
    return f"{mesh}/{queue}"


def parts(envelope: Envelope) -> dict[str, Json]:
    """The three parts by their names on the wire, without the auth_token: what may be stored."""
    meta, context, command = envelope.meta, envelope.context, envelope.command
    said: dict[str, Json] = {"intent": command.intent, "payload": command.payload}
    if command.policy is not None:
        said["policy"] = command.policy.model_dump(mode="json", exclude_unset=True)
    return {
        "meta": {
            "trace_id": str(meta.trace_id),
            "timestamp": meta.timestamp,
            "from": meta.from_,
            "to": meta.to,
        },
        "context": {
            "context_id": context.context_id,
            "locale": context.locale,
            "permissions": context.permissions,
        },
        "command": said,
    }


def sign(
    envelope: Envelope,
    key: SigningKey,
    *,
    aud: str,
    jti: UUID,
    now_s: int,
    life_s: int = MAX_LIFE_S,
) -> str:
    """The envelope as a compact JWS, for `aud` alone, good for `life_s` seconds from `now_s`.

    The auth_token is left out. Raises PayloadTooLarge over 64 KiB (`INLINE_PAYLOAD_BYTES` always
    fits), BadJson for a payload that strict JSON cannot say.
    """
    claims = {
        "aud": aud,
        "jti": str(jti),
        "iat": now_s,
        "exp": now_s + min(life_s, MAX_LIFE_S),
        "tenant": key.tenant,
        **parts(envelope),
    }
    text = jsontext.dumps(claims, what="the envelope")
    header = {"alg": ALGORITHM, "kid": key.kid, "typ": TYPE}
    token = jws.serialize_compact(header, text, key.private, registry=_registry)
    if not _TOKEN.match(token):
        raise PayloadTooLarge(
            "the envelope is too large",
            value=len(token),
            expected=f"at most {MAX_TOKEN_BYTES} bytes; a payload over {INLINE_PAYLOAD_BYTES} bytes goes by reference",
        )
    return token


def verify(
    token: object,
    *,
    keys: Callable[[str], PublicKey | None],
    aud: str,
    now_s: int,
    leeway_s: int = LEEWAY_S,
) -> Verified:
    """What `token` says, once it is believed.

    Believed is: signed by a key that `keys` finds under exactly this id and that is not revoked,
    for exactly this audience and the tenant of that key, no older than it says and at most ten
    minutes. Raises EnvelopeRefused, the same for every fault but for its `reason`.
    """
    key, claims = _opened(token, keys)
    if set(claims) != _CLAIMS:
        _refuse("claims")
    if claims["aud"] != aud:
        _refuse("audience")
    if claims["tenant"] != key.tenant:
        _refuse("tenant")
    _check_times(claims["iat"], claims["exp"], now_s, leeway_s)
    jti = parse_id(claims["jti"])
    if jti is None:
        _refuse("claims")
    return Verified(_envelope(claims), jti, key.kid, key.tenant, key.owner, key.grants)


def _opened(token: object, keys: Callable[[str], PublicKey | None]) -> tuple[PublicKey, dict[str, Json]]:
    """The key whose signature holds, and what it signed."""
    if not isinstance(token, str) or not _TOKEN.match(token):
        _refuse("form")
    kid = _kid(token.partition(".")[0])
    key = keys(kid)
    if key is None or key.kid != kid:
        _refuse("key")
    if key.revoked_at is not None:
        _refuse("revoked")
    try:
        opened = jws.deserialize_compact(token, key.verifier, registry=_registry)
    except (JoseError, ValueError, TypeError):
        _refuse("signature")
    try:
        claims = jsontext.loads(opened.payload, what="the envelope", max_bytes=MAX_TOKEN_BYTES)
    except BadJson:
        _refuse("json")
    if not isinstance(claims, dict):
        _refuse("claims")
    return key, claims


def _kid(segment: str) -> str:
    """The key id in a protected header that has exactly our three members, well formed."""
    try:
        text = urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        header = jsontext.loads(text, what="the header", max_bytes=512)
    except (binascii.Error, BadJson):
        _refuse("header")
    if not isinstance(header, dict) or set(header) != {"alg", "kid", "typ"}:
        _refuse("header")  # jwk, jku, x5u, x5c, crit, b64: whatever else stands there
    if header["alg"] != ALGORITHM or header["typ"] != TYPE:
        _refuse("algorithm")
    kid = header["kid"]
    if not isinstance(kid, str) or not _KID.match(kid):
        _refuse("key")
    return kid


def _check_times(iat: Json, exp: Json, now_s: int, leeway_s: int) -> None:
    if type(iat) is not int or type(exp) is not int:  # a bool is an int, too
        _refuse("claims")
    if not 0 < exp - iat <= MAX_LIFE_S:
        _refuse("life")
    if iat > now_s + leeway_s:
        _refuse("early")
    if exp <= now_s - leeway_s:
        _refuse("expired")


def _envelope(claims: dict[str, Json]) -> Envelope:
    said: dict[str, Any] = {part: claims[part] for part in ("meta", "context", "command")}
    try:
        envelope = Envelope.model_validate(said, by_alias=True, by_name=False)
    except ValidationError:
        _refuse("fields")
    if envelope.context.auth_token is not None:
        _refuse("auth_token")  # we keep what is signed, and a secret must not be kept
    return envelope


def _refuse(reason: str) -> NoReturn:
    raise EnvelopeRefused(reason) from None
