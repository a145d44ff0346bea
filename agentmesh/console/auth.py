"""Who asks: a bearer token becomes a principal with a tenant, a name and grants, or is refused without a reason.

Believed are API keys (rows, found by id, their secret compared as a digest) and JWTs of one configured issuer. The
tenant of a JWT is what our settings make of its claim; no header, query or body has a say in it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import structlog
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from agentmesh.communication.keys import api_key
from agentmesh.errors import BadJson, BadPermission, BadSettings, MeshError, Overloaded, Unauthenticated
from agentmesh.infrastructure import jsontext, outbound
from agentmesh.infrastructure.settings import GatewaySection
from agentmesh.records import Actor, Json, check_permissions, grants_cover
from agentmesh.state.keys import KeyTable

log = structlog.get_logger("agentmesh.gateway")

ALGORITHMS = ("Ed25519", "EdDSA", "ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
MAX_TOKEN_CHARS = 8 * 1024
MAX_JWKS_BYTES = 256 * 1024
LEEWAY_S = 30
JWKS_FRESH_S, JWKS_AGAIN_S, JWKS_PATIENCE_S = 300.0, 30.0, 3.0
_JWT = re.compile(r"[A-Za-z0-9_-]{2,2048}\.[A-Za-z0-9_-]{2,8192}\.[A-Za-z0-9_-]{16,2048}\Z")
_SUBJECT = re.compile(r"[\x21-\x7e]{1,255}\Z")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, for which tenant, and what it may at most do. `until` None: as long as its key is in force.

    `key` is the id of the key they were believed by.
    """

    tenant: str
    name: str
    grants: tuple[str, ...]
    until: int | None = None
    key: str | None = None

    def may(self, permission: str) -> bool:
        return grants_cover(self.grants, permission)

    def under(self, permission: str | None = None) -> Actor:
        """As the audit names them, when they do what this permission lets them."""
        return Actor(self.name, key=self.key, permission=permission)


class Authenticator:
    """Tells tokens apart. `start_token`, where there is one, is an operator of `tenant` as long as this process runs."""

    def __init__(
        self, keys: KeyTable, section: GatewaySection, *, tenant: str, now_s: Callable[[], int], root: Path
    ) -> None:  # fmt: skip
        self._keys, self._section, self._now_s = keys, section, now_s
        self._tenants = _tenants(section.tenants, tenant)
        self._issuer = _Issuer(section, now_s, root) if section.issuer else None
        self._operator = Principal(tenant, "operator", ("*",))
        self._start: bytes | None = None

    def start_token(self) -> str:
        """A token for whoever started this process; the last one made is the one that is believed."""
        token = f"ams_{secrets.token_urlsafe(32)}"
        self._start = _digest(token)
        return token

    def __call__(self, token: str | None) -> Principal:
        """Whose token this is. Raises Unauthenticated; GatewayUnreachable where the issuer's keys cannot be had."""
        if token is None or len(token) > MAX_TOKEN_CHARS:
            raise _refused()
        if self._start is not None and hmac.compare_digest(_digest(token), self._start):
            return self._operator
        if (parts := api_key(token)) is not None:
            return self._machine(*parts)
        if self._issuer is None or not _JWT.match(token):
            raise _refused()
        return self._person(self._issuer.claims(token))

    def _machine(self, kid: str, digest: bytes) -> Principal:
        row = self._keys.row(kid)
        known = bytes(row["public"]) if row is not None else bytes(32)
        if not hmac.compare_digest(digest, known) or row is None or row["revoked_at"] is not None:
            raise _refused()
        return Principal(row["tenant_id"], row["owner"], tuple(row["grants"]), key=kid)

    def _person(self, claims: Mapping[str, Json]) -> Principal:
        said, subject = claims.get(self._section.tenant_claim), claims.get("sub")
        tenant = self._tenants.get(said) if isinstance(said, str) else None
        if tenant is None or not isinstance(subject, str) or not _SUBJECT.match(subject):
            raise _refused()
        listed = claims.get(self._section.permissions_claim, [])
        try:
            grants = check_permissions(listed.split() if isinstance(listed, str) else listed, wildcards=True)
        except BadPermission:
            raise _refused() from None
        return Principal(tenant, f"user:{subject}", grants, claims["exp"])


class _Issuer:
    """JWTs of one issuer: signed by one of its keys, meant for us, of a kind that opens doors, and in force."""

    def __init__(self, section: GatewaySection, now_s: Callable[[], int], root: Path) -> None:
        if not section.audience or not section.jwks:
            raise BadSettings("an issuer of tokens is named without its audience or its keys", value=section.issuer,
                              expected="issuer, audience and jwks in [gateway], or none of them")  # fmt: skip
        self._issuer, self._audience, self._types = section.issuer, section.audience, section.token_types
        self._now_s, self._where, self._root = now_s, section.jwks, root
        self._lock = threading.Lock()
        self._keys: dict[str, Any] = {}
        self._again_at = self._fresh_until = float("-inf")

    def claims(self, token: str) -> Mapping[str, Json]:
        """What the token says. Raises Unauthenticated."""
        try:
            header = jsontext.loads(_decoded(token.partition(".")[0]), what="the header", max_bytes=4096)
        except (BadJson, ValueError):
            raise _refused() from None
        if not isinstance(header, dict) or not set(header) <= {"alg", "kid", "typ"}:
            raise _refused()  # jwk, jku, x5u, crit, zip …
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS or header.get("typ") not in self._types or not isinstance(kid, str):
            raise _refused()
        key = self._key(kid)
        if key is None or key.get("use", "sig") != "sig" or (key.alg or algorithm) != algorithm:
            raise _refused()
        try:
            opened = jws.deserialize_compact(token, key, algorithms=[algorithm])
            claims = jsontext.loads(opened.payload, what="the token", max_bytes=MAX_TOKEN_CHARS)
        except (JoseError, BadJson, ValueError, TypeError):
            raise _refused() from None
        if not isinstance(claims, dict) or not self._ours(claims):
            raise _refused()
        return claims

    def _ours(self, claims: Mapping[str, Json]) -> bool:
        now, audience = self._now_s(), claims.get("aud")
        times = [claims.get(name, default) for name, default in (("exp", None), ("nbf", 0), ("iat", 0))]
        if not all(type(one) is int for one in times):  # a bool is an int, too
            return False
        until, since, made = times
        return (
            claims.get("iss") == self._issuer
            and (audience == self._audience or (isinstance(audience, list) and self._audience in audience))
            and until > now - LEEWAY_S
            and max(since, made) <= now + LEEWAY_S
        )

    def _key(self, kid: str) -> Any:
        """The issuer's key of this id, its list read anew when it is old, or when it may have been rotated."""
        with self._lock:
            now = time.monotonic()
            if now >= self._again_at and (now > self._fresh_until or kid not in self._keys):
                try:
                    self._keys, self._again_at = self._read(), now + JWKS_AGAIN_S
                    self._fresh_until = now + JWKS_FRESH_S
                except (OSError, httpx.HTTPError, MeshError, JoseError, ValueError, TypeError, KeyError) as exc:
                    log.warning("the issuer's keys cannot be read", where=self._where, why=type(exc).__name__)
                    self._again_at = now + JWKS_PATIENCE_S
            if not self._keys:
                raise Overloaded("the issuer's keys cannot be had now")
            return self._keys.get(kid)

    def _read(self) -> dict[str, Any]:
        remote = self._where.startswith(("https://", "http://127.0.0.1:", "http://localhost:"))
        text = _fetched(self._where) if remote else (self._root / self._where).read_bytes()
        listed = json.loads(text)["keys"]
        usable = [one for one in listed if one.get("kty") in {"RSA", "EC", "OKP"} and isinstance(one.get("kid"), str)]
        return {str(one.kid): one for one in KeySet.import_key_set({"keys": usable}).keys}


def _fetched(url: str) -> bytes:
    """What stands there. Raises httpx.HTTPError (for a redirect, too) or AnswerRefused."""
    with outbound.client(outbound.configured(url), within_s=JWKS_PATIENCE_S, most_bytes=MAX_JWKS_BYTES) as client:
        return client.get(url).raise_for_status().content


def _tenants(listed: tuple[str, ...], own: str) -> dict[str, str]:
    """Tenants by the claim that names them."""
    if not listed:
        return {own: own}
    pairs = (one.partition("=") for one in listed)
    return {claim: tenant or claim for claim, _, tenant in pairs}


def _decoded(segment: str) -> bytes:
    return urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _refused() -> Unauthenticated:
    return Unauthenticated("the credentials were refused")
