"""A late answer over HTTP: the URL is the credential, good for one call and one answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from agentmesh.execution.tools import ToolContext, ToolRegistry, register_tool
from agentmesh.records import Later, new_id
from tests.console.doors import Door, problem


@pytest.fixture
def waiting(
    make_door: Callable[..., Door], tools: ToolRegistry, monkeypatch: pytest.MonkeyPatch
) -> tuple[Door, Any, str, UUID]:
    """A gateway, a trace whose call waits for a number, where that is to be posted, and the call."""
    monkeypatch.setenv("AGENTMESH_SECRET_CALLBACKS", "a-secret-of-the-mesh")
    told: list[str] = []

    @register_tool("work", registry=tools)
    def work(ctx: ToolContext) -> int | Later:
        told.append(ctx.callback_url)
        return Later()

    door = make_door(gateway__url="https://mesh.example/here/")
    trace = door.lab.start({"tools": ["work"]})
    door.lab.drain()
    assert told[0].startswith("https://mesh.example/here/v1/callbacks/")
    return door, trace, told[0].removeprefix("https://mesh.example/here"), door.lab.calls(trace)[0]["id"]


def test_the_answer_of_a_waiting_call_is_posted_to_its_url(waiting: Any) -> None:
    door, trace, path, call = waiting
    stranger = door.stranger()
    problem(stranger.post(path, json={"result": "five"}), 422, "E_RESULT")
    said = stranger.post(path, json={"result": 5})
    assert (said.status_code, said.json()) == (200, {"id": str(call), "status": "done"})
    door.lab.drain()
    assert trace.result(1) == 5
    problem(stranger.post(path, json={"result": 6}), 409, "E_CALL_ENDED")


def test_a_waiting_call_may_be_told_that_it_failed(waiting: Any) -> None:
    door, trace, path, _ = waiting
    assert door.stranger().post(path, json={"failed": "sold out"}).json()["status"] == "failed"
    door.lab.drain()
    assert (trace.status(), door.lab.calls(trace)[0]["error"]["message"]) == ("failed", "sold out")


@pytest.mark.parametrize("body", [{}, {"result": 1, "failed": "x"}, {"failed": ""}, {"failed": None}, [], {"value": 1}])
def test_an_answer_is_a_result_or_a_failure(waiting: Any, body: Any) -> None:
    door, trace, path, _ = waiting
    assert door.stranger().post(path, json=body).status_code == 422
    assert door.lab.calls(trace)[0]["status"] == "running"


def test_s40_a_callback_that_is_not_ours_is_refused_whatever_it_says(waiting: Any) -> None:
    door, trace, path, _ = waiting
    name, _, seal = path.rpartition("/")[2].partition(".")
    for token in (f"{name}.{seal[:-1]}", name, f"{new_id().hex}.{seal}", "x"):
        problem(door.stranger().post(f"/v1/callbacks/{token}", json={"result": 5}), 401, "E_UNAUTHENTICATED")
    assert door.lab.calls(trace)[0]["status"] == "running"
