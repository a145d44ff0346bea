"""What was lost with its worker runs alone next, and is parked when no process survives it."""

import pytest

from agentmesh.infrastructure import faults
from agentmesh.records import Ring, new_id
from agentmesh.state import rescue, traces
from agentmesh.testing import broken


class Died(BaseException):
    """The worker is gone in the middle of it."""


def die():
    raise Died


def lose(lab, claimed):
    """The worker that runs the call is gone."""
    row = claimed.row | {"kind": "call", "worker_id": claimed.holder.worker_id}
    return rescue.give_back(lab.mesh.db, row, "lost")


def lose_step(lab, taken):
    held = taken.trace
    row = {"kind": "trace", "id": held.id, "tenant_id": held.tenant_id, "epoch": held.epoch,
           "worker_id": held.holder.worker_id}  # fmt: skip
    return rescue.give_back(lab.mesh.db, row, "lost")


def letters(lab):
    return lab.rows("SELECT * FROM mesh.dead_letters")


def lost_until_parked(lab, trace, slot=0):
    """Claim and lose the call until nothing is left to claim; how often it was lost."""
    losses = 0
    while (call := lab.calls(trace)[slot])["status"] == "ready":
        lose(lab, lab.claim(call))
        losses += 1
    return losses


def test_a_call_that_was_lost_is_claimed_by_a_lone_process_alone(lab):
    trace = lab.open("work")
    [call] = lab.calls(trace)
    lose(lab, lab.claim(call, alone=False))
    [suspect] = lab.calls(trace)
    assert lab.claim(suspect, alone=False) is None
    assert lab.claim(suspect) is not None


def test_a_call_that_was_handed_back_is_no_suspect(lab):
    trace = lab.open("work")
    first = lab.claim(lab.calls(trace)[0])
    lab.settle(first, "released")
    assert lab.claim(lab.calls(trace)[0], alone=False) is not None


def test_f16_a_call_lost_three_times_while_alone_is_parked_with_its_evidence(lab):
    trace = lab.open("work")
    assert lost_until_parked(lab, trace) == 4
    [call] = lab.calls(trace)
    assert (call["status"], call["error"]["code"]) == ("failed", "E_POISON")
    [letter] = letters(lab)
    assert (letter["code"], letter["fingerprint"], letter["call_id"]) == ("E_POISON", "E_POISON:work", call["id"])
    assert [one["n"] for one in letter["evidence"]["attempts"]] == [1, 2, 3, 4]
    lab.bells.waiting.clear()
    lab.bells.ring([lab.ring(trace)])
    lab.drain()
    row = lab.trace(trace)
    assert (row["status"], row["error"]["code"]) == ("failed", "E_POISON")
    assert broken(lab.url) == {}


def test_f16_the_next_candidate_runs_when_the_first_is_parked(lab):
    trace = lab.open("work", "lasting", strategy="fallback")
    lost_until_parked(lab, trace)
    first, second = lab.calls(trace)
    assert (first["status"], second["status"]) == ("failed", "ready")
    assert lab.claim(second, alone=False) is not None


def test_an_intent_may_say_how_many_losses_it_bears(lab):
    trace = lab.open("work", policy={"max_losses": 1})
    assert lost_until_parked(lab, trace) == 2


def test_a_once_call_that_was_lost_is_unknown_and_not_parked(lab):
    trace = lab.open("twice")
    lose(lab, lab.claim(lab.calls(trace)[0]))
    assert lab.calls(trace)[0]["error"]["code"] == "E_OUTCOME_UNKNOWN"
    assert letters(lab) == []


def taken(lab, trace, *, alone=True):
    step = lab.step(trace)
    return traces.take(
        lab.mesh.db, step["id"], step["epoch"], agent="puppet", holder=lab.hand, claim_id=new_id(), alone=alone
    )


def started(lab):
    trace = lab.start({"answer": 1})
    ring = lab.bells.waiting.pop()
    return trace, lab.mesh.runtime("puppet").prepare_context(ring)


def test_a_reason_step_that_was_lost_is_taken_by_a_lone_process_alone(lab):
    trace, held = started(lab)
    lose_step(lab, held)
    assert taken(lab, trace, alone=False) is None
    assert taken(lab, trace) is not None


def test_f16_a_reason_step_lost_three_times_while_alone_ends_its_trace(lab):
    trace, held = started(lab)
    for _ in range(3):
        lose_step(lab, held)
        held = taken(lab, trace)
    assert lose_step(lab, held) == []
    row, step = lab.trace(trace), lab.step(trace)
    assert (row["status"], row["error"]["code"], step["status"]) == ("failed", "E_POISON", "failed")
    assert lab.events(trace)[-2:] == ["EXEC_RESCUE", "EXEC_FAIL"]
    [letter] = letters(lab)
    assert letter["fingerprint"] == f"E_POISON:puppet:{step['node']}"
    assert len(letter["evidence"]["attempts"]) == 4
    assert broken(lab.url) == {}


def test_inline_calls_that_were_lost_are_suspects_and_their_step_is_not(lab):
    trace = lab.start({"tools": ["quick"]})
    held = lab.mesh.runtime("puppet").prepare_context(lab.bells.waiting.pop())
    faults.arm("tools.after_commit", die)
    with pytest.raises(Died):
        lab.mesh.runtime("puppet").run(held)
    faults.disarm()
    row = lab.trace(trace)
    rescue.give_back(
        lab.mesh.db, {"kind": "trace", **{k: row[k] for k in ("id", "tenant_id", "epoch", "worker_id")}}, "lost"
    )
    assert (lab.step(trace)["losses"], lab.calls(trace)[0]["losses"]) == (0, 1)


@pytest.fixture
def worker_like(lab, monkeypatch):
    """The lab's mesh as a worker that hands suspects on: what it handed on."""
    handed: list[Ring] = []
    monkeypatch.setattr(type(lab.mesh), "_alone", handed.append)
    return handed


def test_a_worker_hands_a_suspect_call_on_and_leaves_a_claimed_one(lab, worker_like):
    trace = lab.open("work")
    ring = lab.bells.waiting.pop()
    lose(lab, lab.claim(lab.calls(trace)[0]))
    [suspect] = lab.calls(trace)
    again = Ring("call", suspect["id"], suspect["epoch"], ring.queue, ring.task, trace.id)
    lab.mesh.controller.run_once(again)
    lab.mesh.controller.run_once(ring)
    assert worker_like == [again]


def test_a_worker_hands_a_suspect_step_on(lab, worker_like):
    trace, held = started(lab)
    lose_step(lab, held)
    again = lab.ring(trace)
    lab.mesh.controller.run_once(again)
    assert worker_like == [again]
