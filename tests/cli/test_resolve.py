"""agentmesh resolve: what became of a lost `once` call is said by a person, in one of three ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentmesh.records import new_id
from agentmesh.state import rescue

Cli = Callable[..., Any]


@pytest.fixture
def call(lab: Any) -> dict[str, Any]:
    """A call of effect `once` whose worker was lost, and its trace with it."""
    trace = lab.open("twice")
    claimed = lab.claim(lab.calls(trace)[0])
    rescue.give_back(lab.mesh.db, claimed.row | {"kind": "call", "worker_id": lab.hand.worker_id}, "lost")
    lab.bells.waiting.clear()
    lab.bells.ring([lab.ring(trace)])
    lab.drain()
    return lab.calls(trace)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("how", "to"), [
    (["--done", "7"], "done"), (["--failed"], "failed"), (["--again"], "again"),
])  # fmt: skip
def test_a_lost_call_is_resolved_once(mesh_cli: Cli, call: dict[str, Any], how: list[str], to: str) -> None:
    ran = mesh_cli("resolve", call["id"], *how, "--reason", "asked", "--json")
    assert (ran.code, ran.json["id"], ran.json["to"]) == (0, str(call["id"]), to)
    again = mesh_cli("resolve", call["id"], *how, "--json")
    assert (again.code, again.problem["code"]) == (4, "E_NOT_RESOLVABLE")


@pytest.mark.parametrize("how", [[], ["--failed", "--again"], ["--done", "no json"]])
def test_what_became_of_it_is_said_in_one_way(mesh_cli: Cli, call: dict[str, Any], how: list[str]) -> None:
    assert mesh_cli("resolve", call["id"], *how, "--json").code == 2


def test_a_call_that_nobody_knows_is_an_error_of_its_own(mesh_cli: Cli, call: dict[str, Any]) -> None:
    ran = mesh_cli("resolve", new_id(), "--failed", "--json")
    assert (ran.code, ran.problem["code"]) == (3, "E_CALL_UNKNOWN")
