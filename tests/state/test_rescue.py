"""What the dead held and what ran too long: given back by ordinary guarded transitions, each row for itself."""

from uuid import UUID

import pytest

from agentmesh.execution.draft import Position
from agentmesh.records import Ring
from agentmesh.state import leases, rescue
from agentmesh.state.calls import TaskManager
from agentmesh.testing import race


def orphans(lab):
    return rescue.orphans(lab.mesh.db, batch=100)


def overdue(lab):
    return rescue.overdue(lab.mesh.db, batch=100)


def give_back(lab, row, outcome="lost"):
    return rescue.give_back(lab.mesh.db, row, outcome)


def run_as(lab, holder):
    """From now on this process claims in another worker's name."""
    lab.mesh.notes.rename(holder.worker_id)


class Died(BaseException):
    """The process is gone: nothing after it runs."""


def die_at(lab, point, holder):
    """Run doorbells as `holder` until it dies at this fault point."""
    from agentmesh.infrastructure import faults

    def die():
        raise Died

    run_as(lab, holder)
    faults.arm(point, die)
    with pytest.raises(Died):
        lab.drain()
    faults.disarm()
    run_as(lab, lab.hand)
    lab.kill(holder)


def heal(lab):
    """One rescue of everything the dead held, and what follows from it."""
    for row in orphans(lab):
        lab.bells.ring(give_back(lab, row))
    lab.drain()


# --- what the dead held


def test_a_living_workers_rows_are_no_orphans(lab):
    trace = lab.open("work")
    lab.claim(lab.calls(trace)[0], lab.worker())
    assert orphans(lab) == []


def test_what_a_worker_left_by_its_own_will_is_handed_back_and_no_suspect(lab):
    trace, leaver = lab.open("work"), lab.worker()
    lab.claim(lab.calls(trace)[0], leaver)
    leases.leave(lab.mesh.db, leaver.worker_id)
    [row] = orphans(lab)
    give_back(lab, row, row["outcome"])
    [call] = lab.calls(trace)
    assert (call["status"], call["losses"], lab.outcomes(trace)) == ("ready", 0, ["released"])


def test_a_once_call_that_a_leaving_worker_ran_is_lost(lab):
    trace, leaver = lab.open("twice"), lab.worker()
    lab.claim(lab.calls(trace)[0], leaver)
    leases.leave(lab.mesh.db, leaver.worker_id)
    [row] = orphans(lab)
    assert row["outcome"] == "lost"
    give_back(lab, row, row["outcome"])
    assert lab.calls(trace)[0]["error"]["code"] == "E_OUTCOME_UNKNOWN"


def test_a_dead_workers_call_becomes_ready_under_a_new_epoch_and_rings(lab):
    trace, dead = lab.open("work"), lab.worker()
    lab.claim(lab.calls(trace)[0], dead)
    lab.kill(dead)
    [row] = orphans(lab)
    [ring] = give_back(lab, row)
    [call] = lab.calls(trace)
    assert (call["status"], call["worker_id"], call["epoch"], call["losses"]) == ("ready", None, 2, 1)
    assert (ring.kind, ring.id, ring.epoch) == ("call", call["id"], 2)
    assert lab.outcomes(trace) == ["lost"]


def test_a_claim_that_commits_after_its_worker_was_declared_dead_is_given_back(lab):
    trace, dead = lab.open("work"), lab.worker()
    lab.kill(dead)
    lab.claim(lab.calls(trace)[0], dead)
    assert [row["id"] for row in orphans(lab)] == [lab.calls(trace)[0]["id"]]
    heal(lab)
    assert lab.calls(trace)[0]["worker_id"] is None


def test_a_worker_that_was_never_known_holds_nothing_for_long(lab):
    from agentmesh.records import new_id
    from agentmesh.state.traces import Holder

    trace = lab.open("work")
    lab.claim(lab.calls(trace)[0], Holder(new_id()))
    assert len(orphans(lab)) == 1
    heal(lab)


def test_eight_rescuers_of_one_call_give_it_back_once(lab):
    trace, dead = lab.open("work"), lab.worker()
    lab.claim(lab.calls(trace)[0], dead)
    lab.kill(dead)
    [row] = orphans(lab)
    rings = race(*[lambda: give_back(lab, row)] * 8)
    assert sum(one != [] for one in rings) == 1
    assert lab.calls(trace)[0]["epoch"] == 2


def test_eight_rescuers_of_one_trace_give_it_back_once(lab):
    trace, dead = lab.start({"answer": 1}), lab.worker()
    die_at(lab, "reason.before", dead)
    [row] = orphans(lab)
    rings = race(*[lambda: give_back(lab, row)] * 8)
    assert sum(len(one) for one in rings) == 1
    assert lab.events(trace).count("EXEC_RESCUE") == 1
    lab.bells.ring([ring for one in rings for ring in one])
    lab.drain()
    assert trace.result(0) == 1


def test_a_row_that_was_finished_after_it_was_selected_is_left_alone(lab):
    trace, dead = lab.open("work"), lab.worker()
    claimed = lab.claim(lab.calls(trace)[0], dead)
    lab.kill(dead)
    [row] = orphans(lab)
    lab.settle(claimed, result=1)
    before = lab.everything()
    assert give_back(lab, row) == []
    assert lab.everything() == before


@pytest.mark.parametrize("change", [{"epoch": 0}, {"worker_id": UUID(int=7)}])
def test_a_trace_that_changed_hands_after_it_was_selected_is_left_alone(lab, change):
    trace, dead = lab.start({"answer": 1}), lab.worker()
    die_at(lab, "reason.before", dead)
    [row] = orphans(lab)
    before = lab.everything()
    assert give_back(lab, row | change) == []
    assert lab.everything() == before
    heal(lab)
    assert trace.result(0) == 1


def test_a_rescued_trace_stays_running_held_by_nobody_and_its_step_is_ready(lab):
    trace, dead = lab.start({"answer": 1}), lab.worker()
    die_at(lab, "reason.after_answer", dead)
    [row] = orphans(lab)
    lab.bells.ring(give_back(lab, row))
    held = lab.trace(trace)
    assert (held["status"], held["worker_id"], held["epoch"]) == ("running", None, 2)
    step = lab.step(trace)
    assert (step["status"], step["epoch"], step["losses"]) == ("ready", 2, 1)
    assert lab.outcomes(trace, "reason") == ["lost"]
    lab.drain()
    assert trace.result(0) == 1
    assert lab.outcomes(trace, "reason") == ["lost", "won"]


POINTS = [
    "receive.after_claim", "prepare.after_context", "reason.before", "reason.after_answer", "tools.before_commit",
    "tools.after_commit", "tools.after_ring", "callback.before", "callback.after_handler", "finish.before_commit",
    "finish.after_commit", "call.after_claim", "call.before_effect", "call.after_effect", "call.after_commit",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_dies_anywhere_loses_nothing_and_doubles_nothing(lab, point):
    trace = lab.start({"tools": ["work", {"tool": "work", "as": "b", "args": {"n": 4}}], "strategy": "parallel"})
    die_at(lab, point, lab.worker())
    heal(lab)
    lab.rows("UPDATE mesh.steps SET rung_at = now() - interval '1 h' WHERE status IN ('ready', 'joined')")
    from agentmesh.coordination.rescuer import _ring
    from agentmesh.state import rings

    lab.bells.ring([_ring(row) for row in rings.due(lab.mesh.db, again_s=0, cap_s=0, batch=100)])
    lab.drain()
    assert trace.result(0) == {"work": 1, "b": 5}
    assert [one for one in lab.events(trace) if one.startswith("EXEC_DONE")] == ["EXEC_DONE"]
    assert all(outcome is not None for outcome in lab.outcomes(trace))


@pytest.mark.parametrize("point", ["callback.before", "callback.after_handler", "reason.after_commit"])
def test_a_reasoners_committed_answer_is_not_asked_again_when_the_callback_dies(lab, point):
    from agentmesh.execution.callbacks import HANDLERS, register_callback

    register_callback("noted")(lambda result, session: {"memory": [{"key": "k", "value": result}]})
    trace = lab.start({"answer": 9}, policy={"callbacks": ["noted"]})
    die_at(lab, point, lab.worker())
    heal(lab)
    HANDLERS.pop("noted")
    assert trace.result(0) == 9
    assert lab.outcomes(trace, "reason") == ["won"]
    assert lab.outcomes(trace, "callback") == ["lost", "won"]
    assert lab.rows("SELECT count(*) AS n FROM mesh.memory WHERE key = 'k'") == [{"n": 1}]


# --- inline calls


@pytest.mark.parametrize("point", ["call.before_effect", "call.after_effect"])
def test_inline_calls_of_a_rescued_trace_run_as_leaves_under_the_same_key(lab, point):
    trace = lab.start({"tools": ["quick"]})
    die_at(lab, point, lab.worker())
    [before] = lab.calls(trace)
    [row] = orphans(lab)
    rings = give_back(lab, row)
    assert [ring.kind for ring in rings] == ["call"]
    [call] = lab.calls(trace)
    assert (call["status"], call["worker_id"], call["epoch"]) == ("ready", None, 2)
    assert lab.step(trace)["status"] == "waiting"
    lab.bells.ring(rings)
    lab.drain()
    assert trace.result(0) == 1
    assert lab.calls(trace)[0]["idem_key"] == before["idem_key"]
    assert lab.outcomes(trace) == ["lost", "won"]


def test_a_serial_inline_slot_goes_on_where_it_was_lost(lab):
    from agentmesh.infrastructure import faults

    trace = lab.start({"tools": ["quick", {"tool": "quick", "as": "b", "args": {"n": 7}}], "strategy": "serial"})
    seen = []

    def die_second():
        seen.append(1)
        if len(seen) == 2:
            raise Died

    dead = lab.worker()
    run_as(lab, dead)
    faults.arm("call.before_effect", die_second)
    with pytest.raises(Died):
        lab.drain()
    faults.disarm()
    run_as(lab, lab.hand)
    lab.kill(dead)
    heal(lab)
    assert trace.result(0) == 8
    assert lab.outcomes(trace) == ["won", "lost", "won"]


# --- time limits


def test_a_call_over_its_deadline_times_out_by_the_row_and_the_fallback_starts(lab):
    trace = lab.open("work", "quick", strategy="fallback")
    slow = lab.claim(lab.calls(trace)[0])
    assert overdue(lab) == []
    lab.shift(61)
    [row] = overdue(lab)
    [ring] = give_back(lab, row, "timeout")
    first, second = lab.calls(trace)
    assert (first["status"], first["error"]["code"], second["status"]) == ("failed", "E_TIMEOUT", "ready")
    assert ring.id == second["id"]
    assert TaskManager(lab.mesh.db).record(slow, "won", result=1) is None
    assert lab.outcomes(trace) == ["stale"]


def test_a_time_out_that_was_selected_too_early_changes_nothing(lab):
    trace = lab.open("work")
    lab.claim(lab.calls(trace)[0])
    [call] = lab.calls(trace)
    before = lab.everything()
    assert give_back(lab, call | {"kind": "call"}, "timeout") == []
    assert lab.everything() == before


def test_a_result_and_a_time_out_at_one_lock_leave_one_outcome(lab):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])
    lab.shift(61)
    [row] = overdue(lab)
    settled, rings = lab.at_lock(
        "calls", row["id"], lambda: lab.settle(claimed, result=1), lambda: give_back(lab, row, "timeout")
    )
    assert (settled is not None) != bool(rings)
    assert lab.events(trace).count("CALLBACK_RESULT") == 0


def test_a_reasoner_over_its_time_is_asked_again_and_its_late_answer_writes_nothing(lab):
    from agentmesh.infrastructure import faults

    trace = lab.start({"answer": 1}, policy={"reasoner_timeout_s": 5, "backoff": {"base_s": 0}})

    def too_slow():
        faults.disarm()
        lab.shift(8)
        [row] = overdue(lab)
        assert row["kind"] == "trace"
        lab.bells.ring(give_back(lab, row, "timeout"))

    faults.arm("reason.after_answer", too_slow)
    lab.drain()
    assert trace.result(0) == 1
    assert lab.outcomes(trace, "reason") == ["timeout", "won"]
    assert lab.events(trace).count("EXEC_DONE") == 1


def test_a_reasoner_that_is_always_too_slow_fails_the_trace_with_its_time_out(lab):
    from agentmesh.infrastructure import faults

    trace = lab.start({"answer": 1}, policy={"reasoner_timeout_s": 5, "reasoner_attempts": 2})
    moved = []

    def too_slow():
        moved.append(lab.shift(8 * (len(moved) + 1)))
        for row in overdue(lab):
            lab.bells.ring(give_back(lab, row, "timeout"))

    faults.arm("reason.before", too_slow)
    lab.drain()
    faults.disarm()
    assert trace.status() == "failed"
    assert lab.trace(trace)["error"]["code"] == "E_TIMEOUT"
    assert len(moved) == 2


def test_an_inline_call_over_its_time_counts_as_timed_out_and_the_others_do_not(lab):
    from agentmesh.infrastructure import faults

    trace = lab.start({"tools": ["quick", {"tool": "quick", "as": "b"}], "strategy": "serial"})
    dead = lab.worker()

    def leave():
        raise Died

    run_as(lab, dead)
    faults.arm("call.before_effect", leave)
    with pytest.raises(Died):
        lab.drain()
    faults.disarm()
    run_as(lab, lab.hand)
    lab.shift(1000)
    lab.rows("UPDATE mesh.workers SET beat_at = mesh.mesh_now()")
    for row in overdue(lab):
        lab.bells.ring(give_back(lab, row, "timeout"))
    call = lab.calls(trace)[0]
    assert (call["failures"], lab.outcomes(trace)[0]) == (1, "timeout")
    lab.shift(5000)
    [call, _] = lab.calls(trace)
    lab.bells.waiting.append(Ring("call", call["id"], call["epoch"], call["queue"], call["task"], trace.id))
    lab.drain()
    assert trace.status() == "done"


# --- calls whose step was taken over


def test_a_cancelled_call_of_a_dead_worker_is_nobodys_any_more(lab):
    trace = lab.open("work", {"tool": "work", "as": "b"}, strategy="parallel", require="any")
    first, second = lab.calls(trace)
    dead = lab.worker()
    lab.claim(second, dead)
    lab.settle(lab.claim(first), result=1)
    lab.bells.waiting.clear()
    lab.mesh.controller.run_once(lab.ring(trace))
    lab.kill(dead)
    assert orphans(lab) == []


def test_a_timeout_selected_before_the_holder_went_on_spares_its_next_step(lab):
    trace = lab.start({"tools": ["quick"]})
    runtime = lab.mesh.runtime("puppet")
    taken = runtime.prepare_context(lab.bells.waiting.popleft())
    lab.shift(1000)
    [row] = overdue(lab)
    at = runtime.executor._step(Position.of(taken))
    assert give_back(lab, row, "timeout") == []
    assert lab.step(trace)["status"] == "running"
    while at is not None:
        at = runtime.executor._step(at)
    assert trace.result(0) == 1
    assert (lab.outcomes(trace), [one["failures"] for one in lab.steps(trace)]) == (["won"], [0, 0])
