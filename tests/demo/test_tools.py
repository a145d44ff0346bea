"""The demo's tools take and return what their declarations say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentmesh.demo import tools
from agentmesh.demo.cases import Classification, solved
from agentmesh.errors import BadArguments, Permanent
from agentmesh.execution.tools import TOOLS, ToolContext
from agentmesh.records import new_id

PAYLOAD = {"run": "r", "case": "test-1", "text": "Where is it?", "customer": 3, "age_days": 1}
CASE = {"id": 1, "category": "card_arrival", "text": "t", "rank": 0.5}


class Answers:
    """A connection that keeps what it was asked and answers with `rows`."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows, self.asked = rows, list[tuple[str, Any]]()

    def exec_driver_sql(self, sql: str, given: Any) -> Answers:
        self.asked.append((sql, given))
        return self

    def mappings(self) -> tuple[dict[str, Any], ...]:
        return self.rows


def context(tx: object = None) -> ToolContext:
    return ToolContext(
        call_id=new_id(), trace_id=new_id(), tenant="default", context_id="c", intent="i", tool="t", attempt=1, epoch=1,
        idempotency_key="k", deadline=None, payload=PAYLOAD, tx=tx,
    )  # fmt: skip


def call(name: str, ctx: ToolContext, **args: Any) -> Any:
    """What the engine would record of a call."""
    tool = TOOLS.get(name)
    return tool.output(tool.function(ctx, **tool.check(args)))


def test_a_search_returns_its_round_and_its_cases() -> None:
    tx = Answers(CASE)
    found = call("similar_cases", context(tx), text="where", round=2)
    assert found == {"round": 2, "cases": [CASE]}
    assert tx.asked[0][1] == {"text": "where", "limit": 25, "ceiling": 1350}


def test_the_vote_takes_what_the_search_returned() -> None:
    said = call("vote_of_similar_cases", context(), cases=[CASE], round=1)
    assert said == {"category": "card_arrival", "confidence": 1.0, "method": "vote", "round": 1}


def test_a_vote_without_voters_is_permanent_so_that_keywords_are_next() -> None:
    with pytest.raises(Permanent, match="no past case is similar"):
        call("vote_of_similar_cases", context(), cases=[], round=1)


def test_a_model_that_is_absent_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMO_MODEL_URL", raising=False)
    with pytest.raises(Permanent, match="DEMO_MODEL_URL"):
        call("ask_model", context(), text="x", cases=[CASE], round=1)
    assert TOOLS.get("ask_model").attempts == 1


def test_keyword_rules_that_say_nothing_have_no_confidence() -> None:
    assert call("keyword_rules", context(), text="???", round=2)["confidence"] == 0.0
    assert call("keyword_rules", context(), text="activate it", round=2) == {
        "category": "activate_my_card",
        "confidence": tools.KEYWORD_CONFIDENCE,
        "method": "keywords",
        "round": 2,
    }


def test_the_policy_follows_from_the_words() -> None:
    said = call("policy_that_applies", context(), text="My card was stolen")
    assert (said["area"], said["worked_by"]) == ("security", "person")


def test_open_cases_are_a_list() -> None:
    row = {"id": 1, "category": "age_limit", "age_days": 3}
    assert call("open_cases", context(Answers(row)), customer=3) == [row]


def test_a_case_is_filed_as_it_was_delegated() -> None:
    case = solved(PAYLOAD, Classification("card_arrival", 0.9, "vote", 1), {})
    tx = Answers()
    assert call("file_case", context(tx), case=case) == {"filed": "test-1"}
    assert json.loads(tx.asked[0][1]["body"]) == case


def test_a_case_with_a_field_too_many_or_too_few_is_refused() -> None:
    case = solved(PAYLOAD, None, {})
    with pytest.raises(BadArguments):
        call("file_case", context(Answers()), case={k: v for k, v in case.items() if k != "run"})


def test_what_works_in_the_recording_transaction_says_so() -> None:
    names = ("similar_cases", "open_cases", "file_case")
    assert all(TOOLS.get(name).tx for name in names)
