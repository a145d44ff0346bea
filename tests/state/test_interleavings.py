"""The interleavings that DESIGN section 3 names, one by one: rule, test, and where it stands.

 1 the row is the message: nothing rings before the commit      test_dispatch: test_nothing_exists_and_nothing_rings_before_the_callers_commit
   a doorbell never creates a row                               here: test_rule_1_a_doorbell_for_no_row_makes_none
 2 a loser writes nothing                                       test_traces: test_a_released_traces_zombie_commit_writes_nothing
   what a guard sees stands on the row it updates               here: test_rule_2_a_take_that_waited_sees_the_pause_that_came_first
   a false guard does not wait                                  here: test_rule_2_a_guard_that_is_false_does_not_wait
   no transaction locks two traces                              here: test_rule_2_a_child_is_accepted_while_another_trace_is_locked
 3 zombie by epoch and by worker                                test_calls: test_old_epoch_cannot_finish, test_another_worker_cannot_finish_the_same_epoch
   a rescuer that could not hear declares nobody dead           test_rescuer: test_a_rescuer_whose_own_beats_were_broken_declares_nobody_dead
   a claim commits after its worker was declared dead           test_rescue: test_a_claim_that_commits_after_its_worker_was_declared_dead_is_given_back
   a claim noted after the rows were read                       test_heartbeat: test_a_noted_claim_is_never_released
   a claim whose answer was lost                                test_heartbeat: test_a_claim_whose_answer_was_lost_is_released_by_the_second_beat
   a dead child                                                 test_heartbeat: test_a_dead_childs_work_is_given_back_at_once
   found dead                                                   test_heartbeat: test_a_worker_found_dead_registers_anew_and_takes_new_work
 4 the last two parts                                           test_calls: test_the_last_two_parts_at_a_barrier_fire_the_join_once
   counted until taken, stale afterwards                        test_calls: test_results_after_an_early_join_are_counted_until_the_step_is_taken_and_stale_afterwards
   a result while the step is taken                             test_calls: test_a_part_that_settles_while_its_step_is_taken_is_counted_or_stale_but_never_half
   a claim while the step is taken                              here: test_rule_4_a_claim_at_the_lock_of_a_take_runs_or_is_dropped
   a claim touches its call alone, a result never the trace     here: test_rule_4_a_result_does_not_wait_for_the_trace
 5 two leaders, one bad row                                     test_rescuer: test_two_leaders_at_once_are_harmless, test_one_bad_row_stops_nothing
   lost and overtaken rings                                     test_rescuer: test_a_row_that_was_overtaken_is_rung_again_however_full_its_queue_is
   a frozen leader does not keep the lead                       test_leases: test_leadership_passes_on_when_its_lease_is_over_and_not_before
 6 a time-out is decided by the row                             test_rescue: test_a_call_over_its_deadline_times_out_by_the_row_and_the_fallback_starts
   nothing is claimed without a deadline                        here: test_rule_6_nothing_runs_without_a_deadline
 7 a committed answer is not asked again                        test_rescue: test_a_reasoners_committed_answer_is_not_asked_again_when_the_callback_dies
 8 nothing starts unrecorded                                    here: test_rule_8_the_next_step_and_its_attempt_are_recorded_before_it_runs
   paused: k + 1 stays ready                                    test_traces: test_a_commit_that_finds_the_trace_paused_lets_it_go_and_leaves_the_next_step_ready
   a join that came while its trace was held                    here: test_rule_8_a_join_before_the_release_is_taken_after_it
   a take that takes nothing rolls back                         test_traces: test_a_step_that_is_not_ready_gives_the_trace_back
 9 blobs before the rows that refer to them                     here: test_rule_9_a_reference_never_commits_before_its_blob
10 permissions only shrink                                      test_executors: test_s12_permissions_only_shrink_over_five_hops
11 one writer per trace, gap-free                               test_traces: test_events_are_numbered_without_a_gap_whoever_writes_them
12 lock order under fire                                        here: test_rule_12_settles_takes_and_rescues_of_one_step_never_deadlock
13 no session setting leaks                                     test_dispatch: test_what_the_session_holds_is_flushed_first_and_its_lock_timeout_is_put_back
14 a waiting trace is a row                                     here: test_rule_14_a_waiting_trace_holds_no_connection
15 a caller's transaction                                       test_dispatch: the tests "inside a caller's transaction"
16 an answer to COMMIT that was lost: dispatch                  test_dispatch: test_a_dispatch_whose_answer_was_lost_is_settled_by_repeating_it
   commit of a trace                                            here: test_rule_16_a_commit_whose_answer_was_lost_lands_once
   result of a call                                             test_runner: test_a_result_whose_answer_was_lost_is_recorded_once_and_rings_the_join
   a transactional call                                         test_runner: test_a_transactional_commit_without_an_answer_is_settled_by_releasing_it
"""  # noqa: E501

import json
import re
import threading
from pathlib import Path

import psycopg
import pytest

from agentmesh.infrastructure import faults
from agentmesh.records import Ring, new_id
from agentmesh.state import rescue, traces
from agentmesh.state.changes import Change, End, Event, StepChange
from agentmesh.testing import race

TWO = [{"tool": "work", "as": "a"}, {"tool": "work", "as": "b"}]


def take(lab, ring):
    return traces.take(lab.mesh.db, ring.id, ring.epoch, agent="puppet", holder=lab.hand, claim_id=new_id())


def claim(lab, trace):
    start = {
        "plan": "p", "version": "1", "policy": json.dumps({"reasoner_timeout_s": 5, "callback_timeout_s": 5}),
        "node": "reason", "kind": "reason", "claim": new_id(), "received": "{}", "started": "{}",
    }  # fmt: skip
    return traces.claim(lab.mesh.db, trace.id, 1, agent="puppet", holder=lab.hand, start=start)


def test_every_test_that_the_list_names_exists():
    here = Path(__file__).parent.parent
    written = "".join(path.read_text() for path in here.rglob("test_*.py"))
    named = re.findall(r"(test_\w+)(?=,|$)", __doc__, re.MULTILINE)
    assert len(named) > 30
    assert [one for one in named if f"def {one}(" not in written] == []


@pytest.mark.parametrize("kind", ["trace", "step", "call"])
def test_rule_1_a_doorbell_for_no_row_makes_none(lab, kind):
    before = lab.everything()
    task = "tool.work" if kind == "call" else "agent.puppet"
    assert tuple(lab.mesh.controller.run_once(Ring(kind, new_id(), 1, "agent.puppet", task, new_id()))) == ()
    assert lab.everything() == before


def test_rule_2_a_take_that_waited_sees_the_pause_that_came_first(lab):
    trace = lab.open("work")
    lab.settle(lab.claim(lab.calls(trace)[0]), result=1)
    ring, found = lab.ring(trace), []
    with psycopg.connect(lab.url) as person:
        person.execute("UPDATE mesh.traces SET paused_at = now()")
        thread = threading.Thread(target=lambda: found.append(take(lab, ring)))
        thread.start()
        lab.until_blocked(1)
        person.commit()
        thread.join(timeout=10)
    assert found == [None]
    assert lab.trace(trace)["worker_id"] is None


def test_rule_2_a_guard_that_is_false_does_not_wait(lab):
    trace = lab.open("work")
    lab.claim(lab.calls(trace)[0])
    [running] = lab.calls(trace)
    with lab.held("calls", running["id"]):
        assert lab.claim(running) is None


def test_rule_2_a_child_is_accepted_while_another_trace_is_locked(lab):
    first = lab.start({"answer": 1})
    with lab.held("traces", first.id):
        second = lab.start({"answer": 2})
        lab.bells.waiting.reverse()
        lab.answer()
        assert second.result(0) == 2
    lab.drain()
    assert first.result(0) == 1


def test_rule_4_a_claim_at_the_lock_of_a_take_runs_or_is_dropped(lab):
    trace = lab.open(*TWO, strategy="parallel", require="any")
    first, second = lab.calls(trace)
    lab.settle(lab.claim(first), result=1)
    ring = lab.ring(trace)
    claimed, taken = lab.at_lock("calls", second["id"], lambda: lab.claim(second), lambda: take(lab, ring))
    assert taken is not None
    assert lab.calls(trace)[1]["status"] == "cancelled"
    if claimed is not None:
        assert lab.settle(claimed) is None


def test_rule_4_a_result_does_not_wait_for_the_trace(lab):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])
    with lab.held("traces", trace.id):
        assert lab.settle(claimed).joined


def test_rule_6_nothing_runs_without_a_deadline(lab):
    seen = []

    def look():
        for table in ("steps", "calls"):
            seen.extend(lab.rows(f"SELECT deadline FROM mesh.{table} WHERE status = 'running'"))

    for point in ("reason.before", "call.before_effect", "callback.before"):
        faults.arm(point, look)
    lab.start({"tools": TWO, "strategy": "parallel"})
    lab.start({"tools": ["quick"]})
    lab.drain()
    assert len(seen) > 6
    assert all(row["deadline"] is not None for row in seen)


def test_rule_8_the_next_step_and_its_attempt_are_recorded_before_it_runs(lab):
    seen = []
    faults.arm("reason.before", lambda: seen.append(
        lab.rows("SELECT count(*) AS n FROM mesh.attempts WHERE kind = 'reason' AND outcome IS NULL")[0]["n"]
    ))  # fmt: skip
    trace = lab.start(*[{"tools": ["quick"]}] * 3, policy={"trigger_next_action": True})
    lab.drain()
    assert seen == [1, 1, 1, 1]
    assert lab.outcomes(trace, "reason") == ["won"] * 4


def test_rule_8_a_join_before_the_release_is_taken_after_it(lab):
    """The tools step joins before the fan-out's own worker has rung anything."""
    trace = lab.start({"tools": TWO, "strategy": "parallel"})
    rings = []

    def tools_are_faster():
        for call in lab.calls(trace):
            rings.extend(lab.settle(lab.claim(call), result=1).rings)

    faults.arm("tools.after_commit", tools_are_faster)
    lab.drain()
    faults.disarm()
    assert [ring.kind for ring in rings] == ["step"]
    lab.bells.ring(rings)
    lab.drain()
    assert trace.result(0) == {"a": 1, "b": 1}


def test_rule_9_a_reference_never_commits_before_its_blob(lab):
    trace = lab.start({"answer": "x" * 100_000})
    seen = []
    faults.arm("finish.before_commit", lambda: seen.append(lab.rows("SELECT count(*) AS n FROM mesh.blobs")[0]["n"]))
    lab.drain()
    assert seen[0] >= 1
    assert trace.result(0) == "x" * 100_000


def test_rule_12_settles_takes_and_rescues_of_one_step_never_deadlock(lab):
    for _ in range(3):
        trace = lab.open(*[{"tool": "work", "as": f"r{n}"} for n in range(6)], strategy="parallel", require="any")
        claimed = [lab.claim(one) for one in lab.calls(trace)]
        lab.settle(claimed[0], result=1)
        ring = lab.ring(trace)
        rows = [one.row | {"kind": "call", "worker_id": lab.hand.worker_id} for one in claimed]
        outcomes = race(
            *[lambda c=c: lab.settle(c, result=1) for c in claimed[1:]],
            *[lambda r=r: rescue.give_back(lab.mesh.db, r, "lost") for r in rows],
            lambda ring=ring: take(lab, ring), lambda ring=ring: take(lab, ring),
        )  # fmt: skip
        assert [one for one in outcomes if isinstance(one, BaseException)] == []
        assert sum(isinstance(one, traces.Taken) for one in outcomes) == 1
        assert {one["status"] for one in lab.calls(trace)} <= {"done", "cancelled"}
        taken = next(one for one in outcomes if isinstance(one, traces.Taken))
        step = taken.step["id"]
        landed = traces.commit(lab.mesh.db, taken.trace, Change(
            events=(Event("CALLBACK_RESULT", step), Event("EXEC_DONE", step)), steps=(StepChange(step, "failed"),),
            end=End("done", result=1),
        ))  # fmt: skip
        assert landed is not None
        lab.bells.waiting.clear()


def test_rule_14_a_waiting_trace_holds_no_connection(lab):
    for _ in range(5):
        lab.open("work")
    assert lab.mesh.db.engine.pool.checkedout() == 0
    assert lab.mesh.notes.claims() == {}
    lab.drain()


class Answerless:
    """The database of a holder who loses the answer to his next commit; `landed` says whether the server had it."""

    def __init__(self, db, *, landed, then=lambda: None):
        self.db, self.landed, self.then, self.left = db, landed, then, 1

    def once(self, sql, params=None):
        if not self.left:
            return self.db.once(sql, params)
        self.left -= 1
        if self.landed:
            self.db.once(sql, params)
        self.then()
        raise psycopg.OperationalError("the answer to COMMIT was lost")

    def begin(self):
        return self.db.begin()


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_rule_16_a_commit_whose_answer_was_lost_lands_once(lab, landed, keep):
    trace = lab.start()
    taken = claim(lab, trace)
    end = None if keep else End("done", result=1)
    step = (StepChange(taken.step["id"], "running" if keep else "done", timeout_s=5),)
    events = (Event("NOTE", taken.step["id"]),) + (() if keep else (Event("EXEC_DONE"),))
    found = traces.commit(
        Answerless(lab.mesh.db, landed=landed), taken.trace, Change(events=events, steps=step, end=end, keep=keep)
    )
    assert found == traces.Landed(keep, 1 if keep else 2)
    assert lab.events(trace).count("NOTE") == 1


def test_rule_16_a_lost_commit_of_somebody_who_was_rescued_meanwhile_is_lost(lab):
    trace = lab.start({"answer": 1})
    taken = claim(lab, trace)
    row = {"kind": "trace", "id": trace.id, "tenant_id": "default", "epoch": 1, "worker_id": lab.hand.worker_id}
    db = Answerless(lab.mesh.db, landed=False, then=lambda: lab.bells.ring(rescue.give_back(lab.mesh.db, row, "lost")))
    assert traces.commit(db, taken.trace, Change(end=End("done", result=666), events=(Event("EXEC_DONE"),))) is None
    assert trace.status() == "running"
    lab.bells.waiting.popleft()


def test_rule_16_a_release_that_landed_is_no_keep_when_the_same_worker_holds_the_trace_again(lab):
    """The commit let the trace go; before it is settled, another thread of this worker has taken its joined step."""
    trace = lab.open("work")
    lab.settle(lab.claim(lab.calls(trace)[0]), result=1)
    taken = take(lab, lab.ring(trace))
    change = Change(events=(Event("NOTE"),), steps=(StepChange(taken.step["id"], "ready", phase="callback"),))

    def taken_again():
        assert take(lab, lab.ring(trace)) is not None

    found = traces.commit(Answerless(lab.mesh.db, landed=True, then=taken_again), taken.trace, change)
    assert found is not None
    assert found.kept is False
