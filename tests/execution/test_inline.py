"""Inline calls see what leaves see."""

import asyncio
import threading

import psycopg
import pytest

from agentmesh.errors import Retry
from agentmesh.execution.failures import Leaving
from agentmesh.execution.tools import register_tool
from agentmesh.records import Backoff
from agentmesh.state import rescue, steering


def test_a_later_inline_call_sees_an_earlier_big_result_whole(make_lab, tools):
    seen = []

    @register_tool("first", registry=tools, inline=True)
    def first() -> str:
        return "x" * 100_000

    @register_tool("second", registry=tools, inline=True)
    def second(ctx) -> int:
        seen.append(ctx.results["first"])
        return 1

    lab = make_lab()
    lab.start({"tools": ["first", "second"], "strategy": "serial"})
    lab.drain()
    assert seen == ["x" * 100_000]


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("ending", [SystemExit(3), asyncio.CancelledError()])
def test_a_tool_that_would_end_its_worker_fails_its_call_alone(make_lab, tools, inline, ending):
    @register_tool("leave", registry=tools, inline=inline, attempts=1)
    def leave() -> int:
        raise ending

    lab = make_lab()
    trace = lab.start({"tools": ["leave"]})
    lab.drain()
    assert trace.status() == "failed"
    assert lab.outcomes(trace) == ["failed"]


def both(lab):
    """A trace that runs `holds` and `late` in one round."""
    return lab.start({"tools": ["holds", "late"], "strategy": "parallel"})


@pytest.fixture
def crowded(make_lab, tools):
    """(lab, released, ran): one thread for inline calls, which `holds` keeps until `released`."""
    released, ran = threading.Event(), []

    @register_tool("holds", registry=tools, inline=True, attempts=1, timeout=0.3)
    def holds() -> int:
        released.wait(20)
        ran.append("holds")
        return 1

    @register_tool("late", registry=tools, inline=True, attempts=1, timeout=0.3)
    def late() -> int:
        ran.append("late")
        return 1

    yield make_lab(), released, ran
    released.set()


def test_a_call_that_timed_out_before_it_started_never_starts(crowded):
    lab, released, ran = crowded
    narrow(lab)
    trace = both(lab)
    lab.drain()
    assert lab.outcomes(trace) == ["timeout", "timeout"]
    assert len(lab.mesh.notes.claims()) == 1  # the thread that runs on; it counts as stuck after its grace
    released.set()
    lab.mesh.parts.pool.submit(int).result(timeout=20)
    assert ran == ["holds"]


def narrow(lab):
    """Afterwards one inline call runs at a time."""
    lab.mesh.parts.pool._max_workers = 1


def test_a_round_cut_short_by_the_end_of_its_worker_is_no_failure_of_its_calls(crowded):
    lab, _, ran = crowded
    narrow(lab)
    trace = both(lab)
    lab.mesh.parts.pool.shutdown(wait=False)
    with pytest.raises(Leaving):
        lab.answer()
    assert lab.trace(trace)["status"] == "running"
    assert [(one["status"], one["failures"]) for one in lab.calls(trace)] == [("running", 0)] * 2
    assert ran == []


@pytest.mark.parametrize("alone", [True, False])
def test_our_own_database_that_is_away_is_no_failure_of_an_inline_call(make_lab, tools, alone):
    class Away:
        def once(self, *_):
            raise psycopg.OperationalError("away")

        read = once

    @register_tool("large", registry=tools, inline=True, attempts=1)
    def large() -> str:
        lab.mesh.blobs._db = Away()
        return "x" * 100_000

    register_tool("small", registry=tools, inline=True)(lambda: 1)
    lab = make_lab()
    trace = lab.start({"tools": ["large"] if alone else ["large", "small"], "strategy": "parallel"})
    with pytest.raises(psycopg.OperationalError):
        lab.answer()
    assert lab.trace(trace)["status"] == "running"
    assert {(one["status"], one["failures"]) for one in lab.calls(trace)} == {("running", 0)}


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("after", [float("nan"), float("inf"), -5, 1e300, "soon"])
def test_a_tool_that_names_no_time_is_retried_after_the_usual_back_off(make_lab, tools, inline, after):
    @register_tool("busy", registry=tools, inline=inline, attempts=2, backoff=Backoff(base_s=0, cap_s=0))
    def busy() -> int:
        raise Retry("busy", after=after)

    lab = make_lab()
    trace = lab.start({"tools": ["busy"]})
    lab.drain()
    [call] = lab.calls(trace)
    assert (call["status"], call["failures"]) == ("ready", 1)


@pytest.mark.parametrize(("ends", "outcomes"), [("cancel", ["stale"]), ("rescue", ["lost", "won"])])
def test_a_call_that_somebody_else_ends_has_an_attempt_from_when_it_began(make_lab, tools, ends, outcomes):
    seen = []

    @register_tool("watched", registry=tools, inline=True)
    def watched() -> int:
        if not seen:
            seen.append(lab.rows("SELECT mesh.mesh_now() AS now")[0]["now"])
            who = {"tenant": "default", "trace_id": trace.id, "by": "me"}
            if ends == "cancel":
                steering.cancel(lab.mesh.db, **who)
            else:
                held = lab.trace(trace)
                lab.bells.ring(rescue.give_back(lab.mesh.db, held | {"kind": "trace"}, "lost"))
        return 1

    lab = make_lab()
    trace = lab.start({"tools": ["watched"]})
    lab.drain()
    assert lab.outcomes(trace) == outcomes
    first = lab.attempts(trace)[0]
    assert first["started_at"] <= seen[0] <= first["ended_at"]
