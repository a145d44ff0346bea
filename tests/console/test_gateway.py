"""Intents over HTTP: accepted once, in order, and told truly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agentmesh.behavior.router import make_intent
from agentmesh.communication.envelope import Command, Context, Envelope, Meta, sign
from agentmesh.communication.keys import SigningKey, new_key
from agentmesh.records import new_id
from agentmesh.testing import race
from agentmesh.wiring import now_s
from tests.console.doors import Door, envelope, intent, problem

JOSE = {"content-type": "application/jose"}
MIB = 1024 * 1024


def producer(door: Door, path: Path, *grants: str, owner: str = "till", tenant: str = "default") -> SigningKey:
    """A registered producer, whose private half the mesh does not have."""
    key = new_key(path / f"{owner}-{tenant}.pem", tenant=tenant)
    door.mesh.key_table.register(kid=key.kid, tenant_id=tenant, owner=owner, public=key.public, grants=grants or ["*"])
    return key


def signed(key: SigningKey, payload: dict[str, Any] | None = None, **changes: Any) -> str:
    """What a producer posts."""
    now = changes.pop("now_s", None) or now_s()
    trace_id = changes.pop("trace_id", None) or new_id()
    made = Envelope(
        meta=Meta(trace_id=trace_id, timestamp=now, from_="till", to=changes.pop("to", "puppet")),
        context=Context(context_id="c-1", permissions=changes.pop("permissions", None)),
        command=Command(intent="work", payload=payload or {}),
    )  # fmt: skip
    return sign(made, key, aud=changes.pop("aud", "mesh/gateway"), jti=new_id(), now_s=now, **changes)


def test_an_intent_posted_with_a_token_runs_and_is_read_back(door: Door) -> None:
    shop = door.client()
    made = shop.post("/v1/intents", json=intent({"do": [{"tools": [{"tool": "work", "args": {"n": 1}}]}]}))
    assert made.status_code == 201, made.text
    url = made.headers["location"]
    assert made.json() == {"id": url.rpartition("/")[2], "status": "queued", "url": url}
    assert shop.get(url).json()["status"] == "queued"
    door.lab.drain()
    shown = shop.get(url).json()
    assert (shown["status"], shown["result"]) == ("done", 2)


def test_a_producers_signature_is_kept_and_its_trace_is_rung_by_its_id_alone(door: Door, tmp_path: Path) -> None:
    key = producer(door, tmp_path)
    trace_id = new_id()
    token = signed(key, {"n": 1}, trace_id=trace_id)
    made = door.stranger(**JOSE).post("/agent/puppet", content=token)
    assert (made.status_code, made.json()["id"]) == (201, str(trace_id))
    row = door.lab.rows("SELECT kid, jws FROM mesh.envelopes WHERE trace_id = %(id)s", id=trace_id)[0]
    assert row == {"kid": key.kid, "jws": token}
    assert [(ring.id, ring.envelope) for ring in door.bells.waiting] == [(trace_id, None)]
    door.lab.drain()
    assert door.mesh.trace(trace_id).status() == "done"


def test_s04_a_signed_envelope_posted_again_is_the_first_trace(door: Door, tmp_path: Path) -> None:
    key, poster, trace_id = producer(door, tmp_path), door.stranger(**JOSE), new_id()
    token = signed(key, {"n": 1}, trace_id=trace_id)
    answers = race(*[lambda: poster.post("/agent/puppet", content=token)] * 8)
    assert sorted(one.status_code for one in answers) == [200] * 7 + [201]  # type: ignore[union-attr]
    again = poster.post("/agent/puppet", content=signed(key, {"n": 1}, trace_id=trace_id))  # signed anew by a retry
    assert (again.status_code, again.json()["id"]) == (200, str(trace_id))
    problem(
        poster.post("/agent/puppet", content=signed(key, {"n": 2}, trace_id=trace_id)), 409, "E_IDEMPOTENCY_CONFLICT"
    )
    assert door.count("traces") == 1
    assert len(door.bells.waiting) == 1


def test_a_trace_id_of_another_tenant_is_not_taken_over(door: Door) -> None:
    mine, theirs = door.client(), door.client(tenant="acme")
    said = envelope({"n": 1})
    assert mine.post("/agent/puppet", json=said).status_code == 201
    problem(theirs.post("/agent/puppet", json=said), 409, "E_TRACE_TAKEN")
    assert door.count("traces") == 1


def test_plain_json_is_signed_by_the_gateway_for_the_agents_queue(door: Door) -> None:
    said = envelope({"n": 1})
    assert door.client().post("/agent/puppet", json=said).json()["id"] == said["meta"]["trace_id"]
    row = door.lab.rows("SELECT kid FROM mesh.envelopes")[0]
    assert row["kid"] == door.mesh.key.kid
    door.lab.drain()  # which verifies what the ring carries
    assert door.mesh.trace(UUID(said["meta"]["trace_id"])).status() == "done"


def test_an_auth_token_in_an_envelope_is_never_stored(door: Door) -> None:
    said = envelope()
    said["context"]["auth_token"] = "canary-91"
    assert door.client().post("/agent/puppet", json=said).status_code == 201
    rows = [
        str(row) for table in ("envelopes", "traces", "events") for row in door.lab.rows(f"SELECT * FROM mesh.{table}")
    ]
    assert not any("canary-91" in row for row in rows)


def test_s12_an_intent_gets_no_more_than_its_sender_may_give(door: Door, tmp_path: Path) -> None:
    for grants, granted in ((["data:read"], ["data:read"]), (["mail:send"], [])):
        made = door.client(*grants, owner=grants[0]).post("/v1/intents", json=intent())
        shown = door.client().get(made.headers["location"]).json()
        assert shown["permissions"] == granted
    key = producer(door, tmp_path, "mail:send")
    made = door.stranger(**JOSE).post("/agent/puppet", content=signed(key, permissions=("data:read",)))
    assert door.client().get(made.json()["url"]).json()["permissions"] == []


@pytest.mark.parametrize("door_of", ["/v1/intents", "/agent/puppet"])
def test_the_same_idempotency_key_is_the_same_trace(door: Door, door_of: str) -> None:
    shop, said = door.client(), envelope if door_of.startswith("/agent") else intent
    key = {"Idempotency-Key": "order-7"}
    first = shop.post(door_of, json=said({"n": 1}), headers=key)
    again = shop.post(door_of, json=said({"n": 1}), headers=key)
    other = shop.post(door_of, json=said({"secret": "canary-92"}), headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"] == again.headers["location"].rpartition("/")[2]
    problem(other, 409, "E_IDEMPOTENCY_CONFLICT")
    assert door.count("traces") == 1


def test_s25_a_key_is_another_one_in_another_tenant_and_tells_no_payload(door: Door) -> None:
    key = {"Idempotency-Key": "order-7"}
    mine, theirs = door.client(), door.client(tenant="acme")
    first = mine.post("/v1/intents", json=intent({"secret": "canary-93"}), headers=key)
    other = theirs.post("/v1/intents", json=intent({"n": 2}), headers=key)
    assert (first.status_code, other.status_code) == (201, 201)
    assert first.json()["id"] != other.json()["id"]
    late = mine.post("/v1/intents", json=intent({"n": 3}), headers=key)
    assert "canary-93" not in problem(late, 409, "E_IDEMPOTENCY_CONFLICT")["detail"] + late.text
    said = envelope()
    signed_key = {"Idempotency-Key": f"envelope {said['meta']['trace_id']}"}  # the key an envelope is known by
    problem(mine.post("/v1/intents", json=intent(), headers=signed_key), 422, "E_REQUEST")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/intents", intent(to="nobody"), 404, "E_AGENT_UNKNOWN"),
        ("/agent/nobody", envelope(to="nobody"), 404, "E_AGENT_UNKNOWN"),
        ("/agent/other", envelope(), 409, "E_REQUEST"),
        ("/agent/No%20Body", envelope(), 404, "E_PAGE_UNKNOWN"),
        ("/v1/intents", intent(to="No Body"), 422, "E_REQUEST"),
        ("/v1/intents", intent(surplus=1), 422, "E_REQUEST"),
        ("/v1/intents", intent(permissions=["data:*"]), 422, "E_REQUEST"),
        ("/v1/intents", intent(policy={"max_steps": "many"}), 422, "E_REQUEST"),
        ("/v1/intents", intent({"$blob": "00"}), 422, "E_PAYLOAD"),
        ("/v1/intents", [], 422, "E_REQUEST"),
        ("/v1/nonesuch", {}, 404, "E_PAGE_UNKNOWN"),
        ("/v1/traces", {}, 405, "E_REQUEST"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_told_in_parts(door: Door, path: str, body: Any, status: int, code: str) -> None:
    problem(door.client().post(path, json=body), status, code)
    assert door.count("traces") == 0


def test_faults_are_told_by_json_pointers(door: Door) -> None:
    said = intent(["a list"], priority=11, **{"from": 7})  # type: ignore[arg-type]
    told = problem(door.client().post("/v1/intents", json=said), 422, "E_REQUEST")
    assert {one["pointer"] for one in told["errors"]} == {"#/from", "#/priority", "#/payload"}


@pytest.mark.parametrize(
    "text", ['{"to":', '{"a":1,"a":2}', '{"a":NaN}', '{"a":1e999}', "[" * 100_000, '"\\ud800"', "\ufeff{}"]
)
def test_s27_json_that_is_not_strict_is_refused(door: Door, text: str) -> None:
    answer = door.client().post("/v1/intents", content=text, headers={"content-type": "application/json"})
    assert problem(answer, 400, answer.json()["code"])["code"].startswith("E_JSON")


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"content-type": "text/plain"}, 415), ({"content-encoding": "gzip"}, 415), ({"content-type": ""}, 415)],
)
def test_s32_s43_a_body_of_another_type_or_encoding_is_refused(
    door: Door, headers: dict[str, str], status: int
) -> None:
    given = {"content-type": "application/json"} | headers
    problem(door.client().post("/v1/intents", content=json.dumps(intent()), headers=given), status, "E_REQUEST")


def sized(size: int) -> bytes:
    """An intent of exactly so many bytes."""
    bare = len(json.dumps(intent({"text": ""})).encode())
    return json.dumps(intent({"text": "x" * (size - bare)})).encode()


def test_f17_a_request_of_a_mebibyte_is_taken_and_one_byte_more_is_not(door: Door) -> None:
    shop = door.client()
    headers = {"content-type": "application/json"}
    assert shop.post("/v1/intents", content=sized(MIB), headers=headers).status_code == 201
    chunks = [sized(MIB + 1)[at : at + 65536] for at in range(0, MIB + 1, 65536)]
    for body in (sized(MIB + 1), iter(chunks)):  # with its length, and in chunks that do not tell it
        told = problem(shop.post("/v1/intents", content=body, headers=headers), 413, "E_PAYLOAD_TOO_LARGE")
        assert str(MIB) in told["expected"] + told["value"]
    assert door.count("traces") == 1


@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1])
def test_f17_by_value_and_by_reference_is_the_same_answer(door: Door, size: int) -> None:
    text = "x" * (size - 2)
    shop = door.client()
    made = shop.post("/v1/intents", json=intent({"do": [{"answer": text}]}))
    door.lab.drain()
    shown = shop.get(made.headers["location"]).json()
    assert shown["result"] == text
    assert shown["payload"] == {"do": [{"answer": text}]}


def test_an_intent_may_wait_and_go_first(door: Door) -> None:
    shop = door.client()
    shop.post("/v1/intents", json=intent(delay=60, priority=9))
    shop.post("/agent/puppet?delay=60&priority=9", json=envelope())
    rows = door.lab.rows("SELECT priority, wake_at > mesh.mesh_now() AS later FROM mesh.traces")
    assert rows == [{"priority": 9, "later": True}] * 2
    assert not door.bells.waiting


def test_health_is_told_to_strangers_and_figures_to_those_who_may(door: Door) -> None:
    stranger = door.stranger()
    assert stranger.get("/livez").json() == {"status": "alive"}
    assert stranger.get("/readyz").json() == {"status": "ready"}
    problem(door.client("traces:read").get("/metrics"), 403, "E_FORBIDDEN")
    shop = door.client()
    shop.post("/v1/intents", json=intent())
    page = shop.get("/metrics").text
    assert 'agentmesh_intents_accepted_total{agent="puppet"} 1.0' in page
    assert 'agentmesh_refused_total{reason="E_FORBIDDEN"} 1.0' in page
    assert 'agentmesh_ready{queue="agent.puppet"} 1.0' in page
    assert 'agentmesh_workers{state="alive"} 1.0' in page


def test_a_key_of_another_tenant_is_not_used_to_sign(door: Door) -> None:
    door.mesh.client_of("acme").send(make_intent("work", "shop", "puppet", "c-1", {}))
    kids = {row["kid"] for row in door.lab.rows("SELECT kid FROM mesh.envelopes WHERE tenant_id = 'acme'")}
    owners = door.lab.rows("SELECT tenant_id FROM mesh.keys WHERE kid = ANY(%(kids)s)", kids=list(kids))
    assert owners == [{"tenant_id": "acme"}]
