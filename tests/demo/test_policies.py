"""Every category has a policy, and urgency follows from policy and age."""

from __future__ import annotations

from agentmesh.demo.keywords import UNKNOWN, categories
from agentmesh.demo.policies import AREAS, POLICIES, overdue, policy_for, urgency


def test_every_category_belongs_to_one_area() -> None:
    listed = [name for names in AREAS.values() for name in names.split()]
    assert sorted(listed) == sorted(categories())
    assert set(AREAS) == set(POLICIES)


def test_what_nobody_knows_gets_the_mildest_policy() -> None:
    assert policy_for(UNKNOWN).area == "account"
    assert policy_for(UNKNOWN).within_h == max(one.within_h for one in POLICIES.values())


def test_a_case_becomes_more_urgent_when_half_its_time_is_gone() -> None:
    cards = POLICIES["cards"]
    assert [urgency(cards, days) for days in (0, 2, 3, 13)] == ["low", "low", "medium", "medium"]
    assert urgency(POLICIES["cash"], 1) == "high"
    assert urgency(POLICIES["security"], 0) == "high"


def test_a_case_is_overdue_only_after_its_time() -> None:
    assert not overdue(POLICIES["cards"], 5)
    assert overdue(POLICIES["cards"], 6)
