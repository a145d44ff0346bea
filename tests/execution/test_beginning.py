"""A trace that begins with a chain: its first commit claims it, so that it begins once or not at all."""

import pytest

from agentmesh.execution.tools import register_tool
from agentmesh.infrastructure import faults
from agentmesh.state import steering


@pytest.fixture
def lab(make_lab, tools):
    @register_tool("quick", inline=True, registry=tools)
    def quick() -> str:
        return "quick"

    return make_lab(chain={"chain": "c", "steps": [{"tools": ["quick"]}, {"finish": "over"}]})


@pytest.fixture
def trace(lab):
    return lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})


def test_four_workers_that_begin_one_trace_at_once_leave_one_holder(lab, trace):
    ring, runtime = lab.bells.waiting.popleft(), lab.mesh.runtime("puppet")
    outcomes = lab.at_lock("traces", trace.id, *[lambda: runtime.run(runtime.prepare_context(ring, at_once=True))] * 4)
    assert sorted(outcomes) == ["done", "lost", "lost", "lost"]
    assert trace.result(0) == "over"
    assert lab.outcomes(trace) == ["won"]
    assert lab.events(trace)[:5] == ["BIR_DISPATCH", "ACP_RECEIVE", "RUN_ONCE_START", "EXEC_START", "TOOL_DISPATCH"]


def test_one_that_is_paused_before_it_has_begun_is_as_if_nobody_had_looked(lab, trace):
    who = {"tenant": "default", "trace_id": trace.id, "by": "me"}
    faults.arm("receive.after_claim", lambda: steering.pause(lab.mesh.db, **who))
    lab.drain()
    faults.disarm()
    assert (trace.status(), lab.steps(trace)) == ("queued", [])
    lab.bells.ring(steering.resume(lab.mesh.db, **who).rings)
    lab.drain()
    assert trace.result(0) == "over"


@pytest.mark.parametrize(("rings", "status"), [(0, "queued"), (1, "running")])
def test_one_that_was_rung_again_is_claimed_before_it_is_read(lab, trace, rings, status):
    lab.rows("UPDATE mesh.traces SET rings = %(rings)s", rings=rings)
    runtime = lab.mesh.runtime("puppet")
    taken = runtime.prepare_context(lab.bells.waiting.popleft(), at_once=True)
    assert trace.status() == status
    assert runtime.run(taken) == "done"
