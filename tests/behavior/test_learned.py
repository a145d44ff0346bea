"""A learnt policy: what is chosen how often, what is recorded with it, and what rewards teach."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentmesh.behavior.agents import load_agent_file
from agentmesh.behavior.learned import RLPolicyReasoner, learn
from agentmesh.behavior.session import Session
from agentmesh.errors import BadAction, BadAgentFile

SEEN = Session(trace_id="t", context_id="c", tenant="x", agent="a", intent="i", from_="u", payload={"n": 3})
CHOICES: dict[str, Any] = {"fast": {"answer": {"=": "payload.n"}}, "slow": {"tools": ["look"]}, "never": {"answer": 0}}
AGENT = """
agent: a
reasoner:
  policy:
    choices: {fast: {answer: 1}, slow: {answer: 2}}
    file: policy.json
    explore: 0.2
"""


def test_choices_come_as_often_as_they_say_and_record_it() -> None:
    random.seed(7)
    reasoner = RLPolicyReasoner(CHOICES, {"fast": 3, "slow": 1}, version="v1", explore=0.3)
    assert reasoner.chances == pytest.approx({"fast": 0.625, "never": 0.1, "slow": 0.275})
    decided = [reasoner.select_action(SEEN) for _ in range(4000)]
    often = Counter(one.candidates[0] for one in decided)
    for name, chance in reasoner.chances.items():
        assert often[name] / 4000 == pytest.approx(chance, abs=0.03)
    assert {one.propensity for one in decided if one.candidates[0] == "slow"} == {reasoner.chances["slow"]}
    assert {(sorted(one.candidates) == ["fast", "never", "slow"], one.policy_version) for one in decided} == {
        (True, "v1")
    }
    assert {one.answer for one in decided if one.candidates[0] == "fast"} == {3}


def earned(name: str, propensity: float | None, reward: float, *others: str) -> dict[str, Any]:
    return {"candidates": [name, *others], "propensity": propensity, "reward": reward}


def test_what_was_unlikely_counts_for_more() -> None:
    taught = learn(
        [earned("a", 0.9, 1, "b"), earned("a", 0.1, 0, "b"), earned("b", 0.5, 0.5, "a"), earned("a", None, 99)]
    )
    assert taught["values"] == pytest.approx({"a": (1 / 0.9) / (1 / 0.9 + 10), "b": 0.5})
    assert taught["decisions"] == {"a": 2, "b": 1}
    assert taught["weights"]["b"] > 0.9


def test_what_nobody_tried_is_taken_for_as_good_as_the_others() -> None:
    taught = learn([earned("a", 0.5, 1.0, "b", "c"), earned("b", 0.5, 0.0, "a", "c")], temperature=1.0)
    assert taught["weights"]["a"] > taught["weights"]["c"] > taught["weights"]["b"]
    assert sum(taught["weights"].values()) == pytest.approx(1)
    assert learn([])["weights"] == {}


def test_rewards_far_apart_do_not_overflow() -> None:
    taught = learn([earned("a", 0.5, 1e9, "b"), earned("b", 0.5, -1e9, "a")])
    assert taught["weights"] == {"a": 1.0, "b": 0.0}


def test_learning_from_its_own_decisions_finds_the_better_choice() -> None:
    random.seed(7)
    weights: dict[str, float] = {}
    for _ in range(3):
        reasoner = RLPolicyReasoner(CHOICES, weights, explore=0.2)
        seen = []
        for _ in range(300):
            action = reasoner.select_action(SEEN)
            pays = {"fast": 0.2, "slow": 0.8, "never": 0.0}[action.candidates[0]]
            seen.append(
                earned(action.candidates[0], action.propensity, float(random.random() < pays), *action.candidates[1:])
            )
        weights = learn(seen)["weights"]
    assert weights["slow"] > 0.95


def test_a_file_names_the_policy_it_was_taught(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(AGENT)
    (tmp_path / "policy.json").write_text(
        json.dumps(learn([earned("slow", 0.5, 1.0, "fast"), earned("fast", 0.5, 0.0, "slow")]))
    )
    made = load_agent_file(tmp_path / "a.yaml").make_reasoner()
    assert isinstance(made, RLPolicyReasoner)
    assert made.chances["slow"] > 0.89
    assert made.version == json.loads((tmp_path / "policy.json").read_text())["version"]


@pytest.mark.parametrize(
    "content",
    [
        None, "[]", "{", '{"weights": {}}', '{"version": "v", "weights": {"fast": -1}}',
        '{"version": "v", "weights": {"fast": "x"}}',
    ],
)  # fmt: skip
def test_a_policy_that_is_none_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "a.yaml").write_text(AGENT)
    if content is not None:
        (tmp_path / "policy.json").write_text(content)
    with pytest.raises(BadAgentFile):
        load_agent_file(tmp_path / "a.yaml")


def test_a_choice_that_is_no_action_and_a_weight_that_is_no_number_are_refused() -> None:
    with pytest.raises(BadAction, match=r"choices\.slow"):
        RLPolicyReasoner({"fast": {"answer": 1}, "slow": {"tool": "x"}})
    with pytest.raises(BadAgentFile):
        RLPolicyReasoner(CHOICES, {"fast": math.nan})
