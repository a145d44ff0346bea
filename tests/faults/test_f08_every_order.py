"""F08 and F27 for what people and other systems order: the n-th round trip of an order is lost, for n = 1, 2, 3 … until
one passes untouched. Whoever gave it was told nothing, gives it once more, and it counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from agentmesh.errors import MeshError
from agentmesh.execution.tools import register_tool
from agentmesh.infrastructure import faults
from agentmesh.state import retry, rewind, steering
from agentmesh.testing import broken
from tests.faults import byhand
from tests.faults.byhand import AWAY, failing

MOST = 60
ME = {"tenant": "default", "by": "ann"}
CHAIN = {"chain": "c", "steps": [
    {"id": "book", "tools": [{"tool": "book", "args": {"n": 1}}]}, {"id": "risk", "tools": ["frail"]},
    {"id": "go", "signal": "go"}, {"id": "ask", "approval": "shall it?"}, {"finish": {"=": "result.by"}},
]}  # fmt: skip


@pytest.fixture
def lab(make_lab: Any, tools: Any) -> Any:
    """A chain that books, may fail, waits for a signal, asks a person; `ran` counts what its tools did by their keys."""
    ran: Counter[tuple[str, str, int]] = Counter()

    @register_tool("book", registry=tools, attempts=1, compensate="unbook")
    def book(ctx: Any, n: int) -> int:
        ran["book", ctx.idempotency_key, ctx.attempt] += 1
        return n

    @register_tool("unbook", registry=tools, attempts=1)
    def unbook(ctx: Any, args: dict[str, Any], result: int) -> None:
        ran["unbook", ctx.idempotency_key, ctx.attempt] += 1

    @register_tool("frail", registry=tools, attempts=1)
    def frail(ctx: Any) -> int:
        ran["frail", ctx.idempotency_key, ctx.attempt] += 1
        if made.frail:
            raise ValueError("told to")
        return 1

    made = make_lab(chain=CHAIN)
    made.ran, made.frail = ran, False
    return made


@dataclass(frozen=True)
class Order:
    """What is ordered, of a trace in which state, and what must be true afterwards."""

    give: Callable[[Any, Any], Any]
    status: str
    events: dict[str, int]
    state: str = "go"
    runs: tuple[int, int] = (1, 0)  # of book, of unbook
    traces: int = 1


ORDERS = {
    "pause": Order(lambda lab, t: steering.pause(lab.mesh.db, trace_id=t.id, **ME), "waiting", {"EXEC_PAUSE": 1}),
    "resume": Order(
        lambda lab, t: steering.resume(lab.mesh.db, trace_id=t.id, **ME), "waiting", {"EXEC_RESUME": 1}, state="paused"
    ),
    "cancel": Order(
        lambda lab, t: steering.cancel(lab.mesh.db, trace_id=t.id, tree=True, **ME), "cancelled", {"EXEC_CANCEL": 1}
    ),
    "signal": Order(
        lambda lab, t: lab.mesh.people.signal(t.id, "go", by="ann", key="k"), "waiting", {"EXEC_SIGNAL": 1}
    ),
    "approve": Order(lambda lab, t: lab.mesh.people.decide(t.id, by="ann"), "done", {"EXEC_DONE": 1}, state="ask"),
    "retry": Order(
        lambda lab, t: retry.retry(lab.mesh.db, trace_id=t.id, **ME), "waiting", {"EXEC_RESUME": 1}, state="failed"
    ),
    "undo": Order(
        lambda lab, t: rewind.undo(lab.mesh.db, trace_id=t.id, **ME), "cancelled", {"EXEC_CANCEL": 1}, runs=(1, 1)
    ),
    "rewind": Order(
        lambda lab, t: rewind.rewind(lab.mesh.db, trace_id=t.id, ordinal=2, **ME),
        "waiting",
        {"EXEC_ROLLBACK": 1},
        runs=(2, 1),
    ),
    "fork": Order(
        lambda lab, t: lab.mesh.forks.fork(t.id, 2, by="ann"), "waiting", {"EXEC_START": 1}, runs=(2, 0), traces=2
    ),
}


def begin(lab: Any, state: str) -> Any:
    """A trace that has come so far."""
    lab.frail = state == "failed"
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    lab.drain()
    lab.frail = False
    if state == "ask":
        lab.mesh.people.signal(trace.id, "go", by="ann")
        lab.drain()
    if state == "paused":
        steering.pause(lab.mesh.db, trace_id=trace.id, **ME)
    assert trace.status() == ("failed" if state == "failed" else "waiting")
    return trace


def ordered(lab: Any, order: Order, nth: int, fate: str) -> int:
    """How often the n-th round trip was lost; whoever is told of it gives the order again."""
    trace = begin(lab, order.state)
    with failing(nth, faults.ACTIONS[fate]) as fault:
        try:
            order.give(lab, trace)
        except AWAY:
            with suppress(MeshError):  # it was heard before
                order.give(lab, trace)
    for _ in range(4):
        with suppress(*AWAY):  # the next who is given a connection that had ended at its ROLLBACK
            lab.drain()
            byhand.recover(lab)
    counted = Counter(lab.events(trace))
    assert trace.status() == order.status, nth
    assert {name: counted[name] for name in order.events} == order.events, nth
    assert lab.rows("SELECT count(*) AS n FROM mesh.traces")[0]["n"] == order.traces, nth
    assert max(lab.ran.values()) == 1, "an attempt ran twice"
    did = Counter(name for name, _, _ in lab.ran)
    assert (did["book"], did["unbook"]) == order.runs, nth
    assert broken(lab.url) == {}, nth
    return fault.hits


QUICK = {("signal", "drop"), ("cancel", "commit_unknown")}


def every() -> list[Any]:
    pairs = [(name, fate) for name in ORDERS for fate in ("drop", "commit_unknown")]
    return [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.faults) for pair in pairs]


@pytest.mark.parametrize(("name", "fate"), every())
def test_f08_an_order_is_counted_once_whichever_round_trip_is_lost(lab: Any, name: str, fate: str) -> None:
    for nth in range(1, MOST):
        if not ordered(lab, ORDERS[name], nth, fate):
            assert nth > 2, "the order made no round trip"
            return
        byhand.forget(lab)
    raise AssertionError(f"still failing at round trip {MOST}")
