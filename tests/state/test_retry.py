"""Retry by hand: the failed part runs again under the same rows and keys, and what had succeeded stays."""

import pytest

from agentmesh.errors import NotRetryable
from agentmesh.execution import router
from agentmesh.records import Failure
from agentmesh.state import retry
from agentmesh.testing import broken, race

FAILED = Failure("E_TOOL", "it broke", permanent=True)


def again(lab, trace):
    lab.bells.ring(retry.retry(lab.mesh.db, tenant="default", trace_id=trace.id, by="ada"))


def fail(lab, trace, *slots):
    """The calls of these slots fail, all others succeed; the trace ends."""
    lab.bells.waiting.clear()
    for call in sorted(lab.calls(trace), key=lambda one: one["slot"] in slots):
        lost = call["slot"] in slots
        lab.settle(lab.claim(call), "failed" if lost else "won", failure=FAILED if lost else None, result=1)
    lab.bells.ring([lab.ring(trace)])
    lab.drain()
    assert lab.trace(trace)["status"] == "failed"


def three(lab, **options):
    return lab.open(*[{"tool": "work", "as": f"r{n}"} for n in range(3)], strategy="parallel", **options)


def test_the_failed_call_runs_again_and_what_succeeded_stays(lab):
    trace = three(lab)
    fail(lab, trace, 1)
    before = lab.calls(trace)
    again(lab, trace)
    first, second, third = lab.calls(trace)
    assert (first["status"], second["status"], third["status"]) == ("done", "ready", "done")
    assert (second["idem_key"], second["epoch"], second["max_attempts"]) == (before[1]["idem_key"], 2, 2)
    assert lab.step(trace)["pending"] == 1
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert lab.outcomes(trace) == ["won", "won", "failed", "won"]  # in the order they started
    assert lab.events(trace)[-1] == "EXEC_DONE"
    assert broken(lab.url) == {}


def test_calls_that_an_early_join_cancelled_run_again_too(lab):
    trace = three(lab)
    first = lab.calls(trace)[0]
    lab.settle(lab.claim(first), "failed", failure=FAILED)
    lab.bells.waiting.clear()
    lab.bells.ring([lab.ring(trace)])
    lab.drain()
    assert [one["status"] for one in lab.calls(trace)] == ["failed", "cancelled", "cancelled"]
    again(lab, trace)
    assert [one["status"] for one in lab.calls(trace)] == ["ready"] * 3
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert broken(lab.url) == {}


def test_a_serial_slot_goes_on_behind_what_it_had_done(lab):
    trace = lab.open("work", {"tool": "boom"}, {"tool": "work", "as": "last"}, strategy="serial")
    lab.drain()
    assert lab.trace(trace)["status"] == "failed"
    again(lab, trace)
    assert [one["status"] for one in lab.calls(trace)] == ["done", "ready", "held"]
    assert broken(lab.url) == {}


def test_a_fallback_begins_with_its_first_candidate(lab):
    trace = lab.open("boom", {"tool": "boom", "as": "second"}, strategy="fallback")
    lab.drain()
    again(lab, trace)
    assert [one["status"] for one in lab.calls(trace)] == ["ready", "held"]
    lab.drain()
    assert lab.trace(trace)["status"] == "failed"
    assert broken(lab.url) == {}


@pytest.mark.parametrize("require", ["all", 5])
def test_groups_count_anew(lab, monkeypatch, require):
    monkeypatch.setattr(router, "GROUP", 3)
    trace = lab.open(*[{"tool": "work", "as": f"r{n}"} for n in range(7)], strategy="parallel", require=require)
    fail(lab, trace, 1, 4, 5, 6)
    again(lab, trace)
    assert broken(lab.url) == {}
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert broken(lab.url) == {}


def test_a_reason_step_that_failed_is_asked_again(lab):
    trace = lab.start({"tools": ["nobody_has_this"]})
    lab.drain()
    while lab.trace(trace)["status"] != "failed":
        lab.shift(1000)
        lab.bells.ring([lab.ring(trace)])
        lab.drain()
    again(lab, trace)
    assert lab.step(trace)["failures"] == 0
    assert lab.trace(trace)["status"] == "running"
    assert broken(lab.url) == {}


def test_a_once_call_is_not_run_twice_by_a_retry(lab):
    trace = lab.open("twice")
    fail(lab, trace, 0)
    before = lab.everything()
    with pytest.raises(NotRetryable, match="may have taken effect"):
        again(lab, trace)
    assert lab.everything() == before


def test_a_trace_that_has_not_failed_is_not_retried(lab):
    trace = lab.start({"answer": 1})
    lab.drain()
    before = lab.everything()
    with pytest.raises(NotRetryable, match="has not failed"):
        again(lab, trace)
    assert lab.everything() == before


def test_two_people_who_retry_at_once_retry_it_once(lab):
    trace = three(lab)
    fail(lab, trace, 0)
    one, other = race(*[lambda: again(lab, trace)] * 2)
    assert sorted([one is None, other is None]) == [False, True]
    assert lab.events(trace).count("EXEC_RESUME") == 1


def test_a_retried_poison_stays_a_suspect_and_its_letter_is_settled(lab):
    from tests.state.test_poison import lost_until_parked

    trace = lab.open("work")
    lost_until_parked(lab, trace)
    lab.bells.waiting.clear()
    lab.bells.ring([lab.ring(trace)])
    lab.drain()
    again(lab, trace)
    [call] = lab.calls(trace)
    assert lab.claim(call, alone=False) is None
    [letter] = lab.rows("SELECT settled_as, settled_by FROM mesh.dead_letters")
    assert (letter["settled_as"], letter["settled_by"]) == ("retried", "ada")
