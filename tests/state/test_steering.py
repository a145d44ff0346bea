"""Pause, resume and cancel: what they stop, what they keep, and that they are told the truth."""

import pytest

from agentmesh.errors import NotRetryable, UnknownTrace
from agentmesh.infrastructure import faults
from agentmesh.records import new_id
from agentmesh.state import steering
from agentmesh.state.calls import TaskManager
from agentmesh.state.retry import retry
from agentmesh.testing import broken, race
from tests.serial import comes_to_a_serial_order

THREE = [{"tool": "work", "as": f"r{n}"} for n in range(3)]


def steer(lab, order, trace, **more):
    steered = order(lab.mesh.db, tenant="default", trace_id=trace.id, by="ada", **more)
    lab.bells.ring(steered.rings)
    return steered


def pause(lab, trace):
    return steer(lab, steering.pause, trace)


def resume(lab, trace):
    return steer(lab, steering.resume, trace)


def cancel(lab, trace, **more):
    return steer(lab, steering.cancel, trace, **more)


# --- pause


def test_a_paused_trace_is_not_claimed_until_it_is_resumed(lab):
    trace = lab.start({"answer": 1})
    assert pause(lab, trace).changed
    lab.drain()
    assert lab.trace(trace)["status"] == "queued"
    resume(lab, trace)
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert [one for one in lab.events(trace) if "PAUSE" in one or "RESUME" in one] == ["EXEC_PAUSE", "EXEC_RESUME"]


def test_p12_calls_that_were_dispatched_run_on_and_the_next_step_waits(lab):
    trace = lab.open(*THREE, strategy="parallel")
    pause(lab, trace)
    lab.drain()
    assert [one["status"] for one in lab.calls(trace)] == ["done"] * 3
    assert lab.step(trace)["status"] == "joined"
    resume(lab, trace)
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert broken(lab.url) == {}


@pytest.mark.parametrize("tool", ["work", "quick"])
def test_p12_a_fan_out_decided_while_paused_starts_when_it_is_resumed(lab, tool):
    trace = lab.start({"tools": [{"tool": tool, "as": "a"}, {"tool": tool, "as": "b"}], "strategy": "parallel"})
    faults.arm("tools.before_commit", lambda: pause(lab, trace))
    lab.answer()
    faults.disarm()
    assert [one["status"] for one in lab.calls(trace)] == ["held", "held"]
    lab.drain()
    assert lab.attempts(trace) == []
    assert broken(lab.url) == {}
    resume(lab, trace)
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert lab.outcomes(trace) == ["won", "won"]
    assert broken(lab.url) == {}


def test_a_serial_slot_is_resumed_with_its_first_call_alone(lab):
    trace = lab.start({"tools": ["work", {"tool": "work", "as": "b"}], "strategy": "serial"})
    faults.arm("tools.before_commit", lambda: pause(lab, trace))
    lab.answer()
    faults.disarm()
    resume(lab, trace)
    assert [one["status"] for one in lab.calls(trace)] == ["ready", "held"]


def test_twice_is_once_and_says_so(lab):
    trace = lab.start({"answer": 1})
    assert [pause(lab, trace).changed, pause(lab, trace).changed] == [True, False]
    assert [resume(lab, trace).changed, resume(lab, trace).changed] == [True, False]
    assert lab.events(trace).count("EXEC_PAUSE") == lab.events(trace).count("EXEC_RESUME") == 1


def test_an_ended_trace_is_not_steered(lab):
    trace = lab.start({"answer": 1})
    lab.drain()
    before = lab.everything()
    for order in (pause, resume, cancel):
        steered = order(lab, trace)
        assert (steered.changed, steered.status) == (False, "done")
    assert lab.everything() == before


@pytest.mark.parametrize("order", [steering.pause, steering.resume, steering.cancel])
def test_a_trace_that_is_not_there_is_an_error_also_for_another_tenant(lab, order):
    trace = lab.start({"answer": 1})
    with pytest.raises(UnknownTrace):
        order(lab.mesh.db, tenant="default", trace_id=new_id(), by="ada")
    with pytest.raises(UnknownTrace):
        order(lab.mesh.db, tenant="other", trace_id=trace.id, by="ada")
    assert lab.trace(trace)["paused_at"] is None


# --- cancel


def test_p12_no_call_starts_after_the_cancel_and_a_running_one_is_too_late(lab):
    trace = lab.open(*THREE, strategy="parallel")
    running, *ready = lab.calls(trace)
    claimed = lab.claim(running)
    assert cancel(lab, trace).status == "cancelled"
    assert [lab.claim(one) for one in ready] == [None, None]
    assert lab.settle(claimed) is None
    assert lab.outcomes(trace) == ["stale"]
    assert (
        {one["status"] for one in lab.calls(trace)} == {one["status"] for one in lab.steps(trace)[1:]} == {"cancelled"}
    )
    assert lab.events(trace)[-1] == "EXEC_CANCEL"
    assert broken(lab.url) == {}


def test_a_queued_trace_that_is_cancelled_never_starts(lab):
    trace = lab.start({"answer": 1})
    cancel(lab, trace)
    lab.drain()
    assert lab.events(trace) == ["BIR_DISPATCH", "EXEC_CANCEL"]


def test_the_holder_of_a_cancelled_trace_writes_nothing_more(lab):
    trace = lab.start({"answer": 1})
    faults.arm("reason.after_answer", lambda: cancel(lab, trace))
    lab.drain()
    faults.disarm()
    assert lab.trace(trace)["status"] == "cancelled"
    assert lab.events(trace)[-1] == "EXEC_CANCEL"
    assert broken(lab.url) == {}


def test_f27_a_cancel_and_a_result_at_the_call_s_lock_are_one_of_two_orders(lab):
    trace = lab.open("work")
    [call] = lab.calls(trace)
    claimed = lab.claim(call)
    lab.at_lock("calls", call["id"], lambda: lab.settle(claimed), lambda: cancel(lab, trace))
    lab.bells.waiting.clear()
    assert lab.trace(trace)["status"] == "cancelled"
    assert lab.outcomes(trace) in (["won"], ["stale"])
    assert broken(lab.url) == {}


def test_f27_cancel_and_finish_at_one_barrier_end_the_trace_once(lab):
    trace = lab.start({"answer": 1})
    ring = lab.bells.waiting.popleft()
    race(lambda: lab.mesh.controller.run_once(ring), lambda: cancel(lab, trace))
    ends = [one for one in lab.events(trace) if one in {"EXEC_DONE", "EXEC_CANCEL", "EXEC_FAIL"}]
    assert len(ends) == 1
    assert lab.trace(trace)["status"] == {"EXEC_DONE": "done", "EXEC_CANCEL": "cancelled"}[ends[0]]
    assert broken(lab.url) == {}


def test_f27_pause_and_cancel_at_the_trace_s_lock_leave_it_cancelled(lab):
    trace = lab.start({"answer": 1})
    lab.at_lock("traces", trace.id, lambda: pause(lab, trace), lambda: cancel(lab, trace))
    row = lab.trace(trace)
    assert (row["status"], row["paused_at"]) == ("cancelled", None)
    assert broken(lab.url) == {}


def test_a_cancelled_trace_is_not_retried(lab):

    trace = lab.open("work")
    cancel(lab, trace)
    with pytest.raises(NotRetryable):
        retry(lab.mesh.db, tenant="default", trace_id=trace.id, by="ada")


# --- trees


def make_child(lab, trace):
    """A child row under an open parent, as a step that waits for it would make."""
    child = lab.start({"answer": 2})
    lab.rows("UPDATE mesh.traces SET parent_id = %(p)s, root_id = %(p)s WHERE id = %(c)s", p=trace.id, c=child.id)
    return child


def test_a_tree_is_cancelled_from_the_top(lab):
    trace = lab.open("work")
    child = make_child(lab, trace)
    cancel(lab, trace, tree=True)
    assert lab.trace(child)["status"] == "cancelled"
    assert lab.trace(trace)["cancel_owed"] is False


def test_a_child_is_not_claimed_while_its_tree_is_being_cancelled_and_the_rescuer_finishes(lab):
    trace = lab.open("work")
    child = make_child(lab, trace)
    cancel(lab, trace)
    lab.rows("UPDATE mesh.traces SET cancel_owed = true WHERE id = %(id)s", id=trace.id)  # as a crash leaves it
    lab.drain()
    assert lab.trace(child)["status"] == "queued"
    for row in steering.owed(lab.mesh.db, batch=10):
        steering.cancel_below(lab.mesh.db, tenant=row["tenant_id"], trace_id=row["id"])
    assert lab.trace(child)["status"] == "cancelled"
    assert steering.owed(lab.mesh.db, batch=10) == []


def test_a_child_lives_on_when_its_parent_alone_is_cancelled(lab):
    trace = lab.open("work")
    child = make_child(lab, trace)
    cancel(lab, trace)
    lab.drain()
    assert lab.trace(child)["status"] == "done"


def test_a_running_tool_is_told_that_it_was_cancelled(lab):
    trace = lab.open("work")
    [call] = lab.calls(trace)
    claimed = lab.claim(call)
    tasks = TaskManager(lab.mesh.db)
    assert tasks.still_mine(claimed)
    cancel(lab, trace)
    assert not tasks.still_mine(claimed)


# --- two orders at once: one of the two serial orders, never a third


def told(order):
    """The order as an actor: what it was told counts, a refusal too."""

    def act(lab, trace, _ring):
        try:
            return order(lab.mesh.db, tenant="default", trace_id=trace.id, by="ada")
        except NotRetryable:
            return None

    return act


ACTORS = {
    "pause": told(steering.pause),
    "resume": told(steering.resume),
    "cancel": told(steering.cancel),
    "retry": told(retry),
    "finish": lambda lab, _trace, ring: lab.mesh.controller.run_once(ring),
}
PAIRS = [(a, b) for n, a in enumerate(ACTORS) for b in list(ACTORS)[n:]]


def joined(lab, *, paused=False, fails=False):
    """A trace whose only call has ended, and the ring by which its holder goes on."""
    trace = lab.open("boom" if fails else "work")
    lab.bells.waiting.clear()
    settled = lab.settle(lab.claim(lab.calls(trace)[0]), "failed" if fails else "won", result=1)
    if paused:
        pause(lab, trace)
        lab.bells.waiting.clear()
    return trace, settled.rings[-1]


def ended(lab, *, fails):
    trace, ring = joined(lab, fails=fails)
    lab.mesh.controller.run_once(ring)
    return trace, ring


STATES = {
    "joined": joined,
    "paused": lambda lab: joined(lab, paused=True),
    "failed": lambda lab: ended(lab, fails=True),
    "done": lambda lab: ended(lab, fails=False),
}


def seen(lab, trace):
    row = lab.trace(trace)
    steps = [(one["kind"], one["status"]) for one in lab.steps(trace)]
    return (
        row["status"],
        row["paused_at"] is not None,
        steps,
        [one["status"] for one in lab.calls(trace)],
        lab.events(trace),
    )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_f27_two_orders_at_once_come_to_one_of_the_two_serial_orders(lab, state, pair):
    comes_to_a_serial_order(lab, STATES[state], ACTORS, pair, seen)
