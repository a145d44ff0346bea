"""Rewards are bound to the decision that earned them, and are counted once."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agentmesh.errors import Mistake, NoDecision
from agentmesh.observation.decisions import rewarded
from agentmesh.testing import race

LOOK = {"tools": [{"tool": "quick", "args": {"n": 1}}], "candidates": ["quick", "wait"], "propensity": 0.25,
        "policy_version": "p7"}  # fmt: skip
ROUNDS = {"trigger_next_action": True}


def test_a_reward_goes_to_the_decision_that_led_to_the_step(lab: Any) -> None:
    trace = lab.start(LOOK, {"answer": "done"}, policy=ROUNDS)
    lab.drain()
    steps = lab.steps(trace)
    assert [one["kind"] for one in steps] == ["reason", "tools", "reason"]
    told = [trace.feedback(0.5, step=2, note="slow"), trace.feedback(2, step=1), trace.feedback(-1)]
    assert [one.ordinal for one in told] == [1, 1, 3]
    rows = lab.rows("SELECT step_id, reward, body FROM mesh.rewards ORDER BY id")
    assert [(row["step_id"], row["reward"]) for row in rows] == [
        (steps[0]["id"], 0.5), (steps[0]["id"], 2.0), (steps[2]["id"], -1.0),
    ]  # fmt: skip
    assert rows[0]["body"] == {"note": "slow"}
    first, last = rewarded(lab.mesh.db, "default", "puppet")
    assert (first["candidates"], first["propensity"], first["policy_version"]) == (["quick", "wait"], 0.25, "p7")
    assert (first["reward"], first["rewards"], last["reward"]) == (2.5, 2, -1.0)
    assert first["action"]["slots"][0][0]["tool"] == "quick"


def test_a_reward_under_one_key_counts_once(lab: Any) -> None:
    trace = lab.start({"answer": 1})
    lab.drain()
    told = race(*[lambda: trace.feedback(1, key="thumbs") for _ in range(8)])
    assert sorted(one.repeated for one in told) == [False] + [True] * 7
    assert len(lab.rows("SELECT 1 FROM mesh.rewards")) == 1


def test_where_nothing_was_decided_nothing_is_rewarded(lab: Any) -> None:
    trace = lab.start({"answer": 1})
    with pytest.raises(NoDecision):
        trace.feedback(1)
    lab.drain()
    for no_number in (math.nan, math.inf):
        with pytest.raises(Mistake):
            trace.feedback(no_number)
    other = lab.mesh.trace(trace.id)
    object.__setattr__(other, "tenant_id", "other")
    with pytest.raises(NoDecision):
        other.feedback(1)
    assert lab.rows("SELECT 1 FROM mesh.rewards") == []
