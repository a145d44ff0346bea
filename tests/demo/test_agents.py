"""The agents decide from results alone: gather, classify, look again where unsure, delegate."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from agentmesh.behavior.agents import load_agents
from agentmesh.behavior.reasoners import ReasonerBase, parse_action
from agentmesh.behavior.session import Session
from agentmesh.demo.agents import (
    GIVE_UP_AFTER,
    HOME,
    TOOLS,
    ComplaintReasoner,
    ReportReasoner,
    decide_on_complaint,
    decide_on_report,
)
from agentmesh.execution.callbacks import HANDLERS
from agentmesh.execution.tools import TOOLS as REGISTERED
from agentmesh.records import Action, Verdict

PAYLOAD = {"run": "r", "case": "test-1", "text": "Where is it?", "customer": 3, "age_days": 1}
SURE = {"category": "card_arrival", "confidence": 0.8, "method": "vote", "round": 1}
UNSURE = SURE | {"confidence": 0.2}
CASES = [{"id": 1, "category": "card_arrival", "text": "t", "rank": 0.5}]


def session(iteration: int = 0, **results: Any) -> Session:
    return Session(
        trace_id="t", context_id="customer-3", tenant="default", agent="complaint_analysis_agent",
        intent="analyze_complaint_and_solve", from_="demo", payload=PAYLOAD, results=results,
        iteration=iteration,
    )  # fmt: skip


def decide(seen: Session) -> Action:
    return parse_action(ComplaintReasoner().select_action(seen))


def tools_of(action: Action) -> list[str]:
    return [use.tool for slot in action.slots for use in slot]


def test_first_everything_is_gathered_at_once() -> None:
    action = decide(session())
    assert action.strategy == "parallel"
    assert tools_of(action) == ["similar_cases", "open_cases", "policy_that_applies"]


def test_then_the_candidates_are_tried_in_order() -> None:
    action = decide(session(1, similar_cases={"round": 1, "cases": CASES}))
    assert action.strategy == "fallback"
    assert tools_of(action) == ["ask_model", "vote_of_similar_cases", "keyword_rules"]


def test_low_confidence_asks_for_one_more_round_with_more_context() -> None:
    first = {"round": 1, "cases": CASES}
    again = decide(session(2, similar_cases=first, vote_of_similar_cases=UNSURE))
    assert tools_of(again) == ["similar_cases"]
    assert again.slots[0][0].args["round"] == 2
    second = {"round": 2, "cases": CASES}
    classify = decide(session(3, similar_cases=second, vote_of_similar_cases=UNSURE))
    assert classify.strategy == "fallback"
    assert classify.slots[0][0].args["round"] == 2


def test_a_settled_case_is_the_answer() -> None:
    results = {"similar_cases": {"round": 1, "cases": CASES}, "vote_of_similar_cases": SURE}
    action = decide(session(2, **results))
    assert action.answer["category"] == "card_arrival"
    assert action.answer["similar"] == [1]


def test_a_search_that_failed_leaves_the_keywords() -> None:
    action = decide(session(1))
    assert action.strategy == "fallback"
    assert {use.tool: use.args for slot in action.slots for use in slot}["vote_of_similar_cases"] == {
        "cases": [],
        "round": 1,
    }


def test_an_agent_that_gets_nowhere_hands_the_case_to_a_person() -> None:
    action = decide(session(GIVE_UP_AFTER))
    assert action.answer["reason"] == "nothing says what it is about"


@pytest.mark.parametrize("result", [{"similar_cases": {}}, [], None, "x", UNSURE])
def test_the_callback_goes_on_until_the_case_is_settled(result: Any) -> None:
    assert decide_on_complaint(result, session(1)) == {"verdict": "continue"}


def test_a_settled_classification_is_delegated_to_the_report_agent() -> None:
    verdict = decide_on_complaint(SURE, session(1, similar_cases={"round": 1, "cases": CASES}))
    assert (verdict["verdict"], verdict["to"], verdict["intent"]) == (
        "delegate",
        "report_agent",
        "generate_report",
    )
    assert verdict["payload"]["case"] == "test-1"
    Verdict.model_validate({"kind": verdict["verdict"]} | {k: v for k, v in verdict.items() if k != "verdict"})


def test_an_answer_is_delegated_too() -> None:
    answer = decide(session(GIVE_UP_AFTER)).answer
    assert decide_on_complaint(answer, session(1))["verdict"] == "delegate"


def test_the_report_agent_files_the_case_it_was_given_then_answers() -> None:
    first = parse_action(ReportReasoner().select_action(session()))
    assert tools_of(first) == ["file_case"]
    assert first.slots[0][0].args == {"case": PAYLOAD}
    done = parse_action(ReportReasoner().select_action(session(1, file_case={"filed": "test-1"})))
    assert done.answer == {"filed": "test-1"}


def test_a_case_that_could_not_be_filed_fails_its_trace() -> None:
    assert decide_on_report({"filed": "test-1"}, session())["verdict"] == "finish"
    assert decide_on_report(None, session())["verdict"] == "abort"


def test_the_agent_files_name_what_is_there() -> None:
    import_module(TOOLS)
    specs = load_agents([HOME])
    assert sorted(specs) == ["complaint_analysis_agent", "report_agent"]
    for spec in specs.values():
        assert isinstance(spec.make_reasoner(), ReasonerBase)
        assert set(spec.policy.callbacks or ()) <= set(HANDLERS)
        for name in spec.tools:
            assert set(REGISTERED.get(name).needs) <= set(spec.grants)


def test_the_complaint_agent_holds_what_its_delegate_needs() -> None:
    specs = load_agents([HOME])
    assert set(specs["report_agent"].grants) <= set(specs["complaint_analysis_agent"].grants)
