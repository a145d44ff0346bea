"""Attacks on the doors: by strangers, by other tenants, with tokens of every wrong kind, by many at once."""

from __future__ import annotations

import base64
import hmac
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from joserfc import jwe, jwt
from joserfc.jwk import OctKey, OKPKey, RSAKey

from agentmesh.console.gateway import _api, describe
from agentmesh.errors import BlobMissing
from agentmesh.records import new_id
from agentmesh.state import audit
from agentmesh.state.keys import KeyTable
from agentmesh.testing import need, race
from agentmesh.wiring import now_s
from tests.console.doors import Door, envelope, intent, problem
from tests.console.test_gateway import JOSE, producer, signed
from tests.sites import Site, saying

OPEN = {"/livez", "/readyz", "/openapi.json"}
ISSUER, AUDIENCE = "https://login.example", "https://mesh.example"


def answer_of(answer: httpx.Response) -> tuple[Any, ...]:
    """All of an answer but the time of day."""
    return answer.status_code, answer.content, *sorted((k, v) for k, v in answer.headers.items() if k != "date")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def operations() -> list[tuple[str, str]]:
    return [(method.upper(), path) for path, item in describe()["paths"].items() for method in item]


def filled(path: str, trace_id: object) -> str:
    path = path.replace("{trace_id}", str(trace_id)).replace("{to_id}", "puppet").replace("{token}", "x")
    for name in ("{agent}", "{name}", "{letter_id}"):
        path = path.replace(name, str(trace_id))
    return f"{path}?trace={trace_id}" if path == "/v1/stream" else path


# --- who is believed --------------------------------------------------------------------------------------------------


def test_s09_refused_envelopes_and_tokens_all_get_the_same_bytes(door: Door, tmp_path: Path) -> None:
    key, gone = producer(door, tmp_path), producer(door, tmp_path, owner="gone")
    strange = producer(door, tmp_path / "other", owner="strange")
    door.lab.rows("DELETE FROM mesh.keys WHERE kid = %(kid)s", kid=strange.kid)
    door.mesh.keys  # noqa: B018 - made
    door.mesh.key_table.revoke(gone.kid, by="me")
    door.mesh.key_table._seen.clear()
    good = signed(key)
    head, body, seal = good.split(".")
    forged = b64(base64.urlsafe_b64decode(body + "==").replace(b"work", b"walk"))
    acme = producer(door, tmp_path, tenant="acme", owner="acme")
    foreign = signed(type(acme)(acme.kid, "default", acme.private))
    tokens = [
        signed(strange), signed(gone), f"{head}.{forged}.{seal}", f"{head}.{body}.{'A' * 86}", good[:-1], "", "x", f"{good}\n.x",
        signed(key, now_s=now_s() - 3600), signed(key, now_s=now_s() + 3600), signed(key, aud="mesh/agent.puppet"), foreign,
        "é" * 20, "a" * 70_000,
    ]  # fmt: skip
    poster = door.stranger(**JOSE)
    kid, api = door.issue("*")
    door.mesh.key_table.revoke(kid, by="me")
    wrong = [
        api,
        api[:-1] + ("A" if api[-1] != "A" else "B"),
        "amk_0000000000000000_" + "A" * 43,
        "ams_x",
        "a.b.c",
        "x" * 9000,
    ]
    answers = {answer_of(poster.post("/agent/puppet", content=token.encode())) for token in tokens}
    answers |= {
        answer_of(door.stranger(Authorization=f"Bearer {token}").post("/agent/puppet", json=envelope()))
        for token in wrong
    }
    answers |= {answer_of(door.stranger(**{"X-Api-Key": api}).post("/agent/puppet?token=x", json=envelope()))}
    assert len(answers) == 1, answers
    assert next(iter(answers))[0] == 401
    assert door.count("traces") == 0
    assert poster.post("/agent/puppet", content=good).status_code == 201  # and the genuine one goes on


@pytest.fixture
def issuer(tmp_path: Path) -> dict[str, Any]:
    """An issuer of tokens: its keys, and the settings of a gateway that believes it."""
    keys = {
        "ed": OKPKey.generate_key("Ed25519", {"kid": "ed"}),
        "rsa": RSAKey.generate_key(2048, {"kid": "rsa", "alg": "RS256"}),
    }
    listed = [one.as_dict(private=False) for one in keys.values()]
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": listed}))
    flags = {"gateway__issuer": ISSUER, "gateway__audience": AUDIENCE, "gateway__jwks": str(tmp_path / "jwks.json"),
             "gateway__tenants": ("default", "Acme Inc=acme")}  # fmt: skip
    return {"keys": keys, "flags": flags}


def token_of(issuer: dict[str, Any], key: str = "ed", header: dict[str, Any] | None = None, **claims: Any) -> str:
    said = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now_s() + 300, "iat": now_s(), "tenant": "default",
        "permissions": ["traces:read", "data:read"],
    } | claims  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    used = issuer["keys"][key]
    head = {"alg": "Ed25519" if key == "ed" else "RS256", "kid": key, "typ": "at+jwt"} | (header or {})
    return jwt.encode(head, said, used, algorithms=[head["alg"]])


def test_a_token_of_the_issuer_opens_what_its_claims_say(
    make_door: Callable[..., Door], issuer: dict[str, Any]
) -> None:
    door = make_door(**issuer["flags"])
    for key in ("ed", "rsa"):
        alice = door.client(token=token_of(issuer, key))
        made = alice.post("/v1/intents", json=intent())
        assert alice.get(made.headers["location"]).json()["permissions"] == ["data:read"]
        problem(alice.post(f"{made.headers['location']}/cancel"), 403, "E_FORBIDDEN")
    theirs = door.client(
        token=token_of(issuer, tenant="Acme Inc", permissions="traces:read data:read", aud=[AUDIENCE, "x"])
    )
    problem(theirs.get(made.headers["location"]), 404, "E_TRACE_UNKNOWN")
    made = theirs.post("/v1/intents", json=intent())
    assert door.lab.rows("SELECT tenant_id FROM mesh.traces ORDER BY id DESC LIMIT 1") == [{"tenant_id": "acme"}]


def test_s18_a_token_that_is_not_for_us_is_refused_whatever_is_wrong(
    make_door: Callable[..., Door], issuer: dict[str, Any]
) -> None:
    door = make_door(**issuer["flags"])
    good, stranger = token_of(issuer), {"keys": {"ed": OKPKey.generate_key("Ed25519", {"kid": "ed"})}}
    public = issuer["keys"]["rsa"].as_pem(private=False)
    said = b64(b'{"alg":"HS256","kid":"rsa","typ":"at+jwt"}') + "." + good.split(".")[1]
    with_public_key = f"{said}.{b64(hmac.digest(public, said.encode(), 'sha256'))}"
    none = ".".join([b64(b'{"alg":"none","kid":"ed","typ":"at+jwt"}'), good.split(".")[1], ""])
    secret = OctKey.generate_key(256)
    sealed = jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM", "zip": "DEF"}, good, secret)
    wrong = {
        "iss": token_of(issuer, iss="https://evil.example"),
        "no iss": token_of(issuer, iss=None),
        "aud": token_of(issuer, aud="https://other.example"),
        "aud as list": token_of(issuer, aud=["https://other.example"]),
        "no aud": token_of(issuer, aud=None),
        "no exp": token_of(issuer, exp=None),
        "exp as text": token_of(issuer, exp="9999999999"),
        "exp true": token_of(issuer, exp=True),
        "expired": token_of(issuer, exp=now_s() - 60),
        "early": token_of(issuer, nbf=now_s() + 60),
        "from tomorrow": token_of(issuer, iat=now_s() + 86_400),
        "ID token": token_of(issuer, header={"typ": "JWT"}),
        "no typ": token_of(issuer, header={"typ": ""}),
        "jku": token_of(issuer, header={"jku": "http://127.0.0.1/"}),
        "jwk": token_of(issuer, header={"jwk": issuer["keys"]["ed"].as_dict(private=False)}),
        "unknown key": token_of(issuer, header={"kid": "other"}),
        "kid as path": token_of(issuer, header={"kid": "../../etc/passwd"}),
        "stranger's key": token_of(stranger),
        "HS256 with the public key": with_public_key,
        "none": none,
        "JWE": sealed,
        "no sub": token_of(issuer, sub=None),
        "unknown tenant": token_of(issuer, tenant="globex"),
        "tenant as list": token_of(issuer, tenant=["default"]),
        "no tenant": token_of(issuer, tenant=None),
        "our name of their tenant": token_of(issuer, tenant="acme"),
        "permissions of no form": token_of(issuer, permissions=["DATA:READ"]),
        "cut": good[:-2],
        "longer": good + "A",
        "1 MiB": "eyJ" + "A" * (1 << 13) + "." + "A" * 100 + "." + "A" * 86,
    }
    answers = {name: answer_of(door.client(token=token).get("/v1/traces")) for name, token in wrong.items()}
    assert {name: found[0] for name, found in answers.items() if found[0] != 401} == {}
    assert len(set(answers.values())) == 1
    problem(door.stranger().get("/v1/traces", params={"access_token": good, "token": good}), 401, "E_UNAUTHENTICATED")
    problem(door.stranger(**{"X-Tenant": "acme"}).get("/v1/traces"), 401, "E_UNAUTHENTICATED")
    answer = door.client(token=good).get("/v1/traces", headers={"X-Tenant": "acme", "X-Tenant-Id": "acme"})
    assert answer.status_code == 200


def test_an_issuer_whose_keys_cannot_be_had_is_told_as_such(
    make_door: Callable[..., Door], issuer: dict[str, Any]
) -> None:
    door = make_door(**issuer["flags"] | {"gateway__jwks": "http://127.0.0.1:9/keys"})
    answer = door.client(token=token_of(issuer)).get("/v1/traces")
    problem(answer, 503, "E_OVERLOADED")
    assert int(answer.headers["retry-after"]) >= 1
    assert door.client().get("/v1/traces").status_code == 200  # an API key needs no issuer


@pytest.mark.parametrize("fault", [None, "redirect", "endless"])
def test_s37_the_issuers_keys_are_read_within_limits_and_from_nowhere_else(
    make_door: Callable[..., Door], issuer: dict[str, Any], tmp_path: Path, fault: str | None
) -> None:
    keys = (tmp_path / "jwks.json").read_text()
    site, elsewhere = Site(), Site()
    elsewhere.answer = saying(keys, kind="application/json")
    answers = {
        None: saying(keys, kind="application/json"),
        "redirect": saying("", status=302, location=f"{elsewhere.url}/keys"),
        "endless": saying(keys + " " * 300_000, kind="application/json"),
    }
    site.answer = answers[fault]
    door = make_door(**issuer["flags"] | {"gateway__jwks": f"{site.url}/keys"})
    answer = door.client(token=token_of(issuer)).get("/v1/traces")
    for one in (site, elsewhere):
        one.close()
    assert (answer.status_code, elsewhere.seen) == (503 if fault else 200, [])


# --- what is not yours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"), [one for one in operations() if "{trace_id}" in one[1] or one[1] == "/v1/stream"]
)
def test_s20_another_tenants_trace_is_one_that_never_existed(door: Door, method: str, path: str) -> None:
    url = door.client().post("/v1/intents", json=intent()).headers["location"]
    door.lab.drain()
    theirs, never = url.rpartition("/")[2], str(new_id())
    stranger = door.client(tenant="acme")
    before = door.lab.everything()
    found = [stranger.request(method, filled(path, one)) for one in (theirs, never)]
    assert {one.status_code for one in found} == {404}
    said = [one.text.replace(theirs, "ID").replace(never, "ID") for one in found]
    assert said[0] == said[1]
    assert door.lab.everything() == before


@pytest.fixture
def theirs(door: Door) -> dict[str, str]:
    """What tenant default has, by the name of its parameter: an agent, a schedule, a dead letter."""
    url = door.client().post("/v1/intents", json=intent()).headers["location"]
    daily = {"agent": "puppet", "intent": "work", "cron": "0 9 * * *"}
    assert door.client().put("/v1/schedules/theirs", json=daily).status_code == 200
    door.lab.rows("UPDATE mesh.agents SET id = 'theirs', tenant_id = 'default' WHERE tenant_id = 'default'")
    letter = str(new_id())
    door.lab.rows("INSERT INTO mesh.dead_letters (id, tenant_id, trace_id, code, fingerprint) VALUES"
                  " (%(id)s, 'default', %(trace)s, 'E_POISON', 'f')", id=letter, trace=url.rpartition("/")[2])  # fmt: skip
    return {"agent": "theirs", "name": "theirs", "letter_id": letter}


def test_s20_whatever_else_another_tenant_has_never_existed(door: Door, theirs: dict[str, str]) -> None:
    """Every operation on something that is named, but for PUT, which makes it for whoever asks."""
    stranger, walked = door.client(tenant="acme"), 0
    before = door.lab.everything()
    for method, path in operations():
        known = [name for name in theirs if f"{{{name}}}" in path]
        if known and method != "PUT":
            never = str(new_id()) if known[0] == "letter_id" else "never"
            found = [stranger.request(method, filled(path, one)) for one in (theirs[known[0]], never)]
            assert [one.status_code for one in found] == [404, 404], (method, path)
            assert found[0].text.replace(theirs[known[0]], "ID") == found[1].text.replace(never, "ID")
            walked += 1
    assert walked >= 5
    assert door.lab.everything() == before


def test_s20_lists_hold_nothing_of_another_tenant(door: Door, theirs: dict[str, str]) -> None:
    while audit.seal(door.mesh.db):
        pass
    stranger, owner, full = door.client(tenant="acme"), door.client(), 0
    door.lab.rows("DELETE FROM mesh.agents WHERE tenant_id = 'acme'")
    for method, path in operations():
        if method == "GET" and path.startswith("/v1/") and "{" not in path and path != "/v1/stream":
            listed = stranger.get(path).json()
            assert [one for one in listed["items"] if one.get("tenant") != "acme"] == [], path
            full += bool(owner.get(path).json()["items"])
    assert full >= 5


BAD_JSON = ('{"a":1,"a":2}', '{"a":NaN}', "[" * 100_000, '"\\ud800"', '{"a": 1', "{}x")


def test_s27_no_operation_takes_json_that_is_not_strict(door: Door, theirs: dict[str, str]) -> None:
    trace_id = door.lab.rows("SELECT id FROM mesh.traces")[0]["id"]
    before, walked = door.lab.everything(), 0
    for path, item in describe()["paths"].items():
        for method, said in item.items():
            if "application/json" not in said.get("requestBody", {}).get("content", {}) or "{token}" in path:
                continue
            place = filled(path, "theirs" if "{name}" in path else trace_id)
            for text in BAD_JSON:
                answer = door.client().request(
                    method, place, content=text, headers={"content-type": "application/json"}
                )
                assert problem(answer, 400, answer.json()["code"])["code"].startswith("E_JSON"), (
                    method,
                    path,
                    text[:20],
                )
            walked += 1
    assert walked >= 10
    assert door.lab.everything() == before


# --- the way in -------------------------------------------------------------------------------------------------------


def test_s47_no_route_opens_without_credentials(door: Door) -> None:
    url = door.client().post("/v1/intents", json=intent()).headers["location"]
    stranger, trace_id = door.stranger(), url.rpartition("/")[2]
    before = door.lab.everything()
    registered = {(method, route.path) for route in every_route() for method in route.methods}
    assert {path for _, path in registered} >= {path for _, path in operations()}
    for method, path in sorted(registered):
        status = stranger.request(method, filled(path, trace_id), json={} if method == "POST" else None).status_code
        assert status == (200 if path in OPEN else 401), (method, path)
    assert door.lab.everything() == before


def every_route() -> list[Any]:
    """Every registered route, those of included routers among them, as the router itself holds them."""
    from fastapi.routing import APIRoute

    found, waiting = [], list(_api().routes)
    while waiting:
        one = waiting.pop()
        inner = getattr(one, "routes", None) or getattr(getattr(one, "original_router", None), "routes", None)
        if isinstance(one, APIRoute):
            found.append(one)
        elif inner:
            waiting += inner
    return found


CROOKED = [
    "//v1/traces",
    "/v1//traces",
    "/v1/traces/",
    "/V1/traces",
    "/v1/traces;x",
    "/v1/traces%3bx",
    "/v1/%74races/",
    "/%2e/v1/traces",
    "/livez/../v1/traces",
    "/livez/%2e%2e/v1/traces",
    "/livez%2f..%2fv1/traces",
    "/v1/traces/livez",
    "/v1/traces/health",
    "/v1/traces%00",
    "/v1/traces%0a",
    "/\\v1\\traces",
    "/metrics/livez",
    "/openapi.json/../metrics",
    "/v1/traces?/livez",
    "/docs",
    "/redoc",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "PATCH"])
def test_s47_no_spelling_of_a_path_leads_around_the_lock(door: Door, method: str) -> None:
    door.client().post("/v1/intents", json=intent())
    raw = httpx.URL(door.url)
    stranger = door.stranger()
    for path in CROOKED:
        url = raw.copy_with(raw_path=path.encode())
        answer = stranger.request(method, url)
        assert answer.status_code in {401, 404, 405}, path
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "AAAA",
        "Sec-WebSocket-Version": "13",
    }
    assert stranger.request(method, "/v1/traces", headers=upgrade).status_code in {401, 404, 405}


def test_s45_no_page_of_another_origin_may_read(make_door: Callable[..., Door]) -> None:
    look_alikes = [
        "https://evil.example",
        "null",
        "https://desk.example.evil.example",
        "https://evildesk.example",
        "http://desk.example",
    ]
    closed, listed = make_door(), make_door(gateway__origins=("https://desk.example",))
    for door, origins in ((closed, [*look_alikes, "https://desk.example"]), (listed, look_alikes)):
        for origin in origins:
            for method in ("GET", "OPTIONS"):
                headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
                answer = door.client().request(method, "/v1/traces", headers=headers)
                assert "access-control-allow-origin" not in answer.headers, origin
    answer = listed.client().get("/v1/traces", headers={"Origin": "https://desk.example"})
    assert answer.headers["access-control-allow-origin"] == "https://desk.example"
    assert "access-control-allow-credentials" not in answer.headers


def test_s46_a_page_that_points_its_name_at_us_is_refused(door: Door) -> None:
    port = door.url.rpartition(":")[2]
    for host in (
        f"evil.example:{port}",
        "evil.example",
        f"127.0.0.1.evil.example:{port}",
        f"localhost.evil.example:{port}",
        "",
    ):
        for path in ("/v1/traces", "/livez", "/openapi.json"):
            problem(door.client().get(path, headers={"Host": host}), 421, "E_REQUEST")
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", f"[::1]:{port}", "[::1]"):
        assert door.client().get("/v1/traces", headers={"Host": host}).status_code == 200


def test_s44_answers_forbid_framing_sniffing_and_keeping(door: Door) -> None:
    for answer in (door.client().get("/v1/traces"), door.stranger().get("/v1/traces"), door.stranger().get("/livez")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers


# --- too often --------------------------------------------------------------------------------------------------------


def test_s49_requests_are_counted_by_principal_over_all_gateways_and_keys(make_door: Callable[..., Door]) -> None:
    flags = {
        "gateway__rate": "10/minute",
        "gateway__rates_url": need("AGENTMESH_TEST_REDIS_URL"),
        "mesh__name": f"t{new_id().hex[-12:]}",
    }
    doors = [make_door(**flags), make_door(**flags)]
    tokens = [doors[0].issue("*")[1] for _ in range(3)]  # three keys of one owner
    callers = [door.client(token=token) for door in doors for token in tokens]
    answers = race(*[lambda caller=caller: caller.get("/v1/traces") for caller in callers * 4])
    codes = [one.status_code for one in answers]  # type: ignore[union-attr]
    assert sorted(codes) == [200] * 10 + [429] * 14
    told = next(one for one in answers if one.status_code == 429)  # type: ignore[union-attr]
    problem(told, 429, "E_RATE")  # type: ignore[arg-type]
    assert 1 <= int(told.headers["retry-after"]) <= 61  # type: ignore[union-attr]
    assert doors[0].client(owner="somebody else").get("/v1/traces").status_code == 200


def test_s49_a_tenant_as_a_whole_is_counted_too(make_door: Callable[..., Door]) -> None:
    door = make_door(gateway__tenant_rate="4/minute")
    codes = [door.client(owner=f"owner-{n}").get("/v1/traces").status_code for n in range(6)]
    assert codes == [200] * 4 + [429] * 2
    assert door.client(tenant="acme").get("/v1/traces").status_code == 200


def test_s49_failures_are_counted_by_address_and_a_header_changes_none(make_door: Callable[..., Door]) -> None:
    def codes(door: Door, addresses: list[str]) -> list[int]:
        said = [{"Authorization": "Bearer nonsense", "X-Forwarded-For": one} for one in addresses]
        return [door.stranger(**one).get("/v1/traces").status_code for one in said]

    direct = make_door(gateway__failures="3/minute")
    assert codes(direct, [f"198.51.100.{n}" for n in range(5)]) == [401] * 3 + [429] * 2
    behind = make_door(gateway__failures="3/minute", gateway__proxies=("127.0.0.0/8",))
    hops = [f"2001:db8:1:2::{n:x}" for n in range(1, 6)]  # one /64
    assert codes(behind, hops) == [401] * 3 + [429] * 2
    assert codes(behind, ["2001:db8:1:3::1", "9.9.9.9, 2001:db8:1:2::9", "2001:db8:1:2::9, 192.0.2.1"]) == [
        401,
        429,
        401,
    ]


def test_s49_while_redis_is_away_each_gateway_counts_by_itself(make_door: Callable[..., Door]) -> None:
    door = make_door(gateway__rate="3/minute", gateway__rates_url="redis://127.0.0.1:9/0")
    caller = door.client()
    assert [caller.get("/v1/traces").status_code for _ in range(5)] == [200] * 3 + [429] * 2


def test_s08_a_key_revoked_elsewhere_is_refused_here_within_half_a_minute(door: Door) -> None:
    kid, token = door.issue("*")
    caller = door.client(token=token)
    assert caller.get("/v1/traces").status_code == 200
    KeyTable(door.mesh.db).revoke(kid, by="me")  # by another process
    row = door.mesh.key_table
    assert row._fresh_s <= 25
    row._seen.clear()  # what time does
    problem(caller.get("/v1/traces"), 401, "E_UNAUTHENTICATED")


# --- what lies in the database, and what in files ----------------------------------------------------------------------


def test_s23_a_blob_is_read_by_its_tenant_alone_and_nothing_tells_that_it_is_there(door: Door) -> None:
    big = {"do": [], "text": "x" * 100_000}
    ours, theirs = door.client(), door.client(tenant="acme")
    first = ours.post("/v1/intents", json=intent(big))
    second = theirs.post("/v1/intents", json=intent(big))
    assert (first.status_code, first.json().keys()) == (second.status_code, second.json().keys())
    [(digest, tenants)] = [
        (one["hash"], one["tenants"])
        for one in door.lab.rows(
            "SELECT hash, array_agg(tenant_id ORDER BY tenant_id) AS tenants FROM mesh.blobs GROUP BY hash"
        )
    ]
    assert tenants == ["acme", "default"]  # each has its own: no upload is quicker for another's
    assert theirs.get(second.headers["location"]).json()["payload"] == big
    door.lab.rows("DELETE FROM mesh.blobs WHERE tenant_id = 'acme'")
    for known in (digest, "0" * 64):
        reference = {"$blob": known}
        problem(theirs.post("/v1/intents", json=intent(reference)), 422, "E_PAYLOAD")
        with pytest.raises(BlobMissing):
            door.mesh.blobs.expand("acme", reference)
        kept = door.mesh.blobs.shrink("acme", reference, what="a text of theirs")
        assert door.mesh.blobs.expand("acme", kept) == reference  # what they wrote, not what it looks like


PATHS = ("..", "../../etc/passwd", "/etc/passwd", "..\\..\\passwd", "passwd\0.json", "CON", "~root", "%2e%2e%2fpasswd")


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every file that this process opens meanwhile."""
    found: list[str] = []
    hearing = [True]

    def hear(event: str, args: tuple[Any, ...]) -> None:  # there is no way to take a hook away
        if hearing and event == "open":
            found.append(str(args[0]))

    sys.addaudithook(hear)
    yield found
    hearing.clear()


def test_s34_no_name_of_a_request_opens_a_file(door: Door, opened: list[str]) -> None:
    """Every parameter of every path, and what a body names: a row or nothing."""
    sender, before, walked = door.client(), door.lab.everything(), 0
    for method, path in operations():
        for name in re.findall(r"{(\w+)}", path):
            for said in PATHS:
                place = path.replace(f"{{{name}}}", quote(said, safe=""))
                answer = sender.request(method, filled(place, new_id()), json={} if method != "GET" else None)
                assert 400 <= answer.status_code < 500, (method, place, answer.text)
                walked += 1
    for said in set(PATHS) - {"CON"}:  # which is a name like any other
        for body in ({"to": said}, {"context_id": said}, {"intent": said}):
            assert sender.post("/v1/intents", json=intent(**body)).status_code in {400, 404, 422}
    assert walked > 100
    assert [one for one in opened if any(part in one for part in ("passwd", "..", "~root"))] == []
    assert door.lab.everything() == before
