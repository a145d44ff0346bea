"""What is decided about a case: the vote, when to look again, who has to look."""

from __future__ import annotations

from typing import Any

from agentmesh.demo.cases import (
    Classification,
    Similar,
    as_classification,
    classification_in,
    is_settled,
    solved,
    vote,
)

PAYLOAD = {"run": "r", "case": "test-1", "text": "Where is it?", "customer": 3, "age_days": 1}


def similar(*ranked: tuple[str, float]) -> list[Similar]:
    return [Similar(at, name, "text", rank) for at, (name, rank) in enumerate(ranked)]


def case(found: Classification | None, **results: Any) -> dict[str, Any]:
    return solved(PAYLOAD, found, results)


def test_the_nearest_case_outvotes_many_distant_ones() -> None:
    found = vote(similar(("near", 1.0), *[("far", 0.5)] * 5), round=1)
    assert found is not None
    assert (found.category, found.method, found.round) == ("near", "vote", 1)
    assert 0.7 < found.confidence < 0.8


def test_nobody_votes_when_nothing_is_similar() -> None:
    assert vote([], round=1) is None
    assert vote(similar(("a", 0.0)), round=1) is None


def test_an_unsure_vote_is_settled_only_by_the_last_round() -> None:
    assert not is_settled(Classification("a", 0.49, "vote", 1))
    assert is_settled(Classification("a", 0.5, "vote", 1))
    assert is_settled(Classification("a", 0.1, "vote", 2))


def test_the_latest_classification_counts_whichever_tool_gave_it() -> None:
    results = {
        "vote_of_similar_cases": {"category": "a", "confidence": 0.2, "method": "vote", "round": 1},
        "keyword_rules": {"category": "b", "confidence": 1, "method": "keywords", "round": 2},
        "open_cases": [],
        "similar_cases": {"round": 2, "cases": []},
    }
    assert classification_in(results) == Classification("b", 1.0, "keywords", 2)
    assert as_classification({"round": 2, "cases": []}) is None


def test_a_sure_case_of_a_mild_category_needs_nobody() -> None:
    made = case(Classification("exchange_rate", 0.9, "vote", 1), open_cases=[{}, {}])
    assert (made["reason"], made["area"], made["open_cases"]) == (None, "exchange", 2)


def test_a_policy_that_asks_for_a_person_gets_one() -> None:
    made = case(Classification("compromised_card", 0.9, "vote", 1))
    assert (made["reason"], made["urgency"]) == ("the policy asks for a person", "high")
    assert made["overdue"]


def test_disagreement_keywords_and_silence_each_need_a_person() -> None:
    assert case(Classification("exchange_rate", 0.3, "vote", 2))["reason"] == ("the similar cases disagree")
    assert case(Classification("exchange_rate", 0.5, "keywords", 2))["reason"] == ("only keywords say what it is about")
    assert case(None)["reason"] == "nothing says what it is about"


def test_an_unsure_case_whose_words_mean_more_needs_a_person() -> None:
    words = {"area": "security", "worked_by": "person"}
    unsure = Classification("exchange_rate", 0.45, "vote", 2)
    sure = Classification("exchange_rate", 0.8, "vote", 1)
    assert case(unsure, policy_that_applies=words)["reason"] == "its words may mean security"
    assert case(sure, policy_that_applies=words)["reason"] is None
