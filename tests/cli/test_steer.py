"""agentmesh pause, resume, cancel, retry: who did it stands in the events, and too late is said so."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import Any

Cli = Callable[..., Any]


def test_a_trace_is_paused_and_resumed_by_whoever_is_logged_in(mesh_cli: Cli, lab: Any) -> None:
    trace = lab.start({"answer": 1})
    assert "is paused" in mesh_cli("pause", trace.id, "--reason", "look first").err
    assert "was paused already" in mesh_cli("pause", trace.id).err
    ran = mesh_cli("resume", trace.id, "--json")
    assert (ran.json["changed"], ran.json["status"], ran.json["paused"]) == (True, "queued", False)
    [pause] = lab.rows("SELECT body FROM mesh.events WHERE name = 'EXEC_PAUSE'")
    assert pause["body"] == {"by": getpass.getuser(), "reason": "look first"}


def test_a_cancelled_trace_stays_cancelled_and_twice_is_once(mesh_cli: Cli, lab: Any) -> None:
    trace = lab.open("work")
    assert mesh_cli("cancel", "@last").code == 0
    assert lab.trace(trace)["status"] == "cancelled"
    again = mesh_cli("cancel", trace.id, "--tree")
    assert (again.code, again.err.strip()) == (0, f"{trace.id} was cancelled already")


def test_an_order_that_comes_too_late_exits_4_and_says_what_the_trace_is(mesh_cli: Cli, lab: Any) -> None:
    trace = lab.start({"answer": 1})
    lab.drain()
    for verb in ("pause", "resume", "cancel"):
        ran = mesh_cli(verb, trace.id)
        assert (ran.code, ran.err.strip()) == (4, f"too late: {trace.id} is done")


def test_a_failed_trace_is_retried_and_others_are_not(mesh_cli: Cli, lab: Any) -> None:
    trace = lab.open("boom")
    lab.drain()
    assert mesh_cli("retry", trace.id).code == 0
    assert lab.trace(trace)["status"] == "running"
    assert mesh_cli("retry", trace.id, "--json").problem["code"] == "E_NOT_RETRYABLE"
