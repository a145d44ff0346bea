"""The router: what is checked before anything is handed on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agentmesh.behavior import router as module
from agentmesh.behavior.router import BIRRouter
from agentmesh.errors import (
    BadJson,
    BadName,
    BadPayload,
    BadPermission,
    BadPolicy,
    MeshError,
    Mistake,
    PayloadTooLarge,
)
from agentmesh.records import Intent, PolicyPatch

SEED: dict[str, Any] = {
    "intent": "generate_report",
    "from_id": "user",
    "to_id": "report_agent",
    "context_id": "session-001",
    "payload": {"date": "2025-04-25", "project": "AlphaX"},
}


class Kept:
    """A client that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[Intent, Any]] = []

    def send(self, intent: Intent, *, session: Any = None) -> str:
        self.sent.append((intent, session))
        return f"trace-{len(self.sent)}"

    def send_many(self, intents: Sequence[Intent], *, session: Any = None) -> list[str]:
        return [self.send(one, session=session) for one in intents]


def sent(**changes: Any) -> Intent:
    client = Kept()
    BIRRouter(acp_client=client).dispatch(**{**SEED, **changes})
    return client.sent[0][0]


def test_an_intent_is_handed_on_as_a_value() -> None:
    client, session = Kept(), object()

    handle = BIRRouter(acp_client=client, trace_writer=None).dispatch(**SEED, session=session)

    assert handle == "trace-1"
    assert client.sent == [(Intent(**SEED), session)]


def test_options_are_part_of_the_value() -> None:
    made = sent(
        permissions=["b:x", "a:x", "a:x"],
        idempotency_key="k-1",
        policy={"max_steps": 3, "callbacks": ["tell"]},
        delay=2,
        priority=9,
        locale="de-DE",
    )
    assert made.permissions == ("a:x", "b:x")
    assert made.policy == PolicyPatch(max_steps=3, callbacks=("tell",))
    assert (made.idempotency_key, made.delay_s, made.priority, made.locale) == (
        "k-1",
        2.0,
        9,
        "de-DE",
    )


def test_no_permissions_asked_for_is_not_none_asked_for() -> None:
    assert (sent().permissions, sent(permissions=[]).permissions) == (None, ())


def test_no_delay_is_at_once() -> None:
    assert (sent(delay=None).delay_s, sent(delay=0).delay_s, sent().priority) == (None, None, 5)


def test_the_payload_is_a_copy() -> None:
    payload = {"rows": [1]}
    made = sent(payload=payload)
    payload["rows"].append(2)
    assert made.payload == {"rows": [1]}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"to_id": "Report Agent"}, BadName),
        ({"to_id": "a.b"}, BadName),
        ({"to_id": "x" * 65}, BadName),
        ({"to_id": None}, BadName),
        ({"intent": "do\nthis"}, BadName),
        ({"intent": ""}, BadName),
        ({"intent": 5}, BadName),
        ({"from_id": "../etc"}, BadName),
        ({"from_id": ""}, BadName),
        ({"context_id": "a b"}, BadName),
        ({"context_id": "x" * 129}, BadName),
        ({"payload": [1]}, BadPayload),
        ({"payload": None}, BadPayload),
        ({"payload": "{}"}, BadPayload),
        ({"payload": {"x": float("nan")}}, BadJson),
        ({"payload": {"x": float("inf")}}, BadJson),
        ({"payload": {"x": 10**400}}, BadJson),
        ({"payload": {"x": "\ud800"}}, BadJson),
        ({"payload": {"x": "\x00"}}, BadJson),
        ({"payload": {"x": object()}}, BadJson),
        ({"payload": {1: 2}}, BadJson),
        ({"permissions": ["db:*"]}, BadPermission),
        ({"permissions": ["DB:READ"]}, BadPermission),
        ({"permissions": [""]}, BadPermission),
        ({"permissions": [None]}, BadPermission),
        ({"permissions": [f"a:x{n}" for n in range(65)]}, BadPermission),
        ({"policy": {"max_stepz": 1}}, BadPolicy),
        ({"policy": {"max_steps": 0}}, BadPolicy),
        ({"policy": {"max_steps": "3"}}, BadPolicy),
        ({"idempotency_key": ""}, Mistake),
        ({"idempotency_key": "a b"}, Mistake),
        ({"idempotency_key": "x" * 256}, Mistake),
        ({"delay": -1}, Mistake),
        ({"delay": float("nan")}, Mistake),
        ({"priority": 10}, Mistake),
        ({"priority": True}, Mistake),
        ({"locale": "de\n"}, Mistake),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    changes: dict[str, Any], error: type[MeshError]
) -> None:
    client = Kept()
    with pytest.raises(error):
        BIRRouter(client).dispatch(**{**SEED, **changes})
    assert client.sent == []


def test_an_oversized_payload_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAYLOAD_BYTES", 100)
    with pytest.raises(PayloadTooLarge):
        sent(payload={"x": "é" * 50})


def test_many_are_handed_on_at_once_and_in_order() -> None:
    client = Kept()
    ready = Intent(**{**SEED, "payload": {"n": 1}})

    handles = BIRRouter(client).dispatch_many([{**SEED, "payload": {"n": 0}}, ready], session="s")

    assert handles == ["trace-1", "trace-2"]
    assert [(one.payload["n"], session) for one, session in client.sent] == [(0, "s"), (1, "s")]


def test_one_bad_intent_among_many_stops_all_and_is_named() -> None:
    client = Kept()
    with pytest.raises(BadName, match="intent 1: "):
        BIRRouter(client).dispatch_many([SEED, {**SEED, "to_id": "?"}])
    assert client.sent == []


def test_an_argument_dispatch_does_not_have_is_named() -> None:
    with pytest.raises(Mistake, match=r"intent 0: .*pyload"):
        BIRRouter(Kept()).dispatch_many([{**SEED, "pyload": {}}])


def test_none_at_all_is_nothing_to_do() -> None:
    assert BIRRouter(Kept()).dispatch_many([]) == []
