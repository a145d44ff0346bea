"""agentmesh dlq: parked work is listed, shown, retried, replaced and discarded, one by one or all of one cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentmesh.state import rescue

Cli = Callable[..., Any]


@pytest.fixture
def parked(lab: Any) -> Callable[[], Any]:
    """parked() -> a trace whose one call took four workers with it."""

    def make() -> Any:
        trace = lab.open("work", payload={"n": 1})
        while (call := lab.calls(trace)[0])["status"] == "ready":
            claimed = lab.claim(call)
            rescue.give_back(lab.mesh.db, claimed.row | {"kind": "call", "worker_id": lab.hand.worker_id}, "lost")
        lab.bells.waiting.clear()
        lab.bells.ring([lab.ring(trace)])
        lab.drain()
        return trace

    return make


def letters(lab: Any) -> list[dict[str, Any]]:
    return lab.rows("SELECT * FROM mesh.dead_letters ORDER BY id")


def test_parked_work_is_listed_with_its_tool_and_trace(mesh_cli: Cli, lab: Any, parked: Any) -> None:
    trace = parked()
    ran = mesh_cli("dlq", "list")
    [cells] = [line.split("\t") for line in ran.out.splitlines()]
    assert cells[1:5] == ["E_POISON", "puppet", "work", str(trace.id)]


def test_an_empty_list_says_so(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("dlq", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "nothing is parked" in ran.err


def test_letters_are_grouped_by_their_cause(mesh_cli: Cli, lab: Any, parked: Any) -> None:
    parked(), parked()
    ran = mesh_cli("dlq", "list", "--group", "--json")
    [group] = ran.json["groups"]
    assert (group["fingerprint"], group["letters"]) == ("E_POISON:work", 2)


def test_a_letter_shows_its_evidence(mesh_cli: Cli, lab: Any, parked: Any) -> None:
    trace = parked()
    ran = mesh_cli("dlq", "show", letters(lab)[0]["id"], "--json")
    assert ran.json["trace_id"] == str(trace.id)
    assert len(ran.json["evidence"]["attempts"]) == 4
    assert f"dlq retry {letters(lab)[0]['id']}" in mesh_cli("dlq", "show", letters(lab)[0]["id"]).err


def test_a_retried_letter_leaves_the_list_and_its_trace_goes_on(mesh_cli: Cli, lab: Any, parked: Any) -> None:
    trace = parked()
    ran = mesh_cli("dlq", "retry", letters(lab)[0]["id"], "--json")
    assert ran.json["done"] == [{"letter": str(letters(lab)[0]["id"]), "trace": str(trace.id)}]
    assert lab.trace(trace)["status"] == "running"
    assert letters(lab)[0]["settled_as"] == "retried"
    assert mesh_cli("dlq", "list").out == ""


def test_a_letter_with_another_payload_is_replaced_by_a_new_trace_once(mesh_cli: Cli, lab: Any, parked: Any) -> None:
    trace = parked()
    letter = letters(lab)[0]["id"]
    ran = mesh_cli("dlq", "retry", letter, "--data", '{"do": []}', "--json")
    made = ran.json["done"][0]["trace"]
    assert made != str(trace.id)
    assert lab.trace(trace)["status"] == "failed"
    assert lab.rows("SELECT payload FROM mesh.traces WHERE id = %(id)s", id=made) == [{"payload": {"do": []}}]
    assert letters(lab)[0]["settled_as"] == "replaced"
    assert mesh_cli("dlq", "retry", letter, "--data", '{"do": []}', "--json").problem["code"] == "E_LETTER_UNKNOWN"


def test_all_of_one_cause_are_discarded_after_a_yes(mesh_cli: Cli, lab: Any, parked: Any) -> None:
    parked(), parked()
    asked = mesh_cli("dlq", "discard", "--fingerprint", "E_POISON:work", "--json")
    assert (asked.code, asked.problem["expected"]) == (4, "--yes")
    assert [one["settled_as"] for one in letters(lab)] == [None, None]
    ran = mesh_cli("dlq", "discard", "--fingerprint", "E_POISON:work", "--yes", "--json")
    assert len(ran.json["done"]) == 2
    assert [one["settled_as"] for one in letters(lab)] == ["discarded", "discarded"]


@pytest.mark.parametrize("given", [(), ("nonsense",), ("01a1fe43-f150-7000-96b5-b0a9df9ce0ef",)])
def test_letters_that_are_not_there_are_an_error_of_their_own(mesh_cli: Cli, lab: Any, given: tuple[str, ...]) -> None:
    ran = mesh_cli("dlq", "discard", *given, "--json")
    assert (ran.code, ran.problem["code"]) == ((3, "E_LETTER_UNKNOWN") if given else (2, "E_USAGE"))
