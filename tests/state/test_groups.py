"""A wide step counts in groups: the join fires where one counter would have fired it, and its rows lock one by one."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmesh.execution import router
from agentmesh.records import Failure
from agentmesh.testing import broken

LOST = Failure("E_TOOL", "it will not work", permanent=True)


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(router, "GROUP", 3)


def parent(lab, trace):
    [step] = lab.rows("SELECT * FROM mesh.steps WHERE trace_id = %(id)s AND kind = 'tools'", id=trace.id)
    return step


def groups(lab, trace):
    return lab.rows("SELECT * FROM mesh.steps WHERE trace_id = %(id)s AND kind = 'group' ORDER BY id", id=trace.id)


def wide(lab, slots, **options):
    return lab.open(*[{"tool": "work", "as": f"r{n}"} for n in range(slots)], strategy="parallel", **options)


def end(lab, call, *, won):
    return lab.settle(lab.claim(call), "won" if won else "failed", failure=None if won else LOST)


def test_a_step_over_200_slots_is_cut_into_groups_made_after_their_members(lab):
    trace = wide(lab, 401)
    made = groups(lab, trace)
    assert [one["slots"] for one in made] == [200, 200, 1]
    calls = lab.calls(trace)
    assert [one["group_id"] for one in calls] == [made[one["slot"] // 200]["id"] for one in calls]
    assert max(one["id"] for one in calls) < made[0]["id"]
    assert lab.trace(trace)["steps"] == 2


def test_a_step_of_200_slots_counts_by_itself(lab):
    trace = wide(lab, 200)
    assert groups(lab, trace) == []


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_f24_groups_join_once_and_when_one_counter_would(lab, small_groups, data):
    slots = data.draw(st.integers(4, 11), "slots")
    require = data.draw(st.sampled_from(["all", "any", 2, slots]), "require")
    outcomes = data.draw(st.lists(st.booleans(), min_size=slots, max_size=slots), "outcomes")
    trace = wide(lab, slots, require=require)
    order = data.draw(st.permutations(lab.calls(trace)), "order")
    need = {"all": slots, "any": 1}.get(require, require)
    wins, fired = 0, []
    for n, call in enumerate(order, 1):
        wins += outcomes[n - 1]
        settled = end(lab, call, won=outcomes[n - 1])
        fired.append(settled.joined)
        impossible = wins + slots - n < need
        if wins >= need or (require == "all" and impossible):
            assert any(fired)
        elif not impossible:
            assert not any(fired)
        assert broken(lab.url) == {}
    assert sum(fired) == 1
    lab.bells.waiting.clear()
    lab.bells.ring([lab.ring_of(parent(lab, trace), trace)])
    lab.drain()
    assert lab.trace(trace)["status"] == ("done" if wins >= need else "failed")
    assert {one["status"] for one in groups(lab, trace)} == {"done"}


def test_f24_the_last_results_of_two_groups_at_a_lock_fire_once(lab, small_groups):
    trace = wide(lab, 6)
    *early, third, sixth = sorted(lab.calls(trace), key=lambda one: (one["slot"] in (2, 5), one["slot"]))
    for call in early:
        end(lab, call, won=True)
    claims = [lab.claim(third), lab.claim(sixth)]
    settled = lab.at_lock("steps", parent(lab, trace)["id"], *[lambda one=one: lab.settle(one) for one in claims])
    assert sorted(one.joined for one in settled) == [False, True]
    assert parent(lab, trace)["pending"] == 0


def test_f24_the_last_two_results_of_one_group_at_its_lock_are_both_counted(lab, small_groups):
    trace = wide(lab, 6)
    second, third, *early = sorted(lab.calls(trace), key=lambda one: (one["slot"] not in (1, 2), one["slot"]))
    for call in early:
        end(lab, call, won=True)
    claims = [lab.claim(second), lab.claim(third)]
    settled = lab.at_lock("steps", groups(lab, trace)[0]["id"], *[lambda one=one: lab.settle(one) for one in claims])
    assert sorted(one.joined for one in settled) == [False, True]
    assert parent(lab, trace)["pending"] == 0


def test_a_joined_step_closes_its_groups_while_results_are_still_coming(lab, small_groups):
    trace = wide(lab, 7, require="any")
    first, late, *_ = lab.calls(trace)
    running = lab.claim(late)
    end(lab, first, won=True)
    lab.bells.waiting.clear()
    lab.bells.ring([lab.ring_of(parent(lab, trace), trace)])
    lab.drain()
    assert lab.settle(running) is None
    assert lab.trace(trace)["status"] == "done"
    assert {one["status"] for one in groups(lab, trace)} == {"done"}
    assert broken(lab.url) == {}


def test_results_of_one_group_do_not_wait_for_the_counter_of_another(lab, small_groups):
    trace = wide(lab, 6)
    first, *_, last = lab.calls(trace)
    with lab.held("steps", groups(lab, trace)[0]["id"]), lab.held("steps", parent(lab, trace)["id"]):
        assert end(lab, last, won=True).status == "done"
    end(lab, first, won=True)
