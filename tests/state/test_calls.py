"""Calls as leaves: claim, settle, retry, and the join that exactly one of them fires."""

import pytest

from agentmesh.records import Failure, new_id
from agentmesh.state import calls, traces
from agentmesh.state.calls import TaskManager
from agentmesh.testing import race

FAILED = Failure("E_TOOL", "it broke")
PERMANENT = Failure("E_TOOL", "it will not work", permanent=True)
THREE = [{"tool": "work", "as": f"r{n}"} for n in range(3)]


# --- claim


def test_eight_claimers_at_a_barrier_leave_one_holder(lab):
    trace = lab.open("work")
    [call] = lab.calls(trace)
    won = race(*[lambda: lab.claim(call)] * 8)
    assert sum(one is not None for one in won) == 1
    assert len(lab.attempts(trace)) == 1
    lab.settle(next(one for one in won if one is not None))


def test_a_call_that_runs_is_not_claimed_again(lab):
    trace = lab.open("work")
    [call] = lab.calls(trace)
    lab.claim(call)
    [running] = lab.calls(trace)
    assert lab.claim(running) is None


def test_a_held_call_is_not_claimed(lab):
    trace = lab.open("work", "work", strategy="serial")
    held = lab.calls(trace)[1]
    assert held["status"] == "held"
    assert lab.claim(held) is None


@pytest.mark.parametrize("change", [{"epoch": 2}, {"epoch": 0}, {"task": "tool.boom"}])
def test_a_ring_of_another_epoch_or_task_claims_nothing(lab, change):
    trace = lab.open("work")
    [call] = lab.calls(trace)
    before = lab.everything()
    assert lab.claim(call | change) is None
    assert lab.everything() == before


def test_a_call_is_not_claimed_before_its_time(lab):
    trace = lab.open("lasting")
    lab.settle(lab.claim(lab.calls(trace)[0]), "failed", failure=FAILED)
    [waiting] = lab.calls(trace)
    assert lab.claim(waiting) is None
    lab.shift(1000)
    assert lab.claim(waiting) is not None


def test_a_claim_sets_the_deadline_by_the_database(lab):
    trace = lab.open("work")
    lab.shift(5000)
    lab.claim(lab.calls(trace)[0])
    left = lab.rows("SELECT extract(epoch FROM deadline - clock_timestamp()) AS s FROM mesh.calls")[0]["s"]
    assert 5000 < left < 5061


def test_a_claim_touches_its_call_alone(lab):
    trace = lab.open("work")
    before = (lab.trace(trace), lab.steps(trace))
    lab.claim(lab.calls(trace)[0])
    assert (lab.trace(trace), lab.steps(trace)) == before


# --- the fence


def test_old_epoch_cannot_finish(lab):
    trace = lab.open("work")
    first = lab.claim(lab.calls(trace)[0])
    lab.settle(first, "released")
    second = lab.claim(lab.calls(trace)[0])
    assert (first.row["epoch"], second.row["epoch"]) == (1, 2)
    before = lab.everything()
    assert lab.settle(first, result=666) is None
    assert lab.everything() == before
    assert lab.settle(second, result=7).joined


def test_another_worker_cannot_finish_the_same_epoch(lab):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])
    other = lab.worker()
    with lab.mesh.db.checkout() as tx:
        from agentmesh.state import calls

        assert calls.settle(tx, claimed.row, worker_id=other.worker_id, outcome="won", result=1) is None
    assert lab.settle(claimed).status == "done"


def test_finish_call_twice_counts_once(lab):
    trace = lab.open(*THREE, strategy="parallel")
    claimed = lab.claim(lab.calls(trace)[0])
    assert sum(one is not None for one in race(*[lambda: lab.settle(claimed)] * 4)) == 1
    assert (lab.step(trace)["pending"], lab.step(trace)["wins"]) == (2, 1)


# --- the join


@pytest.mark.parametrize(
    ("require", "outcomes", "status"),
    [
        ("all", ("won", "won"), "joined"),
        ("all", ("won", "failed"), "joined"),
        ("any", ("won", "won"), "joined"),
        ("any", ("failed", "failed"), "joined"),
        (2, ("won", "won"), "joined"),
        (2, ("failed", "won"), "joined"),
    ],
)
def test_the_last_two_parts_at_a_barrier_fire_the_join_once(lab, require, outcomes, status):
    trace = lab.open(*THREE[:2], strategy="parallel", require=require)
    claimed = [lab.claim(one) for one in lab.calls(trace)]
    step = lab.step(trace)["id"]
    settled = lab.at_lock(
        "steps", step, *[lambda c=c, o=o: lab.settle(c, o) for c, o in zip(claimed, outcomes, strict=True)]
    )
    assert [one.joined for one in settled].count(True) == 1
    assert sum(ring.kind == "step" for one in settled for ring in one.rings) == 1
    assert lab.step(trace)["status"] == status
    lab.bells.ring([ring for one in settled for ring in one.rings])
    lab.bells.waiting.extend([])
    lab.drain()
    assert lab.events(trace).count("REASONER_FEEDBACK") == 1


@pytest.mark.parametrize(
    ("require", "first", "second", "joined_after"),
    [
        ("all", "failed", None, 1),
        ("any", "won", None, 1),
        (2, "won", "won", 2),
        (2, "failed", "failed", 2),
        (2, "failed", "won", 3),
        ("all", "won", "won", 3),
    ],
)
def test_a_join_fires_as_soon_as_success_is_certain_or_impossible(lab, require, first, second, joined_after):
    trace = lab.open(*THREE, strategy="parallel", require=require)
    claimed = [lab.claim(one) for one in lab.calls(trace)]
    seen = []
    for one, outcome in zip(claimed, (first, second or "won", "won"), strict=True):
        seen.append(lab.settle(one, outcome).joined)
    assert seen.index(True) + 1 == joined_after
    assert seen.count(True) == 1


def test_eight_settles_at_a_barrier_count_every_part(lab):
    trace = lab.open(*[{"tool": "work", "as": f"r{n}"} for n in range(8)], strategy="parallel")
    claimed = [lab.claim(one) for one in lab.calls(trace)]
    settled = race(*[lambda c=c: lab.settle(c) for c in claimed])
    assert [one.joined for one in settled].count(True) == 1
    assert (lab.step(trace)["pending"], lab.step(trace)["wins"]) == (0, 8)


def test_results_after_an_early_join_are_counted_until_the_step_is_taken_and_stale_afterwards(lab):
    trace = lab.open(*THREE, strategy="parallel", require="any")
    tasks = TaskManager(lab.mesh.db)
    first, second, third = [lab.claim(one) for one in lab.calls(trace)]
    early = tasks.record(first, "won", result=1)
    assert early.joined
    late = tasks.record(second, "won", result=2)
    assert (late.status, late.joined) == ("done", False)
    assert lab.step(trace)["wins"] == 2
    lab.bells.waiting.clear()
    lab.bells.ring(early.rings)
    lab.drain()
    assert trace.result(0) == {"r0": 1, "r1": 2}
    assert tasks.record(third, "won", result=3) is None
    assert sorted(lab.outcomes(trace)) == ["stale", "won", "won"]
    assert [one["status"] for one in lab.calls(trace)] == ["done", "done", "cancelled"]


def test_a_part_that_settles_while_its_step_is_taken_is_counted_or_stale_but_never_half(lab):
    trace = lab.open(*THREE[:2], strategy="parallel", require="any")
    first, second = [lab.claim(one) for one in lab.calls(trace)]
    lab.settle(first, result=1)
    tasks, ring = TaskManager(lab.mesh.db), lab.ring(trace)
    lab.at_lock(
        "calls",
        second.row["id"],
        lambda: tasks.record(second, "won", result=2),
        lambda: lab.mesh.controller.run_once(ring),
    )
    [_, call] = lab.calls(trace)
    assert (call["status"], lab.outcomes(trace)[1]) in {("done", "won"), ("cancelled", "stale")}
    assert trace.status() == "done"


# --- slots


def test_a_fallback_makes_its_next_call_ready_in_the_same_transaction(lab):
    trace = lab.open("boom", "work", strategy="fallback")
    claimed = lab.claim(lab.calls(trace)[0])
    settled = lab.settle(claimed, "failed", failure=FAILED)
    first, second = lab.calls(trace)
    assert (first["status"], second["status"]) == ("failed", "ready")
    assert [ring.id for ring in settled.rings] == [second["id"]]
    assert second["rung_at"] is not None
    assert not settled.joined


def test_a_fallback_that_wins_drops_the_rest_of_its_slot(lab):
    trace = lab.open("work", "boom", strategy="fallback")
    assert lab.settle(lab.claim(lab.calls(trace)[0])).joined
    assert [one["status"] for one in lab.calls(trace)] == ["done", "cancelled"]


def test_a_serial_failure_drops_the_rest(lab):
    trace = lab.open("work", "work", "work", strategy="serial")
    lab.settle(lab.claim(lab.calls(trace)[0]))
    assert lab.settle(lab.claim(lab.calls(trace)[1]), "failed", failure=PERMANENT).joined
    assert [one["status"] for one in lab.calls(trace)] == ["done", "failed", "cancelled"]


def test_a_serial_slot_wins_with_its_last_call_only(lab):
    trace = lab.open("work", "work", strategy="serial")
    assert not lab.settle(lab.claim(lab.calls(trace)[0])).joined
    assert lab.step(trace)["wins"] == 0
    assert lab.settle(lab.claim(lab.calls(trace)[1])).joined
    assert lab.step(trace)["wins"] == 1


def test_two_next_calls_of_one_slot_are_never_open_at_once(lab):
    trace = lab.open("fallible", "work", strategy="fallback")
    claimed = lab.claim(lab.calls(trace)[0])
    settled = race(*[lambda: lab.settle(claimed, "failed", failure=PERMANENT)] * 4)
    assert sum(one is not None for one in settled) == 1
    assert [one["status"] for one in lab.calls(trace)] == ["failed", "ready"]


# --- retries


def test_a_retry_keeps_its_idempotency_key_and_raises_the_epoch(lab):
    trace = lab.open("fallible")
    [before] = lab.calls(trace)
    assert lab.settle(lab.claim(before), "failed", failure=FAILED).status == "ready"
    [after] = lab.calls(trace)
    assert after["idem_key"] == before["idem_key"]
    assert after["epoch"] == before["epoch"] + 1
    lab.settle(lab.claim(after))
    assert len({one["idem_key"] for one in lab.attempts(trace)}) == 1


def test_a_call_fails_for_good_when_its_attempts_are_used_up(lab):
    trace = lab.open("fallible")
    statuses = [lab.settle(lab.claim(lab.calls(trace)[0]), "failed", failure=FAILED).status for _ in range(3)]
    assert statuses == ["ready", "ready", "failed"]


def test_a_permanent_failure_is_not_retried(lab):
    trace = lab.open("fallible")
    assert lab.settle(lab.claim(lab.calls(trace)[0]), "failed", failure=PERMANENT).status == "failed"


def test_a_failure_that_says_when_is_retried_then(lab):
    trace = lab.open("fallible")
    lab.settle(lab.claim(lab.calls(trace)[0]), "failed", failure=Failure("E_TOOL", "busy", after_s=500))
    left = lab.rows("SELECT extract(epoch FROM wake_at - clock_timestamp()) AS s FROM mesh.calls")[0]["s"]
    assert 490 < left <= 500


def test_a_retry_that_waits_is_not_rung_by_its_failure(lab):
    trace = lab.open("lasting")
    assert lab.settle(lab.claim(lab.calls(trace)[0]), "failed", failure=FAILED).rings == ()
    [call] = lab.calls(trace)
    assert call["rung_at"] is None
    assert call["wake_at"] is not None


def test_a_late_success_leaves_no_old_error_behind_in_the_attempts(lab):
    trace = lab.open("fallible")
    lab.settle(lab.claim(lab.calls(trace)[0]), "failed", failure=FAILED)
    lab.settle(lab.claim(lab.calls(trace)[0]), result=3)
    assert lab.outcomes(trace) == ["failed", "won"]


# --- losses


def test_a_lost_call_runs_again_and_its_attempts_do_not_count(lab):
    trace = lab.open("work")
    for _ in range(3):
        assert lab.settle(lab.claim(lab.calls(trace)[0]), "lost").status == "ready"
    [call] = lab.calls(trace)
    assert (call["losses"], call["failures"], call["epoch"]) == (3, 0, 4)


def test_a_lost_once_call_ends_with_its_outcome_unknown_and_the_slot_stops(lab):
    trace = lab.open("twice", "work", strategy="fallback")
    settled = lab.settle(lab.claim(lab.calls(trace)[0]), "lost")
    first, second = lab.calls(trace)
    assert settled.joined
    assert (first["status"], first["error"]["code"]) == ("failed", "E_OUTCOME_UNKNOWN")
    assert second["status"] == "cancelled"


def test_a_once_call_that_timed_out_is_not_started_again(lab):
    trace = lab.open("twice", "work", strategy="fallback")
    lab.settle(lab.claim(lab.calls(trace)[0]), "timeout", failure=Failure("E_TIMEOUT", "late"))
    first, second = lab.calls(trace)
    assert first["error"]["code"] == "E_OUTCOME_UNKNOWN"
    assert second["status"] == "cancelled"


def test_a_once_call_that_failed_cleanly_lets_its_fallback_go_on(lab):
    trace = lab.open("twice", "work", strategy="fallback")
    lab.settle(lab.claim(lab.calls(trace)[0]), "failed", failure=FAILED)
    assert [one["status"] for one in lab.calls(trace)] == ["failed", "ready"]


def test_a_result_after_the_rescue_is_noted_as_stale(lab):
    trace = lab.open("work")
    zombie = lab.claim(lab.calls(trace)[0])
    lab.settle(zombie, "lost")
    assert TaskManager(lab.mesh.db).record(zombie, "won", result=1) is None
    assert lab.outcomes(trace) == ["stale"]
    assert lab.calls(trace)[0]["status"] == "ready"


# --- what a tool asks while it runs


def test_a_running_attempt_knows_whether_it_still_holds_its_call(lab):
    trace = lab.open("work")
    tasks, claimed = TaskManager(lab.mesh.db), lab.claim(lab.calls(trace)[0])
    assert tasks.still_mine(claimed)
    lab.settle(claimed, "lost")
    assert not tasks.still_mine(claimed)


def test_progress_is_shown_on_the_attempt_until_it_ends(lab):
    trace = lab.open("work")
    tasks, claimed = TaskManager(lab.mesh.db), lab.claim(lab.calls(trace)[0])
    tasks.report(claimed, {"done": 1})
    lab.settle(claimed)
    tasks.report(claimed, {"done": 2})
    assert lab.attempts(trace)[0]["progress"] == {"done": 1}


def test_a_trace_that_ended_has_no_open_call_left(lab):
    trace = lab.open(*THREE, strategy="parallel", require="any")
    lab.settle(lab.claim(lab.calls(trace)[0]), result=1)
    lab.bells.waiting.clear()
    lab.mesh.controller.run_once(lab.ring(trace))
    assert trace.status() == "done"
    assert {one["status"] for one in lab.calls(trace)} == {"done", "cancelled"}
    assert isinstance(traces.Holder, type)


def test_f21_a_call_of_a_tool_that_a_worker_lacks_is_not_claimed_there(lab):
    trace = lab.open("work")
    [call] = lab.calls(trace)
    at = {"task": call["task"], "holder": lab.hand, "attempt_id": new_id()}
    assert calls.claim(lab.mesh.db, call["id"], call["epoch"], **at, tools=["other"]) is None
    assert lab.calls(trace) == [call]
    assert calls.claim(lab.mesh.db, call["id"], call["epoch"], **at, tools=["other", "work"]) is not None
