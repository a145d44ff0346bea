"""F27: pause, resume, cancel, retry, fork, signal, a timer and the holder, two at once, come to one of the serial orders.

The trace waits for a signal whose time is over, has a result that its holder is to take, or has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentmesh.errors import MeshError
from agentmesh.execution.tools import register_tool
from agentmesh.state import retry, signals, steering
from tests.serial import Actor, comes_to_a_serial_order

FAULTY = pytest.mark.faults
ME = {"tenant": "default", "by": "ada"}
CHAIN = {"chain": "c", "steps": [
    {"id": "work", "tools": [{"tool": "work", "args": {"fail": {"=": "payload.fail"}}}]},
    {"id": "go", "signal": "go", "within": "100s", "on_timeout": "late"}, {"finish": "heard"},
    {"id": "late", "finish": "late"},
]}  # fmt: skip
FORKS = "SELECT count(*) AS n FROM mesh.traces WHERE context_id LIKE 'c-1.fork%%' AND created_at >= %(at)s"


def told(order: Callable[..., Any]) -> Actor:
    """The order as an actor: what it was told counts, a refusal too."""

    def act(lab: Any, trace: Any, _: Any) -> Any:
        try:
            return order(lab.mesh.db, trace_id=trace.id, **ME)
        except MeshError:
            return None

    return act


def fork(lab: Any, trace: Any, _: Any) -> Any:
    try:
        return lab.mesh.forks.fork(trace.id, 1, by="ada")
    except MeshError:
        return None


def signal(lab: Any, trace: Any, _: Any) -> Any:
    try:
        return signals.send(lab.mesh.db, trace_id=trace.id, name="go", **ME)
    except MeshError:
        return None


def timer(lab: Any, _trace: Any, _: Any) -> None:
    for row in signals.due(lab.mesh.db, batch=10):
        signals.wake(lab.mesh.db, row)


def finish(lab: Any, _: Any, ring: Any) -> Any:
    return lab.mesh.controller.run_once(ring)


ACTORS: dict[str, Actor] = {
    "pause": told(steering.pause), "resume": told(steering.resume), "cancel": told(steering.cancel),
    "retry": told(retry.retry), "fork": fork, "signal": signal, "timer": timer, "finish": finish,
}  # fmt: skip
PAIRS = [(a, b) for n, a in enumerate(ACTORS) for b in list(ACTORS)[n:]]


@pytest.fixture
def lab(make_lab: Any, tools: Any) -> Any:
    @register_tool("work", registry=tools, attempts=1)
    def work(fail: bool = False) -> int:
        if fail:
            raise ValueError("told to")
        return 1

    return make_lab(chain=CHAIN)


def joined(lab: Any, *, fails: bool = False) -> tuple[Any, Any]:
    """Its only call has ended, and this is the ring by which its holder goes on."""
    lab.bells.waiting.clear()  # of what others have begun
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"fail": fails})
    lab.answer()
    lab.bells.waiting.clear()
    settled = lab.settle(lab.claim(lab.calls(trace)[0]), "failed" if fails else "won", result=1)
    return trace, settled.rings[-1]


def failed(lab: Any) -> tuple[Any, Any]:
    trace, ring = joined(lab, fails=True)
    lab.mesh.controller.run_once(ring)
    return trace, ring


def waiting(lab: Any) -> tuple[Any, Any]:
    """It waits for a signal, and has done so for too long; this is the ring of whoever hears it."""
    trace, ring = joined(lab)
    lab.mesh.controller.run_once(ring)
    lab.rows("UPDATE mesh.steps SET wake_at = mesh.mesh_now() - interval '1 s' WHERE status = 'waiting'")
    lab.bells.waiting.clear()
    return trace, lab.ring(trace)


STATES = {"waiting": waiting, "joined": joined, "failed": failed}


def every() -> list[Any]:
    """While it waits, all pairs with one that test_steering.py has not; with `make faults` all pairs in every state."""
    return [
        pytest.param(state, pair, id="-".join((state, *pair)), marks=() if new and state == "waiting" else FAULTY)
        for state in STATES
        for pair in PAIRS
        for new in [bool({"fork", "signal", "timer"} & set(pair))]
    ]


def seen(lab: Any, trace: Any) -> tuple[Any, ...]:
    row = lab.trace(trace)
    return (
        row["status"], row["paused_at"] is not None, [(one["kind"], one["status"]) for one in lab.steps(trace)],
        [one["status"] for one in lab.calls(trace)], lab.events(trace),
        len(lab.rows("SELECT 1 FROM mesh.signals WHERE trace_id = %(id)s", id=trace.id)),
        lab.rows(FORKS, at=row["created_at"]),
    )  # fmt: skip


@pytest.mark.parametrize(("state", "pair"), every())
def test_f27_two_at_once_come_to_one_of_the_two_serial_orders(lab: Any, state: str, pair: tuple[str, str]) -> None:
    comes_to_a_serial_order(lab, STATES[state], ACTORS, pair, seen)
