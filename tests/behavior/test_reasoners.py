"""Reasoners: rules, functions, prompts, and how an action is read."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.behavior.reasoners import (
    FunctionReasoner,
    ReasonerBase,
    RuleReasoner,
    parse_action,
)
from agentmesh.behavior.session import Note, Session
from agentmesh.errors import BadAction, BadRule, ReasonerFailed
from agentmesh.records import Action, Json, ToolUse


def session(**given: Any) -> Session:
    fields = {
        "trace_id": "t",
        "context_id": "c",
        "tenant": "default",
        "agent": "a",
        "intent": "i",
        "from_": "user",
    }
    return Session(**{**fields, **given})


def decide(rules: list[dict[str, Json]], **given: Any) -> Action:
    return RuleReasoner(rules).select_action(session(**given))


def labels(action: Action) -> list[list[str]]:
    return [[use.label for use in slot] for slot in action.slots]


# --- rules


def test_the_first_rule_that_is_true_decides() -> None:
    rules: list[dict[str, Json]] = [
        {"when": "payload.n > 5", "then": {"answer": "much"}},
        {"when": "payload.n > 1", "then": {"answer": "some"}},
        {"then": {"answer": "few"}},
    ]
    assert [decide(rules, payload={"n": n}).answer for n in (9, 3, 0)] == ["much", "some", "few"]


def test_the_rule_that_decided_is_a_candidate_on_record() -> None:
    rules: list[dict[str, Json]] = [
        {"when": "false", "then": {"answer": 1}},
        {"then": {"answer": 2}},
    ]
    assert decide(rules).candidates == ("rule 2",)


def test_conditions_see_the_whole_session() -> None:
    condition = (
        "intent == 'i' && from_ == 'user' && context_id == 'c' && step == 4 && iteration == 1"
        " && memory['short:x'] == 1 && results.q.rows == 2 && result == 'last'"
    )
    given = {
        "memory": {"short:x": 1},
        "results": {"q": {"rows": 2}},
        "result": "last",
        "step": 4,
        "iteration": 1,
    }
    assert decide([{"when": condition, "then": {"answer": "yes"}}], **given).answer == "yes"


def test_values_are_literals_or_expressions() -> None:
    then = {
        "tools": [
            {
                "tool": "search",
                "args": {"q": {"=": "payload.text + '!'"}, "limit": 5, "deep": [{"=": "1 + 1"}]},
                "as": "hits",
            },
            "cases",
        ],
        "strategy": "parallel",
        "require": "any",
    }

    action = decide([{"then": then}], payload={"text": "hi"})

    assert action.slots[0][0] == ToolUse(tool="search", args={"q": "hi!", "limit": 5, "deep": [2]}, as_="hits")
    assert (labels(action), action.strategy, action.require) == (
        [["hits"], ["cases"]],
        "parallel",
        "any",
    )


def test_a_whole_action_can_be_computed() -> None:
    assert decide([{"then": {"=": "{'answer': payload}"}}], payload={"n": 1}).answer == {"n": 1}


def test_no_rule_that_matches_is_a_failure_of_the_reasoner() -> None:
    with pytest.raises(ReasonerFailed) as caught:
        decide([{"when": "false", "then": {"answer": 1}}])
    assert "no rule matches intent i" in caught.value.what


def test_a_condition_that_cannot_be_worked_out_names_rule_and_field() -> None:
    with pytest.raises(ReasonerFailed) as caught:
        decide([{"when": "payload.nope == 1", "then": {"answer": 1}}])
    assert "rule 1 failed" in caught.value.what
    assert "has(payload.field)" in caught.value.expected


def test_a_condition_is_true_or_false_and_nothing_else() -> None:
    with pytest.raises(ReasonerFailed, match="neither true nor false"):
        decide([{"when": "1", "then": {"answer": 1}}])


def test_a_computed_action_that_is_none_is_a_failure_of_the_reasoner() -> None:
    with pytest.raises(ReasonerFailed, match="either an answer or tools"):
        decide([{"then": {"=": "{}"}}])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("x", "not an object"),
        ({"when": "true"}, "other keys"),
        ({"then": {"answer": 1}, "wehn": "true"}, "other keys"),
        ({"when": True, "then": {"answer": 1}}, "not text"),
        ({"when": "paylod.x", "then": {"answer": 1}}, "unknown"),
        ({"then": {"answer": {"=": 5}}}, "not text"),
        ({"then": {"answer": {"=": "1 +"}}}, "cannot be read"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_when_it_is_read(rule: Any, says: str) -> None:
    with pytest.raises(BadRule, match=says) as caught:
        RuleReasoner([rule])
    assert caught.value.what.startswith("rules[0]")


@pytest.mark.parametrize("then", [{"tool": "x"}, {"tools": []}, {"tools": ["X y"]}, {"answer": 1, "tools": ["a"]}, 5])
def test_an_action_that_can_never_be_is_refused_when_the_rule_is_read(then: Any) -> None:
    with pytest.raises(BadAction) as caught:
        RuleReasoner([{"then": then}])
    assert caught.value.what.startswith("rules[0]")


def test_rules_that_say_nothing_are_refused() -> None:
    with pytest.raises(BadRule):
        RuleReasoner([])


# --- other reasoners


def test_a_function_is_a_reasoner() -> None:
    made = FunctionReasoner(lambda seen: {"answer": seen.payload["n"]})
    assert made.select_action(session(payload={"n": 3})) == {"answer": 3}


def test_the_base_keeps_its_parts_and_decides_nothing() -> None:
    made = ReasonerBase("memory", "tools", "trace")
    assert (made.memory, made.tools, made.trace) == ("memory", "tools", "trace")
    made.feedback({"ok": True})
    with pytest.raises(NotImplementedError):
        made.select_action(session())


def test_a_prompt_says_intent_payload_and_memory_and_is_noted() -> None:
    seen = session(intent="sum_up", payload={"n": 1}, memory={"long:name": "Ann"}, tools=("q",))

    prompt = ReasonerBase().inject_prompt(seen)

    for part in (
        'intent: "sum_up"',
        'payload: {"n": 1}',
        'memory: {"long:name": "Ann"}',
        'tools: ["q"]',
    ):
        assert part in prompt.splitlines()
    assert seen.taken_notes() == (Note("REASONER_PROMPT", {"prompt": prompt}),)


def test_data_cannot_add_lines_to_a_prompt() -> None:
    prompt = ReasonerBase().inject_prompt(session(payload={"x": 'a\nintent: "other"'}))
    assert [line for line in prompt.splitlines() if line.startswith("intent")] == ['intent: "i"']


def test_a_prompt_can_be_made_of_a_behaviour_in_three_parts() -> None:
    behavior = {
        "meta": {"to": "a", "from": "u"},
        "context": {"context_id": "c"},
        "command": {"intent": "i", "payload": {}},
    }
    assert 'agent: "a"' in ReasonerBase().inject_prompt(behavior)


# --- actions


@pytest.mark.parametrize(
    ("raw", "strategy", "expected"),
    [
        ({"tools": ["a", "b"]}, "serial", [["a", "b"]]),
        ({"tools": ["a", "b"], "strategy": "parallel"}, "parallel", [["a"], ["b"]]),
        (
            {"tools": ["a", {"tool": "b", "as": "c"}], "strategy": "fallback"},
            "fallback",
            [["a", "c"]],
        ),
        ({"tools": [["a", "b"], ["c"]]}, "mixed", [["a", "b"], ["c"]]),
        ({"tools": [["a", "b"], "c"], "strategy": "mixed"}, "mixed", [["a", "b"], ["c"]]),
        ({"tools": [{"tool": "a", "args": None}]}, "serial", [["a"]]),
    ],
)
def test_tools_become_slots(raw: Any, strategy: str, expected: list[list[str]]) -> None:
    action = parse_action(raw)
    assert (action.strategy, labels(action)) == (strategy, expected)


def test_an_action_without_a_strategy_takes_the_default() -> None:
    assert labels(parse_action({"tools": ["a", "b"]}, default_strategy="parallel")) == [
        ["a"],
        ["b"],
    ]


def test_an_answer_has_no_slots_even_when_it_is_null() -> None:
    action = parse_action({"answer": None})
    assert (action.answer, action.slots) == (None, ())


def test_an_action_is_taken_as_it_is() -> None:
    action = parse_action({"tools": ["a"]})
    assert parse_action(action) is action


def test_what_rewards_need_is_kept() -> None:
    action = parse_action({"tools": ["a"], "candidates": ["a", "b"], "propensity": 0.5, "policy_version": "v1"})
    assert (action.candidates, action.propensity, action.policy_version) == (("a", "b"), 0.5, "v1")


def test_an_action_survives_json() -> None:
    action = parse_action(
        {
            "tools": [{"tool": "a", "args": {"x": 1}, "as": "b"}, "c"],
            "strategy": "parallel",
            "require": 1,
        }
    )
    assert Action.model_validate_json(action.model_dump_json()) == action


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (None, "not an object"),
        ("a", "not an object"),
        (["a"], "not an object"),
        ({}, "either an answer or tools"),
        ({"answer": 1, "tools": ["a"]}, "either an answer or tools"),
        ({"tools": []}, "has no tools"),
        ({"tools": "a"}, "has no tools"),
        ({"tools": [[]]}, "a slot has no tools"),
        ({"tools": [1]}, "neither a name nor an object"),
        ({"tools": ["A"]}, "not allowed"),
        ({"tools": ["a\n"]}, "not allowed"),
        ({"tools": ["__class__"]}, "not allowed"),
        ({"tools": [{"args": {}}]}, "not allowed"),
        ({"tools": [{"tool": "a", "as": ""}]}, "not allowed"),
        ({"tools": [{"tool": "a", "args": [1]}]}, "args of a tool"),
        ({"tools": [{"tool": "a", "args": {1: 2}}]}, "a key of"),
        ({"tools": [{"tool": "a", "arg": {}}]}, "keys that mean nothing"),
        ({"tools": ["a"], "permissions": ["x:y"]}, "keys that mean nothing"),
        ({"tools": ["a"], "policy": {"max_steps": 9}}, "keys that mean nothing"),
        ({"tools": ["a"], "goto": "end"}, "keys that mean nothing"),
        ({"tools": ["a"], "strategy": "both"}, "names no strategy"),
        ({"tools": [["a"]], "strategy": "serial"}, "only the strategy mixed"),
        ({"tools": ["a"], "require": "any"}, "only parallel and mixed"),
        ({"tools": ["a", "b"], "strategy": "parallel", "require": 3}, "more than it has"),
        ({"tools": ["a"], "strategy": "parallel", "require": 0}, "wrong require"),
        ({"tools": ["a"], "strategy": "parallel", "require": True}, "wrong require"),
        ({"tools": ["a"], "strategy": "parallel", "require": "most"}, "wrong require"),
        ({"tools": ["a", "a"], "strategy": "parallel"}, "by one name"),
        ({"tools": [["a", "b"], ["b"]]}, "by one name"),
        ({"tools": ["a"], "propensity": "0.5"}, "wrong propensity"),
    ],
)
def test_what_is_no_action_is_refused(raw: Any, says: str) -> None:
    with pytest.raises(BadAction, match=says):
        parse_action(raw)


def test_one_tool_may_be_tried_twice_in_its_slot() -> None:
    assert labels(parse_action({"tools": ["a", "a"], "strategy": "fallback"})) == [["a", "a"]]


def test_an_action_has_at_most_10000_calls() -> None:
    assert len(parse_action({"tools": ["a"] * 10_000}).slots[0]) == 10_000
    with pytest.raises(BadAction, match="too many calls"):
        parse_action({"tools": ["a"] * 10_001})
