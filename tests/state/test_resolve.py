"""A `once` call was lost: a person says what became of it, and its trace goes on from there."""

from contextlib import suppress

import pytest

from agentmesh.errors import BadResult, NotResolvable, NotRetryable, UnknownCall
from agentmesh.execution.tools import register_tool
from agentmesh.infrastructure import faults
from agentmesh.records import new_id
from agentmesh.state import rescue, retry
from agentmesh.state.calls import mark_stale
from agentmesh.testing import broken, race
from tests.faults import byhand
from tests.faults.byhand import AWAY, failing


def lost(lab, *tools, **options):
    """A trace that has failed with its first `once` calls, which may have taken effect; their claims."""
    trace = lab.open(*tools, **options)
    claims = [lab.claim(one) for one in lab.calls(trace) if one["effect"] == "once" and one["status"] == "ready"]
    for one in claims:
        rescue.give_back(lab.mesh.db, one.row | {"kind": "call", "worker_id": one.holder.worker_id}, "lost")
    lab.bells.waiting.clear()
    lab.bells.ring([lab.ring(trace)])
    lab.drain()
    assert trace.status() == "failed"
    return trace, claims


def resolve(lab, call, to, result=None):
    lab.mesh.answers.resolve(call["id"], to, result=result, by="ada", reason="asked the bank", tenant="default")


def once(lab, trace):
    return next(one for one in lab.calls(trace) if one["effect"] == "once" and one["status"] == "failed")


def test_what_has_taken_effect_is_not_done_again_and_its_trace_goes_on_with_the_result(lab):
    trace, _ = lost(lab, "twice")
    resolve(lab, once(lab, trace), "done", 7)
    lab.drain()
    assert trace.result(0) == 7
    assert [(one["kind"], one["outcome"]) for one in lab.attempts(trace)] == [("tool", "lost")]
    assert lab.outcomes(trace, "person") == ["won"]
    [resumed] = [one for one in lab.mesh.trace_writer.get(trace.id) if one["name"] == "EXEC_RESUME"]
    assert resumed["body"] == {
        "resolve": str(lab.calls(trace)[0]["id"]), "as": "done", "by": "ada", "reason": "asked the bank",
    }  # fmt: skip


def test_what_has_not_taken_effect_lets_the_next_of_its_slot_run(lab):
    trace, _ = lost(lab, "twice", "work", strategy="fallback")
    assert lab.calls(trace)[1]["status"] == "cancelled"
    resolve(lab, once(lab, trace), "failed")
    lab.drain()
    assert trace.result(0) == 1
    assert lab.calls(trace)[0]["status"] == "failed"


def test_what_has_not_taken_effect_and_has_no_other_fails_its_trace_by_another_name(lab):
    trace, _ = lost(lab, "twice")
    assert lab.trace(trace)["error"]["code"] == "E_OUTCOME_UNKNOWN"
    resolve(lab, once(lab, trace), "failed")
    lab.drain()
    assert (trace.status(), lab.trace(trace)["error"]["code"]) == ("failed", "E_TOOL")


def test_what_runs_again_is_another_call_under_another_key(lab):
    trace, _ = lost(lab, "work", {"tool": "twice", "args": {"n": 4}}, strategy="parallel")
    before = once(lab, trace)
    resolve(lab, before, "again")
    assert lab.step(trace)["pending"] == 2  # an early join had cancelled the other
    lab.drain()
    assert trace.result(0) == {"work": 1, "twice": 4}
    old, new = (next(one for one in lab.calls(trace) if one["tool"] == "twice" and one["status"] == status)
                for status in ("cancelled", "done"))  # fmt: skip
    assert old["id"] == before["id"]
    assert old["idem_key"] != new["idem_key"]
    assert lab.outcomes(trace) == ["lost", "won", "won"]


def test_it_may_be_lost_and_run_again_more_than_once(lab):
    trace, _ = lost(lab, "twice")
    for _ in range(2):
        resolve(lab, once(lab, trace), "again")
        [ready] = [one for one in lab.calls(trace) if one["status"] == "ready"]
        claimed = lab.claim(ready)
        rescue.give_back(lab.mesh.db, claimed.row | {"kind": "call", "worker_id": lab.hand.worker_id}, "lost")
        lab.bells.waiting.clear()
        lab.bells.ring([lab.ring(trace)])
        lab.drain()
    resolve(lab, once(lab, trace), "done", 1)
    lab.drain()
    assert trace.result(0) == 1
    assert len({one["idem_key"] for one in lab.calls(trace)}) == 3


def test_of_two_that_were_lost_each_is_resolved(lab):
    trace, _ = lost(lab, {"tool": "twice", "as": "a"}, {"tool": "twice", "as": "b"}, strategy="parallel")
    resolve(lab, lab.calls(trace)[0], "done", 1)
    lab.drain()
    assert (trace.status(), lab.trace(trace)["error"]["code"]) == ("failed", "E_OUTCOME_UNKNOWN")
    resolve(lab, lab.calls(trace)[1], "done", 2)
    lab.drain()
    assert trace.result(0) == {"a": 1, "b": 2}


def test_of_two_people_who_know_at_once_one_is_believed(lab):
    trace, _ = lost(lab, "twice")
    call = once(lab, trace)
    said = race(lambda: resolve(lab, call, "done", 1), lambda: resolve(lab, call, "failed"),
                lambda: resolve(lab, call, "again"))  # fmt: skip
    assert sum(one is None for one in said) == 1
    assert sum(isinstance(one, NotResolvable) for one in said) == 2
    assert lab.events(trace).count("EXEC_RESUME") == 1


@pytest.mark.parametrize("to", ["done", "failed", "again"])
def test_the_answer_of_a_worker_that_was_taken_for_dead_changes_nothing_any_more(lab, to):
    trace, [claimed] = lost(lab, "twice")
    assert lab.settle(claimed, result=666) is None
    resolve(lab, once(lab, trace), to, 7)
    assert lab.settle(claimed, result=666) is None
    mark_stale(lab.mesh.db, claimed)
    lab.drain()
    assert trace.status() == ("failed" if to == "failed" else "done")
    assert lab.outcomes(trace)[0] == "stale"
    assert 666 not in [one["result"] for one in lab.calls(trace)]


def told_again(lab, call, to, nth, fate):
    """How often the n-th round trip was lost; who is told of it says again what became of the call."""
    with failing(nth, faults.ACTIONS[fate]) as fault:
        try:
            resolve(lab, call, to, 7)
        except AWAY:
            with suppress(NotResolvable):  # it was heard before
                resolve(lab, call, to, 7)
    return fault.hits


@pytest.mark.parametrize("fate", ["drop", "commit_unknown"])
@pytest.mark.parametrize("to", ["done", "again"])
def test_f08_a_person_whose_statement_was_lost_says_it_again_and_is_counted_once(lab, fate, to):
    hits = nth = 1
    while hits:
        trace, _ = lost(lab, "twice")
        hits = told_again(lab, once(lab, trace), to, nth, fate)
        byhand.work(lab, trace)
        assert trace.status() == "done", nth
        assert lab.events(trace).count("EXEC_RESUME") == 1
        assert broken(lab.url) == {}, nth
        nth += 1
    assert nth > 5


def test_what_is_no_lost_once_call_is_not_resolved(lab):
    trace = lab.open("boom")
    with pytest.raises(NotResolvable, match="has not failed"):
        resolve(lab, lab.calls(trace)[0], "again")
    lab.drain()
    before = lab.everything()
    with pytest.raises(NotResolvable, match="no failed call of effect 'once'"):
        resolve(lab, lab.calls(trace)[0], "again")
    with pytest.raises(UnknownCall):
        resolve(lab, {"id": new_id()}, "failed")
    with pytest.raises(UnknownCall):
        lab.mesh.answers.resolve(lab.calls(trace)[0]["id"], "again", by="eve", tenant="acme")
    assert lab.everything() == before


def test_what_its_trace_went_on_without_is_not_resolved(lab):
    trace = lab.open("twice", "work", strategy="parallel", require="any")
    claimed = lab.claim(lab.calls(trace)[0])
    rescue.give_back(lab.mesh.db, claimed.row | {"kind": "call", "worker_id": lab.hand.worker_id}, "lost")
    lab.drain()
    assert trace.status() == "done"
    before = lab.everything()
    with pytest.raises(NotResolvable):
        resolve(lab, lab.calls(trace)[0], "done", 1)
    assert lab.everything() == before


def test_a_retry_names_the_call_that_is_to_be_resolved(lab):
    trace, _ = lost(lab, "twice")
    with pytest.raises(NotRetryable) as refused:
        retry.retry(lab.mesh.db, tenant="default", trace_id=trace.id, by="ada")
    assert refused.value.next == f"agentmesh resolve {once(lab, trace)['id']}"


def test_a_result_is_checked_against_its_tools_schema(make_lab, tools):
    @register_tool("pay", registry=tools, effect="once")
    def pay() -> int:
        return 1

    lab = make_lab()
    lab.mesh.registry.announce(lab.mesh.db, ["default"])
    trace, _ = lost(lab, "pay")
    with pytest.raises(BadResult):
        resolve(lab, once(lab, trace), "done", "a lot")
    assert trace.status() == "failed"
    resolve(lab, once(lab, trace), "done", 100)
    lab.drain()
    assert trace.result(0) == 100
