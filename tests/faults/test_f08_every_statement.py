"""F08 and F29 in one process: the n-th statement of a whole trace fails, for n = 1, 2, 3 … until a run passes untouched.

After SQLite's out-of-memory and I/O-error tests. A statement is dropped before it is sent, loses the answer to its
commit, or is refused with a deadlock, a serialization failure or a lock time-out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from agentmesh import register_callback
from agentmesh.errors import DatabaseUnreachable
from agentmesh.execution.tools import register_tool
from agentmesh.infrastructure import faults
from agentmesh.records import Backoff
from agentmesh.testing import broken
from tests.faults import byhand
from tests.faults.byhand import AWAY, failing

MOST = 200
REFUSALS = [psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable]


def take_all_turns(_: Any, session: Any) -> dict[str, Any]:
    return {"verdict": "continue" if session.iteration < len(session.payload["do"]) - 1 else "finish"}


@pytest.fixture
def lab(make_lab: Any, tools: Any) -> Iterator[Any]:
    """A puppet with a tool on a queue, one inline and one in our own transaction; `lab.ran` counts its runs."""
    ran: Counter[tuple[str, str, int]] = Counter()

    @register_tool("leaf", registry=tools)
    def leaf(ctx: Any, n: int) -> int:
        ran["leaf", ctx.idempotency_key, ctx.attempt] += 1
        return n

    @register_tool("near", registry=tools, inline=True)
    def near(ctx: Any, n: int) -> int:
        ran["near", ctx.idempotency_key, ctx.attempt] += 1
        return n

    @register_tool("booked", registry=tools, tx=True, backoff=Backoff(base_s=0, cap_s=0))
    def booked(ctx: Any, n: int) -> int:
        ran["booked", ctx.idempotency_key, ctx.attempt] += 1
        ctx.tx.exec_driver_sql("INSERT INTO booked VALUES (%(key)s)", {"key": ctx.idempotency_key})
        return n

    register_callback("take_all_turns")(take_all_turns)  # here: other tests forget every callback when they end
    made = make_lab(policy={"callbacks": ["take_all_turns"]})
    made.ran = ran
    made.rows("DROP TABLE IF EXISTS booked")
    made.rows("CREATE TABLE booked (key text)")
    yield made
    made.rows("DROP TABLE booked")


PAIR = [{"tool": "leaf", "args": {"n": n}, "as": f"l{n}"} for n in (1, 2)]
TURNS = [
    {"tools": PAIR, "strategy": "parallel"},
    {"tools": [{"tool": "near", "args": {"n": 3}}, {"tool": "near", "args": {"n": 4}}]},
    {"tools": [{"tool": "booked", "args": {"n": 5}}]},
]


def once(lab: Any, nth: int, fail: Callable[[], None], *, statements: bool) -> bool:
    """One trace from its dispatch to its end with the n-th statement failing; False when there was no n-th one."""
    key = f"{nth}-{fail.__name__}"
    with failing(nth, fail, statements=statements) as fault:
        trace = None
        for _ in range(3):  # a producer that was told no, or that nobody knows, tries again under its key
            try:
                trace = lab.start(*TURNS, idempotency_key=key)
                break
            except AWAY:
                continue
        assert trace is not None
        status = byhand.work(lab, trace)
    assert status == "done", (nth, lab.trace(trace)["error"])
    assert lab.trace(trace)["result"] is not None
    assert lab.rows("SELECT count(*) AS n FROM mesh.traces")[0]["n"] == 1, nth
    assert broken(lab.url) == {}, nth
    calls = Counter(call["status"] for call in lab.calls(trace))
    assert calls == {"done": 5}, nth
    assert lab.rows("SELECT count(*) AS n, count(DISTINCT key) AS keys FROM booked") == [{"n": 1, "keys": 1}], nth
    assert max(lab.ran.values()) == 1, "an attempt ran twice"
    keys = Counter(key for _, key, _ in lab.ran)
    assert len(keys) == 5
    assert sum(keys.values()) <= 6, "one lost statement cost more than one more run"
    return fault.hits > 0


def until_untouched(lab: Any, fail: Callable[[], None], *, statements: bool = False) -> int:
    """How many statements a trace has, each of which failed once."""
    for nth in range(1, MOST):
        if not once(lab, nth, fail, statements=statements):
            return nth - 1
        byhand.forget(lab)
        lab.rows("DELETE FROM booked")
    raise AssertionError(f"still failing at statement {MOST}")


@pytest.mark.parametrize("fate", [pytest.param("drop", marks=pytest.mark.faults), "commit_unknown"])
def test_f08_a_trace_survives_the_loss_of_any_one_statement(lab: Any, fate: str) -> None:
    count = until_untouched(lab, faults.ACTIONS[fate])
    assert count > 15


@pytest.mark.faults
@pytest.mark.parametrize("refusal", REFUSALS)
def test_f29_a_trace_survives_a_refusal_of_any_one_statement(lab: Any, refusal: type[psycopg.Error]) -> None:
    def fail() -> None:
        raise refusal("injected")

    count = until_untouched(lab, fail, statements=True)
    assert count > 15


@pytest.mark.parametrize("refusal", REFUSALS)
def test_f29_a_dispatch_that_is_refused_once_is_tried_again(lab: Any, refusal: type[psycopg.Error]) -> None:
    def fail() -> None:
        raise refusal("injected")

    lab.start(*TURNS)  # keys and agents are known from here on
    with failing(1, fail) as fault:
        lab.start(*TURNS)
    assert fault.hits == 1
    assert lab.rows("SELECT count(*) AS n FROM mesh.traces")[0]["n"] == 2


def test_f29_a_dispatch_that_is_refused_for_good_says_so_by_name_and_leaves_nothing(lab: Any) -> None:
    lab.start(*TURNS)

    def refuse() -> None:
        raise psycopg.errors.LockNotAvailable("injected")

    faults.arm("wire.before_send", refuse)
    with pytest.raises(DatabaseUnreachable, match="the database refused the write: injected"):
        lab.start(*TURNS)
    faults.disarm()
    assert lab.rows("SELECT count(*) AS n FROM mesh.traces")[0]["n"] == 1
