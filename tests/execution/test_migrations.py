"""Moving a running trace to another plan: on purpose, whole, or not at all."""

import pytest

from agentmesh.errors import DoesNotFit
from agentmesh.execution import chain
from agentmesh.state import signals

OLD = [{"signal": "go", "id": "wait-here"}, {"finish": "old"}]
NEW = [{"signal": "go", "id": "waits"}, {"finish": "new"}]


def plan(steps):
    return chain.from_values({"chain": "c", "steps": steps})


@pytest.fixture
def lab(make_lab):
    made = make_lab(chain={"chain": "c", "steps": OLD})
    made.t = made.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    made.drain()
    return made


def test_a_waiting_trace_goes_on_along_the_other_plan(lab):
    to = plan(NEW)
    move = lab.mesh.migrations.plan(lab.t.id, to, renamed={"wait-here": "waits"})
    lab.mesh.migrations.migrate(move, to, by="ann")
    lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", by="ann").rings)
    lab.drain()
    assert (lab.t.result(0), lab.trace(lab.t)["plan_hash"]) == ("new", to.hash)


def test_what_would_be_done_is_shown_before_and_changes_nothing(lab):
    before = lab.everything()
    assert lab.mesh.migrations.plan(lab.t.id, plan(NEW), renamed={"wait-here": "waits"}).nodes == {"wait-here": "waits"}
    assert lab.everything() == before


@pytest.mark.parametrize("steps", [NEW, [{"wait": "1h", "id": "wait-here"}, {"finish": 1}]])
def test_a_plan_without_a_place_for_an_open_step_is_refused(lab, steps):
    with pytest.raises(DoesNotFit, match="wait-here"):
        lab.mesh.migrations.plan(lab.t.id, plan(steps))


def test_a_trace_that_moved_on_meanwhile_is_left(lab):
    to = plan(NEW)
    move = lab.mesh.migrations.plan(lab.t.id, to, renamed={"wait-here": "waits"})
    lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", by="ann").rings)
    lab.drain()
    with pytest.raises(DoesNotFit, match="moved on"):
        lab.mesh.migrations.migrate(move, to, by="ann")
    assert lab.t.result(0) == "old"
