"""fold against a naive interpreter, and against the countdown that SQL does."""

from dataclasses import replace
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmesh.execution.slots import Lost, Place, Won, fold
from agentmesh.records import Failure

FAILED = Failure("E_TOOL", "no")
FATAL = Failure("E_TOOL", "never", permanent=True)


@st.composite
def steps(draw):
    """(slots as (mode, fates of its calls), need): a fate is the list of outcomes of its attempts."""
    fate = st.sampled_from([("won",), ("fatal",), ("failed", "won"), ("failed", "failed"), ("failed", "fatal")])
    slots = draw(st.lists(st.tuples(st.sampled_from(["all", "first"]), st.lists(fate, min_size=1, max_size=3)),
                          min_size=1, max_size=5))  # fmt: skip
    return slots, draw(st.integers(1, len(slots)))


def ends(fate):
    """How a call ends when it may be tried twice."""
    return "won" if fate[-1] == "won" and fate[0] != "fatal" else "lost"


def naive(slots, need):
    """Who wins when every slot is played to its end, whatever the others do."""
    wins = 0
    for mode, fates in slots:
        results = [ends(one) for one in fates]
        wins += ("won" in results) if mode == "first" else all(one == "won" for one in results)
    return wins >= need


def places_of(slots):
    return [
        Place(
            UUID(int=slot * 10 + idx + 1),
            slot,
            idx,
            len(fates),
            mode == "first",
            "held" if idx else "running",
            may_retry=True,
        )
        for slot, (mode, fates) in enumerate(slots)
        for idx in range(len(fates))
    ]


def play(slots, need, order):
    """Rounds of fold until it joins; `order` picks which running calls answer in each round."""
    places = {one.id: one for one in places_of(slots)}
    fates = {one.id: list(slots[one.slot][1][one.idx]) for one in places.values()}
    wins, pending, joins = 0, len(slots), 0
    for number in range(100):
        running = sorted(one.id for one in places.values() if one.status == "running")
        if not running:
            break
        chosen = [one for n, one in enumerate(running) if order >> ((number + n) % 24) & 1] or running
        outcomes = {}
        for one in chosen:
            said = fates[one].pop(0)
            outcomes[one] = Won(1) if said == "won" else Lost(FATAL if said == "fatal" else FAILED)
        folded = fold(list(places.values()), outcomes, need=need, wins=wins, pending=pending)
        assert fold(list(places.values()), outcomes, need=need, wins=wins, pending=pending) == folded
        for call_id in folded.won:
            places[call_id] = replace(places[call_id], status="done")
        for call_id in folded.failed:
            places[call_id] = replace(places[call_id], status="failed")
        for call_id in folded.dropped:
            places[call_id] = replace(places[call_id], status="cancelled")
        for call_id in folded.later:
            places[call_id] = replace(places[call_id], may_retry=len(fates[call_id]) > 1)
        for call_id in folded.start:
            assert places[call_id].status == "held"
            places[call_id] = replace(places[call_id], status="running")
        wins, pending = folded.wins, folded.pending
        if folded.joined:
            joins += 1
            left = {one.status for one in places.values()}
            assert left <= {"done", "failed", "cancelled"}
            return folded.ok, joins
    raise AssertionError(f"no join: {places}")


@settings(max_examples=80, deadline=None)
@given(steps(), st.integers(0, 2**24 - 1))
def test_whatever_the_order_the_step_joins_once_with_what_a_naive_interpreter_says(step, order):
    slots, need = step
    assert play(slots, need, order) == (naive(slots, need), 1)


@settings(max_examples=50, deadline=None)
@given(steps())
def test_open_calls_are_dropped_only_when_the_step_joins(step):
    slots, need = step
    places = places_of(slots)
    outcomes = {places[0].id: Won(1)}
    folded = fold(places, outcomes, need=need, wins=0, pending=len(slots))
    if not folded.joined:
        in_slot = {one.id for one in places if one.slot == 0}
        assert set(folded.dropped) <= in_slot


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps(), st.integers(0, 2**24 - 1))
def test_the_sql_countdown_agrees_with_fold(lab, step, order):
    slots, need = step
    lab.bells.waiting.clear()
    tools = [
        [{"tool": "fallible", "as": f"s{slot}-{idx}"} for idx in range(len(fates))]
        for slot, (_, fates) in enumerate(slots)
    ]
    trace = lab.open(*tools, strategy="mixed", require=need)
    for slot, (mode, fates) in enumerate(slots):
        for idx in range(len(fates)):
            lab.rows(
                "UPDATE mesh.calls SET slot_mode = %(mode)s, max_attempts = 2"
                " WHERE trace_id = %(t)s AND slot = %(slot)s AND idx = %(idx)s",
                mode=mode, t=trace.id, slot=slot, idx=idx,
            )  # fmt: skip
    tried, fired = {}, 0
    for number in range(60):
        ready = [one for one in lab.calls(trace) if one["status"] == "ready"]
        if not ready or fired:
            break
        call = ready[(order >> number) % len(ready)]
        fate = slots[call["slot"]][1][call["idx"]]
        said = fate[tried.setdefault(call["id"], 0)]
        tried[call["id"]] += 1
        outcome, failure = ("won", None) if said == "won" else ("failed", FATAL if said == "fatal" else FAILED)
        fired += lab.settle(lab.claim(call), outcome, failure=failure).joined
    row = lab.step(trace)
    assert fired == 1
    assert (row["wins"] >= row["need"]) == naive(slots, need)
    lab.bells.waiting.clear()
    lab.mesh.controller.run_once(lab.ring(trace))
    assert trace.status() == ("done" if naive(slots, need) else "failed")
