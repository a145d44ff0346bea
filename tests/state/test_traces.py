"""A held trace: claim, take, commit, pause. Whoever lost it writes nothing."""

import json

import psycopg
import pytest

from agentmesh.records import Ring, new_id
from agentmesh.state import steering, traces
from agentmesh.state.changes import Change, End, Event, MemoryWrite, NewStep, StepChange
from agentmesh.testing import race


def start_values(lab):
    return {
        "plan": "p", "version": "1", "policy": json.dumps({"reasoner_timeout_s": 5}), "node": "reason", "kind": "reason",
        "claim": new_id(), "received": "{}", "started": "{}",
    }  # fmt: skip


def claim(lab, trace, holder=None, epoch=1, agent="puppet"):
    return traces.claim(lab.mesh.db, trace.id, epoch, agent=agent, holder=holder or lab.hand, start=start_values(lab))


def take(lab, ring, holder=None):
    return traces.take(lab.mesh.db, ring.id, ring.epoch, agent="puppet", holder=holder or lab.hand, claim_id=new_id())


def finish(taken, *, memory=(), result=1):
    """A change that ends the trace."""
    step = taken.step["id"]
    return Change(
        events=(Event("CALLBACK_RESULT", step), Event("EXEC_DONE", step)), memory=memory,
        steps=(StepChange(step, "done"),), end=End("done", result=result),
    )  # fmt: skip


def joined(lab, *tools):
    """A trace whose tools step has joined, and its doorbell."""
    trace = lab.open(*(tools or ("work",)), strategy="parallel")
    for call in lab.calls(trace):
        lab.settle(lab.claim(call), result=1)
    lab.bells.waiting.clear()
    return trace, lab.ring(trace)


# --- claim


def test_eight_claimers_of_one_trace_leave_one_holder(lab):
    trace = lab.start()
    taken = race(*[lambda: claim(lab, trace)] * 8)
    assert sum(one is not None for one in taken) == 1
    assert lab.events(trace) == ["BIR_DISPATCH", "ACP_RECEIVE", "RUN_ONCE_START", "EXEC_START"]
    assert len(lab.steps(trace)) == 1


@pytest.mark.parametrize("wrong", [{"epoch": 2}, {"agent": "somebody"}])
def test_a_ring_for_another_epoch_or_agent_claims_no_trace(lab, wrong):
    trace = lab.start()
    before = lab.everything()
    assert claim(lab, trace, **wrong) is None
    assert lab.everything() == before


def test_a_paused_trace_is_not_started(lab):
    trace = lab.start()
    lab.rows("UPDATE mesh.traces SET paused_at = now()")
    assert claim(lab, trace) is None
    assert trace.status() == "queued"
    lab.rows("UPDATE mesh.traces SET paused_at = NULL")
    assert claim(lab, trace) is not None


def test_a_delayed_trace_is_not_claimed_before_its_time(lab):
    trace = lab.start(delay=60)
    assert not lab.bells.waiting
    assert claim(lab, trace) is None
    lab.shift(61)
    assert claim(lab, trace) is not None


def test_the_context_row_comes_with_the_first_claim(lab):
    trace = lab.start(context_id="new-one")
    assert lab.rows("SELECT * FROM mesh.contexts") == []
    claim(lab, trace)
    assert lab.rows("SELECT id FROM mesh.contexts") == [{"id": "new-one"}]


# --- take


def test_eight_takers_of_a_joined_step_leave_one_holder(lab):
    trace, ring = joined(lab)
    taken = race(*[lambda: take(lab, ring)] * 8)
    assert sum(one is not None for one in taken) == 1
    assert lab.events(trace).count("TOOL_EXEC") == 1
    assert len(lab.attempts(trace, "callback")) == 1


def test_a_step_that_is_not_ready_gives_the_trace_back(lab):
    trace = lab.open("work")
    before = lab.everything()
    assert take(lab, lab.ring(trace)) is None
    assert lab.everything() == before


def test_a_trace_that_somebody_holds_is_not_taken_even_when_a_step_of_it_is_joined(lab):
    _, ring = joined(lab)
    other = lab.worker()
    lab.rows("UPDATE mesh.traces SET worker_id = %(w)s", w=other.worker_id)
    before = lab.everything()
    assert take(lab, ring) is None
    assert lab.everything() == before


def test_a_step_of_another_epoch_is_not_taken(lab):
    trace, ring = joined(lab)
    before = lab.everything()
    assert take(lab, Ring("step", ring.id, ring.epoch + 1, ring.queue, ring.task, trace.id)) is None
    assert lab.everything() == before


def test_a_paused_trace_keeps_its_results_and_is_not_taken(lab):
    trace = lab.open("work")
    lab.rows("UPDATE mesh.traces SET paused_at = now()")
    lab.settle(lab.claim(lab.calls(trace)[0]), result=5)
    assert lab.step(trace)["status"] == "joined"
    assert take(lab, lab.ring(trace)) is None
    lab.rows("UPDATE mesh.traces SET paused_at = NULL")
    assert take(lab, lab.ring(trace)).calls[0]["result"] == 5


def test_taking_the_step_closes_what_is_still_open(lab):
    trace = lab.open(
        "work", {"tool": "work", "as": "b"}, {"tool": "work", "as": "c"}, strategy="parallel", require="any"
    )
    first, second, _ = lab.calls(trace)
    lab.settle(lab.claim(first), result=1)
    running = lab.claim(second)
    taken = take(lab, lab.ring(trace))
    assert [one["status"] for one in taken.calls] == ["done", "cancelled", "cancelled"]
    assert lab.step(trace)["pending"] == 0
    assert lab.settle(running) is None


# --- commit


def test_a_released_traces_zombie_commit_writes_nothing(lab):
    trace = lab.start()
    taken = claim(lab, trace)
    lab.rows("UPDATE mesh.traces SET worker_id = NULL, claim_id = NULL, epoch = epoch + 1")
    before = lab.everything()
    memory = (MemoryWrite("long_term", "k", 1, "test"), MemoryWrite("short_term", "k", 1, "test"))
    assert traces.commit(lab.mesh.db, taken.trace, finish(taken, memory=memory)) is None
    assert lab.everything() == before


def test_a_zombie_cannot_commit_under_the_next_holders_epoch(lab):
    trace = lab.start()
    taken = claim(lab, trace)
    other = lab.worker()
    lab.rows("UPDATE mesh.traces SET worker_id = %(w)s", w=other.worker_id)
    assert traces.commit(lab.mesh.db, taken.trace, finish(taken)) is None


def test_an_old_epoch_of_the_same_worker_cannot_commit(lab):
    trace = lab.start()
    taken = claim(lab, trace)
    lab.rows("UPDATE mesh.traces SET epoch = epoch + 1")
    assert traces.commit(lab.mesh.db, taken.trace, finish(taken)) is None


def test_two_commits_of_one_holder_land_once(lab):
    trace = lab.start()
    taken = claim(lab, trace)
    landed = lab.at_lock("traces", trace.id, *[
        lambda n=n: traces.commit(lab.mesh.db, taken.trace, finish(taken, result=n)) for n in range(4)
    ])  # fmt: skip
    assert sum(one is not None for one in landed) == 1
    assert lab.events(trace).count("EXEC_DONE") == 1


def test_an_end_that_loses_to_a_rescue_at_the_lock_writes_nothing(lab):
    trace = lab.start()
    taken = claim(lab, trace)
    from agentmesh.state import rescue

    row = {"kind": "trace", "id": trace.id, "tenant_id": "default", "epoch": 1, "worker_id": lab.hand.worker_id}
    landed, rings = lab.at_lock(
        "traces",
        trace.id,
        lambda: traces.commit(lab.mesh.db, taken.trace, finish(taken)),
        lambda: rescue.give_back(lab.mesh.db, row, "lost"),
    )
    assert (landed is not None) != bool(rings)
    assert trace.status() == ("done" if landed else "running")
    assert ("EXEC_DONE" in lab.events(trace)) != ("EXEC_RESCUE" in lab.events(trace))


def test_events_are_numbered_without_a_gap_whoever_writes_them(lab):
    trace = lab.start()
    taken = claim(lab, trace)
    writers = [lambda n=n: lab.mesh.trace_writer.record(trace.id, "NOTE", {"n": n}) for n in range(7)]
    keep = Change(events=(Event("REASONER_NOTE"),), keep=True)
    race(*writers, lambda: traces.commit(lab.mesh.db, taken.trace, keep))
    seqs = [one["seq"] for one in lab.mesh.trace_writer.get(trace.id)]
    assert seqs == list(range(1, 13))


def test_no_event_is_added_to_an_ended_trace(lab):
    trace = lab.start()
    lab.drain()
    with pytest.raises(Exception, match="E_TRACE_UNKNOWN"):
        lab.mesh.trace_writer.record(trace.id, "NOTE")


def test_a_second_successor_of_one_step_is_refused_and_nothing_of_it_lands(lab):
    trace = lab.start()
    taken = claim(lab, trace)
    step = taken.step["id"]

    def next_step():
        return Change(
            events=(Event("EXEC_LOOP"),), keep=True,
            new_steps=(NewStep(new_id(), "reason", "reason", "running", 2, 2, step, timeout_s=5),),
        )  # fmt: skip

    assert traces.commit(lab.mesh.db, taken.trace, next_step()).kept
    before = lab.everything()
    with pytest.raises(psycopg.errors.UniqueViolation):
        raise_or(traces.commit(lab.mesh.db, taken.trace, next_step()))
    assert lab.everything() == before


def raise_or(landed):
    assert landed is None, landed
    raise psycopg.errors.UniqueViolation


# --- paused while it is held


def test_a_commit_that_finds_the_trace_paused_lets_it_go_and_leaves_the_next_step_ready(lab):
    trace = lab.start()
    taken = claim(lab, trace)
    lab.rows("UPDATE mesh.traces SET paused_at = now()")
    step = taken.step["id"]
    landed = traces.commit(lab.mesh.db, taken.trace, Change(
        steps=(StepChange(step, "done"),), keep=True, events=(Event("CALLBACK_RESULT", step),),
        new_steps=(NewStep(new_id(), "reason", "reason", "running", 2, 2, step, timeout_s=5),),
    ))  # fmt: skip
    assert not landed.kept
    row = lab.trace(trace)
    assert (row["worker_id"], row["claim_id"], row["epoch"], row["status"]) == (None, None, 2, "running")
    assert lab.step(trace)["status"] == "ready"


def test_a_trace_paused_between_two_inline_calls_waits_and_goes_on_when_resumed(lab):
    from agentmesh.infrastructure import faults

    trace = lab.start({"tools": ["quick", {"tool": "quick", "as": "b", "args": {"n": 5}}], "strategy": "serial"})
    faults.arm("call.after_effect", lambda: lab.rows("UPDATE mesh.traces SET paused_at = now()"))
    lab.answer()
    faults.disarm()
    row, step = lab.trace(trace), lab.step(trace)
    assert (row["status"], row["worker_id"], step["status"]) == ("running", None, "waiting")
    assert [one["status"] for one in lab.calls(trace)] == ["done", "ready"]
    assert lab.calls(trace)[1]["worker_id"] is None
    lab.rows("UPDATE mesh.traces SET paused_at = NULL")
    [_, second] = lab.calls(trace)
    lab.bells.waiting.append(Ring("call", second["id"], second["epoch"], second["queue"], second["task"], trace.id))
    lab.drain()
    assert trace.result(0) == 6


def test_a_trace_paused_before_its_inline_round_waits_and_loses_no_call(lab):
    from agentmesh.infrastructure import faults

    trace = lab.start({"tools": ["quick", {"tool": "quick", "as": "b"}], "strategy": "parallel"})
    faults.arm("tools.before_commit", lambda: lab.rows("UPDATE mesh.traces SET paused_at = now()"))
    lab.answer()
    faults.disarm()
    assert {one["status"] for one in lab.calls(trace)} == {"held"}
    lab.bells.ring(steering.resume(lab.mesh.db, tenant="default", trace_id=trace.id, by="ada").rings)
    lab.drain()
    assert trace.result(0) == {"quick": 1, "b": 1}


def test_a_trace_paused_while_a_handler_is_to_run_goes_on_with_the_callback_alone(lab):
    from agentmesh.execution.callbacks import HANDLERS, register_callback
    from agentmesh.infrastructure import faults

    seen = []

    @register_callback("once-only")
    def once_only(result, session):
        seen.append(result)

    trace = lab.start({"answer": 3}, policy={"callbacks": ["once-only"]})
    faults.arm("reason.after_answer", lambda: lab.rows("UPDATE mesh.traces SET paused_at = now()"))
    lab.answer()
    faults.disarm()
    assert seen == []
    assert (lab.step(trace)["status"], lab.step(trace)["phase"]) == ("ready", "callback")
    lab.rows("UPDATE mesh.traces SET paused_at = NULL")
    lab.bells.waiting.append(lab.ring(trace))
    lab.drain()
    HANDLERS.pop("once-only")
    assert (trace.result(0), seen) == (3, [3])
    assert lab.outcomes(trace, "reason") == ["won"]


# --- memory


def test_memory_versions_of_one_context_have_no_hole_under_eight_writers(lab):
    from agentmesh.state.memory import MemoryEngine

    engine = MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1")
    race(*[lambda n=n: engine.store("k", n) for n in range(8)])
    versions = lab.rows("SELECT version, mem_seq FROM mesh.memory ORDER BY version")
    assert [one["version"] for one in versions] == list(range(1, 9))
    assert [one["mem_seq"] for one in versions] == list(range(1, 9))


def test_two_traces_of_one_context_write_the_same_long_term_key_in_turn(lab):
    taken = [claim(lab, lab.start()) for _ in range(2)]
    write = (MemoryWrite("long_term", "k", 1, "test"), MemoryWrite("short_term", "k", 1, "test"))
    landed = race(*[
        lambda one=one: traces.commit(lab.mesh.db, one.trace, finish(one, memory=write)) for one in taken
    ])  # fmt: skip
    assert all(one is not None and not isinstance(one, BaseException) for one in landed)
    versions = lab.rows("SELECT type, version FROM mesh.memory ORDER BY type, version")
    assert [(one["type"], one["version"]) for one in versions] == [
        ("long_term", 1), ("long_term", 2), ("short_term", 1), ("short_term", 1),
    ]  # fmt: skip
