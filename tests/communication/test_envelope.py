"""Envelopes: what is signed is what is read, and nothing else is believed."""

from __future__ import annotations

import base64
import hmac
import json
import socket
import string
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey
from pydantic import ValidationError

from agentmesh.communication import envelope as acp
from agentmesh.communication.envelope import Command, Context, Envelope, Meta, sign, verify
from agentmesh.communication.keys import PublicKey, SigningKey, public_key
from agentmesh.errors import BadJson, EnvelopeRefused, PayloadTooLarge
from agentmesh.infrastructure import jsontext
from agentmesh.records import PolicyPatch

NOW = 1_750_000_000
AUD = "mesh/agent.report"
TRACE = UUID("0192f0c1-0000-7000-8000-000000000001")
JTI = UUID("0192f0c1-0000-7000-8000-000000000002")
LETTERS = string.ascii_letters + string.digits + "-_"


def a_key(tenant: str = "default") -> SigningKey:
    private = OKPKey.generate_key("Ed25519")
    return SigningKey(private.thumbprint(), tenant, private)


def registered(key: SigningKey) -> PublicKey:
    at = datetime(2025, 4, 25, tzinfo=UTC)
    return public_key(key, owner="shop", grants=("data:*",), registered_at=at)


KEY = a_key()
STRANGER = a_key()
KEYS = {KEY.kid: registered(KEY)}
HEADER = {"alg": "Ed25519", "kid": KEY.kid, "typ": "acp+jws"}


def an_envelope(payload: dict[str, Any] | None = None, **context: Any) -> Envelope:
    return Envelope(
        meta=Meta(trace_id=TRACE, timestamp=NOW, from_="shop", to="report"),
        context=Context(context_id="session-001", **context),
        command=Command(intent="generate_report", payload=payload or {"project": "AlphaX"}),
    )


def a_token(envelope: Envelope | None = None, key: SigningKey = KEY, **said: Any) -> str:
    said = {"aud": AUD, "jti": JTI, "now_s": NOW, **said}
    return sign(envelope or an_envelope(), key, **said)


def claims_of(token: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(decoded(token.split(".")[1]))
    return said


def decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload: bytes, header: bytes | dict[str, Any] = HEADER, key: SigningKey = KEY) -> str:
    """A token whose signature holds over whatever bytes."""
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    start = f"{encoded(header)}.{encoded(payload)}"
    return f"{start}.{encoded(key.private.private_key.sign(start.encode()))}"  # type: ignore[union-attr]


def with_claims(change: Callable[[dict[str, Any]], object]) -> str:
    claims = claims_of(a_token())
    change(claims)
    return signed(json.dumps(claims).encode())


def believe(token: object, *, now_s: int = NOW, aud: str = AUD) -> acp.Verified:
    return verify(token, keys=KEYS.get, aud=aud, now_s=now_s)


def reason(token: object, **said: Any) -> str:
    with pytest.raises(EnvelopeRefused) as refused:
        believe(token, **said)
    assert str(refused.value) == str(EnvelopeRefused("anything"))
    return refused.value.reason


# --- what holds ----------------------------------------------------------------------------------


def test_what_is_signed_is_what_is_read() -> None:
    sent = an_envelope({"a": [1, None, "ü"]}, locale="de-CH", permissions=("b:x", "a:x"))
    got = believe(a_token(sent))
    assert got == acp.Verified(sent, JTI, KEY.kid, "default", "shop", ("data:*",))
    assert got.envelope.context.permissions == ("a:x", "b:x")


def test_a_policy_travels_with_what_it_sets_and_nothing_more() -> None:
    policy = {"max_steps": 3, "callbacks": ["notify"], "backoff": {"cap_s": 5.0}}
    sent = Envelope(
        meta=an_envelope().meta,
        context=an_envelope().context,
        command=Command(intent="x", payload={}, policy=policy),  # type: ignore[arg-type]
    )
    token = a_token(sent)
    assert claims_of(token)["command"]["policy"] == policy
    got = believe(token).envelope.command.policy
    assert got == PolicyPatch.model_validate_json(json.dumps(policy))
    assert got is not None
    assert got.model_fields_set == {"max_steps", "callbacks", "backoff"}


def test_the_wire_has_these_names_and_no_others() -> None:
    token = a_token(an_envelope(permissions=()))
    assert json.loads(decoded(token.split(".")[0])) == HEADER
    assert claims_of(token) == {
        "aud": AUD,
        "jti": str(JTI),
        "iat": NOW,
        "exp": NOW + 600,
        "tenant": "default",
        "meta": {"trace_id": str(TRACE), "timestamp": NOW, "from": "shop", "to": "report"},
        "context": {"context_id": "session-001", "locale": None, "permissions": []},
        "command": {"intent": "generate_report", "payload": {"project": "AlphaX"}},
    }


def test_no_permissions_and_all_permissions_are_told_apart() -> None:
    assert believe(a_token(an_envelope(permissions=()))).envelope.context.permissions == ()
    assert believe(a_token(an_envelope())).envelope.context.permissions is None


def test_s10_an_auth_token_is_neither_signed_nor_shown() -> None:
    sent = an_envelope(auth_token="secret-secret")
    assert "auth_token" not in claims_of(a_token(sent))["context"]
    assert "secret-secret" not in repr(sent)
    assert believe(a_token(sent)).envelope.context.auth_token is None


def test_s10_a_signed_auth_token_is_refused_for_it_would_be_kept() -> None:
    token = with_claims(lambda claims: claims["context"].update(auth_token="secret"))
    assert reason(token) == "auth_token"


@given(st.dictionaries(st.text(LETTERS), st.integers(-(2**60), 2**60) | st.text(LETTERS)))
def test_any_payload_is_read_as_it_was_sent(payload: dict[str, Any]) -> None:
    assert believe(a_token(an_envelope(payload or {"": 1}))).envelope.command.payload == (payload or {"": 1})


def test_a_payload_of_the_inline_size_always_fits() -> None:
    permissions = tuple(f"{n:0>124}:x" for n in range(64))
    text = "ü" * ((acp.INLINE_PAYLOAD_BYTES - len('{"a":""}')) // 2)
    assert len(jsontext.dumps({"a": text}, what="it").encode()) == acp.INLINE_PAYLOAD_BYTES
    sent = an_envelope({"a": text}, permissions=permissions)
    assert believe(a_token(sent)).envelope == sent


def test_an_envelope_over_64_kib_is_not_signed() -> None:
    with pytest.raises(PayloadTooLarge, match="by reference"):
        a_token(an_envelope({"a": "x" * 64 * 1024}))


def test_a_payload_that_json_cannot_say_is_not_signed() -> None:
    with pytest.raises(BadJson, match=r"\$\.command\.payload\.a\[1\]"):
        a_token(an_envelope({"a": [1, float("nan")]}))


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        (Meta, {"trace_id": TRACE, "timestamp": NOW, "from_": "a", "to": "b", "more": 1}),
        (Meta, {"trace_id": str(TRACE).upper(), "timestamp": NOW, "from_": "a", "to": "b"}),
        (Meta, {"trace_id": TRACE, "timestamp": "1", "from_": "a", "to": "b"}),
        (Meta, {"trace_id": TRACE, "timestamp": NOW, "from_": "a", "to": "b.c"}),
        (Context, {"context_id": "a/b"}),
        (Context, {"context_id": "a", "permissions": ["db:*"]}),
        (Context, {"context_id": "a", "permissions": "db:read"}),
        (Context, {"context_id": "a", "locale": "de\n"}),
        (Command, {"intent": "", "payload": {}}),
        (Command, {"intent": "a", "payload": []}),
        (Command, {"intent": "a", "payload": {}, "policy": {"max_step": 1}}),
        (Command, {"intent": "a", "payload": {}, "policy": {"max_steps": "1"}}),
        (Command, {"intent": "a", "payload": {}, "policy": {"max_steps": float("nan")}}),
    ],
)
def test_a_part_that_is_not_well_formed_is_not_made(part: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        part(**wrong)


def test_an_envelope_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        an_envelope().meta.to = "other"  # type: ignore[misc]


# --- S01 bytes changed ---------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_s01_one_byte_changed_anywhere_is_refused(data: st.DataObject) -> None:
    token = a_token()
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(LETTERS + ".=+/ \n\0é"))
    if other != token[at]:
        reason(token[:at] + other + token[at + 1 :])


@settings(max_examples=60)
@given(st.integers(0, 2_000))
def test_s01_a_truncated_token_is_refused(length: int) -> None:
    token = a_token()
    reason(token[: length % len(token)])


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", None, 1, b"a.b.c", ["a"], {}, "é.é.é"])
def test_s01_what_is_no_token_is_refused(token: object) -> None:
    assert reason(token) == "form"


def test_s01_an_unknown_signer_is_refused() -> None:
    assert reason(a_token(key=STRANGER)) == "key"


def test_s01_a_stranger_under_a_known_id_is_refused() -> None:
    assert reason(a_token(key=replace(STRANGER, kid=KEY.kid))) == "signature"


def test_s01_a_bad_signature_is_refused_before_the_payload_is_parsed() -> None:
    token = signed(b"{not json", key=replace(STRANGER, kid=KEY.kid))
    assert reason(token) == "signature"
    assert reason(signed(b"{not json")) == "json"


def test_s01_a_token_of_many_megabytes_is_refused() -> None:
    assert reason("a" * 10_000_000) == "form"
    assert reason(signed(b" " * acp.MAX_TOKEN_BYTES)) == "form"
    assert reason(a_token()[:-86] + "a" * 10_000_000) == "form"


# --- S02 algorithms ------------------------------------------------------------------------------

ALGORITHMS = ["none", "None", "NONE", "", "HS256", "HS512", "RS256", "ES256", "PS256", "ES256K"]
ALGORITHMS += ["EdDSA", "eddsa", "ed25519", "ED25519", "Ed25519 ", "Ed448", "X25519"]


@pytest.mark.parametrize("alg", [*ALGORITHMS, None, 1, ["Ed25519"], {"Ed25519": 1}])
def test_s02_no_other_algorithm_is_believed_not_even_with_a_signature_that_holds(alg: Any) -> None:
    payload = decoded(a_token().split(".")[1])
    assert reason(signed(payload, {**HEADER, "alg": alg})) == "algorithm"


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "ACP+JWS", "", None, ["acp+jws"]])
def test_s02_a_token_made_for_another_use_is_refused(typ: Any) -> None:
    payload = decoded(a_token().split(".")[1])
    assert reason(signed(payload, {**HEADER, "typ": typ})) == "algorithm"


def test_s02_an_unsigned_token_is_refused() -> None:
    start = encoded(json.dumps({**HEADER, "alg": "none"}).encode()) + "." + a_token().split(".")[1]
    assert reason(start + ".") == "form"
    assert reason(start + "." + "A" * 86) == "algorithm"


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_s02_the_public_key_is_no_shared_secret(alg: str) -> None:
    payload = decoded(a_token().split(".")[1])
    header = encoded(json.dumps({**HEADER, "alg": alg}).encode())
    text = f"{header}.{encoded(payload)}".encode()
    for secret in (KEY.public, KEY.private.as_pem(private=False), encoded(KEY.public).encode()):
        mac = hmac.digest(secret, text, alg.replace("HS", "sha"))
        assert reason(f"{text.decode()}.{encoded(mac):A<86}") == "algorithm"


@pytest.mark.parametrize(("alg", "key"), [("ES256", ECKey), ("RS256", RSAKey)])
def test_s02_a_key_of_another_kind_signs_nothing(alg: str, key: Any) -> None:
    other = key.generate_key()
    payload = decoded(a_token().split(".")[1])
    reason(jws.serialize_compact({**HEADER, "alg": alg}, payload, other, algorithms=[alg]))


# --- S03 kid and headers -------------------------------------------------------------------------

KIDS = ["", "../../etc/passwd", "/dev/null", "' OR 1=1 --", "http://evil.example/key", "a" * 10_240]
KIDS += [KEY.kid + "=", KEY.kid[:-1], KEY.kid.lower(), KEY.kid + "\0", " " + KEY.kid, "*", "%"]
ODD: list[Any] = [*KIDS, None, 1, [KEY.kid], {"kid": KEY.kid}, True]


@pytest.mark.parametrize("kid", ODD, ids=range(len(ODD)))  # the key is another one in each process
def test_s03_a_key_is_found_by_its_exact_id(kid: Any) -> None:
    payload = decoded(a_token().split(".")[1])
    assert reason(signed(payload, {**HEADER, "kid": kid})) in {"key", "header", "form"}


def test_s03_an_id_that_is_none_is_not_even_looked_up() -> None:
    looked: list[str] = []
    payload = decoded(a_token().split(".")[1])
    for kid in ("../../etc/passwd", "' OR 1=1 --", None, 7, STRANGER.kid):
        token = signed(payload, {**HEADER, "kid": kid})
        with pytest.raises(EnvelopeRefused):
            verify(token, keys=looked.append, aud=AUD, now_s=NOW)
    assert looked == [STRANGER.kid]


def test_s03_a_store_that_finds_another_key_is_not_believed() -> None:
    with pytest.raises(EnvelopeRefused) as refused:
        verify(a_token(key=STRANGER), keys=lambda _: KEYS[KEY.kid], aud=AUD, now_s=NOW)
    assert refused.value.reason == "key"


def test_s03_a_missing_id_is_refused() -> None:
    assert reason(signed(b"{}", {"alg": "Ed25519", "typ": "acp+jws"})) == "header"


def test_s03_a_key_signs_for_its_own_tenant_alone() -> None:
    assert reason(a_token(key=replace(KEY, tenant="other"))) == "tenant"


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "x5t", "crit", "b64", "zip", "cty"])
def test_s03_a_header_that_names_more_is_refused_and_nothing_is_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", None)  # whoever opens one fails otherwise
    values: dict[str, Any] = {"jwk": STRANGER.private.as_dict(private=False), "crit": ["exp"]}
    values |= {"b64": False, "x5c": ["MII"], "jku": "http://127.0.0.1/", "x5u": "file:///dev/null"}
    payload = decoded(a_token().split(".")[1])
    header = {**HEADER, name: values.get(name, "x")}
    assert reason(signed(payload, header)) == "header"
    assert reason(signed(payload, header, STRANGER)) == "header"


def test_s08_a_revoked_key_is_refused() -> None:
    revoked = replace(KEYS[KEY.kid], revoked_at=datetime(2025, 4, 26, tzinfo=UTC))
    with pytest.raises(EnvelopeRefused) as refused:
        verify(a_token(), keys=lambda _: revoked, aud=AUD, now_s=NOW)
    assert refused.value.reason == "revoked"


# --- S05 audience --------------------------------------------------------------------------------


@pytest.mark.parametrize("aud", ["mesh/agent.other", "stage/agent.report", "mesh", "mesh/", ""])
def test_s05_an_envelope_for_elsewhere_is_refused(aud: str) -> None:
    assert reason(a_token(aud=aud)) == "audience"
    assert reason(a_token(), aud=aud) == "audience"


AUDIENCES: list[Any] = [
    [AUD],
    [AUD, "x"],
    {"a": AUD},
    None,
    True,
    AUD + "/",
    AUD.upper(),
    f" {AUD}",
]


@pytest.mark.parametrize("aud", AUDIENCES)
def test_s05_an_audience_is_one_exact_string(aud: object) -> None:
    assert reason(with_claims(lambda claims: claims.update(aud=aud))) == "audience"


# --- S06 time ------------------------------------------------------------------------------------


def test_s06_an_envelope_holds_from_30_s_before_to_30_s_after_its_life() -> None:
    token = a_token()
    assert reason(token, now_s=NOW - 31) == "early"
    assert reason(token, now_s=NOW + 630) == "expired"
    for now_s in (NOW - 30, NOW, NOW + 600, NOW + 629):
        believe(token, now_s=now_s)


TIMES: dict[str, dict[str, Any]] = {
    "year 9999": {"exp": 253_402_300_799},
    "11 minutes": {"exp": NOW + 601},
    "no life": {"exp": NOW},
    "ends before it begins": {"exp": NOW - 1},
    "from the future": {"iat": NOW + 31, "exp": NOW + 60},
    "negative": {"iat": -1, "exp": 10},
    "text": {"exp": str(NOW + 60)},
    "text from": {"iat": str(NOW)},
    "a fraction": {"exp": NOW + 60.0},
    "true": {"iat": True, "exp": 2},
    "null": {"exp": None},
    "a list": {"iat": [NOW]},
    "20 digits": {"iat": 10**19, "exp": 10**19 + 1},
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES.keys())
def test_s06_other_times_are_refused(times: dict[str, Any]) -> None:
    assert reason(with_claims(lambda c: c.update(times))) in {"life", "early", "expired", "claims"}


def test_s06_true_is_not_the_first_second() -> None:
    token = with_claims(lambda claims: claims.update(iat=True, exp=2))
    assert reason(token, now_s=1) == "claims"
    believe(with_claims(lambda claims: claims.update(iat=1, exp=2)), now_s=1)


@pytest.mark.parametrize("claim", ["aud", "jti", "iat", "exp", "tenant", "meta", "command"])
def test_s06_an_envelope_without_a_claim_is_refused(claim: str) -> None:
    assert reason(with_claims(lambda claims: claims.pop(claim))) == "claims"


@pytest.mark.parametrize("claim", ["nbf", "iss", "sub", "kid", "policy"])
def test_s06_a_claim_that_is_not_ours_is_refused(claim: str) -> None:
    assert reason(with_claims(lambda claims: claims.update({claim: NOW}))) == "claims"


def test_nobody_signs_for_longer_than_ten_minutes() -> None:
    assert claims_of(a_token(life_s=10**9))["exp"] == NOW + 600
    assert claims_of(a_token(life_s=5))["exp"] == NOW + 5


# --- S07 same claims, other bytes ----------------------------------------------------------------


def test_s07_other_bytes_of_the_same_claims_need_another_signature() -> None:
    header, payload, signature = a_token().split(".")
    claims = claims_of(a_token())
    for text in (
        json.dumps(claims),
        json.dumps(dict(reversed(claims.items())), separators=(",", ":")),
        decoded(payload).decode().replace("report", "r\\u0065port"),
        decoded(payload).decode() + " ",
    ):
        assert reason(f"{header}.{encoded(text.encode())}.{signature}") == "signature"


@pytest.mark.parametrize(
    "change",
    [('"iat":', f'"iat":{NOW},"iat":'), ('"to":"report"', '"to":"report","to":"other"')],
)
def test_s07_duplicate_keys_are_refused_though_signed(change: tuple[str, str]) -> None:
    text = decoded(a_token().split(".")[1]).decode()
    assert change[0] in text
    assert reason(signed(text.replace(*change).encode())) == "json"


def test_s07_duplicate_keys_in_the_header_are_refused_though_signed() -> None:
    payload = decoded(a_token().split(".")[1])
    header = json.dumps(HEADER)[:-1] + ',"alg":"Ed25519"}'
    assert reason(signed(payload, header.encode())) == "header"


def test_s07_only_the_compact_form_is_read() -> None:
    header, payload, signature = a_token().split(".")
    one = {"protected": header, "signature": signature}
    assert reason(json.dumps({"payload": payload, **one})) == "form"
    assert reason(json.dumps({"payload": payload, "signatures": [one, one]})) == "form"
    assert reason(f"{header}..{signature}") == "form"  # detached
    assert reason(f"{header}.{payload}.{signature}.{signature}") == "form"
    assert reason(f"{a_token()}\n") == "form"
    assert reason(f" {a_token()}") == "form"


def test_s07_a_signature_has_one_spelling() -> None:
    token = a_token()
    for last in LETTERS:
        if last != token[-1]:
            assert reason(token[:-1] + last) == "signature"
    assert reason(token + "=") == "form"
    assert reason(token + "==") == "form"


@pytest.mark.parametrize("padding", range(3))
def test_s07_payload_and_header_have_one_spelling(padding: int) -> None:
    payload = decoded(a_token().split(".")[1]) + b" " * padding
    believe(signed(payload))
    for part in (0, 1):
        start, rest = (
            signed(payload).split(".")[part],
            len(decoded(signed(payload).split(".")[part])),
        )
        for last in LETTERS:
            if last != start[-1] and decoded(start[:-1] + last)[:rest] == decoded(start):
                pieces = signed(payload).split(".")
                pieces[part] = start[:-1] + last
                text = ".".join(pieces[:2])
                pieces[2] = encoded(KEY.private.private_key.sign(text.encode()))  # type: ignore[union-attr]
                assert reason(".".join(pieces)) == "signature"


# --- fields --------------------------------------------------------------------------------------

FIELDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown field": lambda c: c["meta"].update(more=1),
    "an unknown field in the command": lambda c: c["command"].update(tools=[]),
    "from by our name for it": lambda c: c["meta"].update(from_=c["meta"].pop("from")),
    "both": lambda c: c["meta"].update(from_="shop"),
    "no trace": lambda c: c["meta"].pop("trace_id"),
    "another spelling of an id": lambda c: c["meta"].update(trace_id=f"{{{TRACE}}}"),
    "an id as number": lambda c: c["meta"].update(trace_id=1),
    "a part that is a list": lambda c: c.update(meta=[]),
    "a part that is null": lambda c: c.update(context=None),
    "a queue for a name": lambda c: c["meta"].update(to="report.x"),
    "a time as text": lambda c: c["meta"].update(timestamp=str(NOW)),
    "a wildcard": lambda c: c["context"].update(permissions=["data:*"]),
    "5 000 permissions": lambda c: c["context"].update(permissions=["a:b"] * 5_000),
    "permissions as an object": lambda c: c["context"].update(permissions={"a:b": 1}),
    "a payload that is a list": lambda c: c["command"].update(payload=[]),
    "a payload that is null": lambda c: c["command"].update(payload=None),
    "a policy of unknown fields": lambda c: c["command"].update(policy={"x": 1}),
    "a policy of wrong types": lambda c: c["command"].update(policy={"max_steps": True}),
    "a policy that is a list": lambda c: c["command"].update(policy=[]),
    "a long intent": lambda c: c["command"].update(intent="a" * 129),
}


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS.keys())
def test_a_signed_envelope_of_another_shape_is_refused(
    change: Callable[[dict[str, Any]], object],
) -> None:
    assert reason(with_claims(change)) == "fields"


@pytest.mark.parametrize("jti", [None, 1, "", "x", str(JTI).upper(), JTI.hex])
def test_a_signed_envelope_without_a_proper_jti_is_refused(jti: object) -> None:
    assert reason(with_claims(lambda claims: claims.update(jti=jti))) == "claims"


# --- whatever comes ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(st.text() | st.binary() | JSON)
def test_s01_any_text_is_refused(token: object) -> None:
    reason(token)


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(min_size=64, max_size=64))
def test_s01_any_three_segments_are_refused(header: bytes, payload: bytes, sig: bytes) -> None:
    reason(f"{encoded(header)}.{encoded(payload)}.{encoded(sig)}")


@given(st.dictionaries(st.sampled_from([*HEADER, "crit", "b64", "jwk"]), JSON | st.just("Ed25519")))
def test_s02_s03_any_header_but_ours_is_refused(header: dict[str, Any]) -> None:
    if header != HEADER:
        reason(signed(decoded(a_token().split(".")[1]), {**HEADER, **header, "x": 1}))
        reason(signed(decoded(a_token().split(".")[1]), header))


@given(st.binary(max_size=200))
def test_s07_any_signed_bytes_are_refused(payload: bytes) -> None:
    assert reason(signed(payload)) in {"json", "claims", "form"}


@settings(max_examples=150)
@given(st.data())
def test_any_signed_claims_are_believed_or_refused(data: st.DataObject) -> None:
    claims = claims_of(a_token())
    where = data.draw(st.sampled_from([claims, *(claims[p] for p in ("meta", "context", "command"))]))
    where[data.draw(st.sampled_from([*where, "locale", "policy", "auth_token"]))] = data.draw(JSON)
    try:
        got = believe(signed(json.dumps(claims).encode()))
    except EnvelopeRefused:
        return
    assert got.tenant == "default"
    assert believe(a_token(got.envelope)).envelope == got.envelope
