"""Session strategies: what fits a budget is shown, what does not is named, by key and size."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.behavior import strategies
from agentmesh.behavior.prompts import read_prompt
from agentmesh.behavior.session import Session
from agentmesh.behavior.strategies import SUMMARY, Meter, SessionBuilder, SessionSpec, estimate
from agentmesh.errors import BadAgentFile

VALUES = {"trace_id": "t", "context_id": "c", "tenant": "x", "agent": "a", "intent": "i", "from_": "u"}
ONE_EACH = "tests.behavior.test_strategies:one_each"


def one_each(text: str) -> int:
    """A counter: every value is one token."""
    return 1


def turn(n: int) -> dict[str, Any]:
    return {"trace": f"t{n}", "ended": f"2026-01-0{n}", "from": "u", "intent": "say", "payload": {"n": n}, "answer": n}


def shown(spec: SessionSpec, n: int = 5, **values: Any) -> Session:
    return SessionBuilder().view(spec, **VALUES, turns=[turn(k) for k in range(1, n + 1)], **values)


def numbers(session: Session) -> list[int]:
    return [one["answer"] for one in session.turns]


def test_a_dialogue_shows_the_newest_turns_that_fit_in_order_and_names_the_others() -> None:
    spec = SessionSpec(strategy="dialogue", budget=4, counter=ONE_EACH)
    session = shown(spec, memory={"long_term:a": 1, "long_term:b": 2}, results={"r": 1})
    assert numbers(session) == [4, 5]
    assert session.memory == {}
    assert session.account == {
        "strategy": "dialogue", "budget": 4, "used": 4,
        "shown": {"payload": {"payload": 1}, "results": {"r": 1}, "turns": {"t5": 1, "t4": 1}},
        "left_out": {"turns": {"t3": 1, "t1": 0, "t2": 0}, "memory": {"long_term:a": 1, "long_term:b": 1}},
    }  # fmt: skip


def test_no_turn_is_left_out_of_the_middle_of_a_dialogue() -> None:
    turns = [turn(1), turn(2) | {"answer": "x" * 4000}, turn(3)]
    session = SessionBuilder().view(SessionSpec(strategy="dialogue", budget=200), **VALUES, turns=turns)
    assert numbers(session) == [3]


def test_without_a_budget_a_dialogue_shows_everything_up_to_its_most() -> None:
    session = shown(SessionSpec(strategy="dialogue", options={"most": 3}), memory={"long_term:a": 1})
    assert (numbers(session), session.memory) == ([3, 4, 5], {"long_term:a": 1})


def test_what_a_summary_covers_is_left_out_and_the_summary_comes_first() -> None:
    entry = {"text": "they said hello", "through": "2026-01-03", "turns": 3}
    session = shown(
        SessionSpec(strategy="summary", budget=3, counter=ONE_EACH), memory={SUMMARY: entry, "long_term:a": 1}
    )
    assert numbers(session) == [5]
    assert session.memory == {SUMMARY: entry}
    assert session.account is not None
    assert session.account["left_out"]["turns"] == {"t1": 0, "t2": 0, "t3": 0, "t4": 1}


def test_a_budget_for_the_structured_strategy_keeps_memory_in_the_order_it_names() -> None:
    memory = {"long_term:a": "x" * 4000, "long_term:b": 2, "long_term:c": 3}
    spec = SessionSpec(budget=50, options={"memory_keys": ["long_term:c", "long_term:a", "long_term:b"]})
    session = shown(spec, memory=memory, results={"r": 1})
    assert (list(session.memory), session.results, session.turns) == (["long_term:c", "long_term:b"], {"r": 1}, ())
    assert session.account is not None
    assert session.account["left_out"] == {"memory": {"long_term:a": 1001}}


def test_without_a_budget_the_structured_strategy_reads_nothing() -> None:
    class Unread(dict[str, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("memory was read")

    assert shown(SessionSpec(), memory=Unread()).account is None


def test_what_an_option_leaves_out_is_named_without_a_budget_too() -> None:
    memory = {"long_term:a": 1, "long_term:b": 2}
    keys = {"memory_keys": ["long_term:b"]}
    for spec in (SessionSpec(options=keys), SessionSpec(strategy="dialogue", options=keys | {"most": 4})):
        account = shown(spec, memory=memory).account
        assert account is not None
        assert account["left_out"].pop("memory") == {"long_term:a": 0}
        assert account["left_out"] == ({"turns": {"t1": 0}} if spec.strategy == "dialogue" else {})


def test_what_a_strategy_of_the_users_does_not_say_itself_is_said_for_it() -> None:
    spec = SessionSpec(python="tests.behavior.test_strategies:short")
    account = shown(spec, n=2, memory={"long_term:a": 1, "long_term:b": 2}, results={"r": 1}).account
    assert account is not None
    assert account["strategy"] == "tests.behavior.test_strategies:short"
    assert {part: list(keys) for part, keys in account["shown"].items()} == {
        "results": ["r"], "memory": ["long_term:b"], "turns": ["t1", "t2"],
    }  # fmt: skip
    assert account["left_out"] == {"memory": {"long_term:a": 0}}


def short(**values: Any) -> Session:
    return Session(**values | {"memory": {"long_term:b": values["memory"]["long_term:b"]}})


def test_the_payload_is_always_shown() -> None:
    session = shown(SessionSpec(strategy="dialogue", budget=1), payload={"text": "x" * 100})
    assert (session.payload, numbers(session)) == ({"text": "x" * 100}, [])


def own(*, meter: Meter | None = None, loud: bool = False, **values: Any) -> Session:
    return Session(**values | {"intent": values["intent"].upper() if loud else values["intent"], "turns": ()})


def test_code_of_the_users_is_a_strategy() -> None:
    spec = SessionSpec(python="tests.behavior.test_strategies:own", options={"loud": True}, budget=10)
    assert shown(spec).intent == "I"


def test_one_of_the_users_is_named_as_ours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "STRATEGIES", dict(strategies.STRATEGIES))
    strategies.register_session_strategy("loud")(own)
    spec = SessionSpec(strategy="loud", options={"loud": True})
    SessionBuilder().check(spec, "clerk")
    assert shown(spec).intent == "I"


@pytest.mark.parametrize(
    "spec",
    [{"python": "tests.behavior.test_strategies:nothing"}, {"strategy": "dialoge"}, {"counter": "no_module:count"}],
)
def test_what_nobody_has_is_refused_when_the_agent_is_hosted(spec: dict[str, Any]) -> None:
    with pytest.raises(BadAgentFile):
        SessionBuilder().check(SessionSpec(**spec), "clerk")


def test_the_estimate_rounds_up_by_bytes() -> None:
    assert [estimate(text) for text in ("", "a", "abcd", "abcde", "ä" * 4, "\ud800")] == [0, 1, 1, 2, 2, 1]


def test_an_account_names_a_hundred_keys_and_counts_the_rest() -> None:
    meter = Meter()
    meter.some("memory", {f"k{n}": n for n in range(130)})
    listed = meter.account("own")["shown"]["memory"]
    assert (len(listed), listed["…"]) == (101, 30)


def test_a_prompt_without_places_of_its_own_shows_turns_where_there_are_some() -> None:
    prompt = read_prompt("You listen.", "p")
    assert "turns" in prompt.names
    data = dict.fromkeys(prompt.names)
    assert prompt.data(data | {"turns": [{"answer": 1}]}).endswith('turns: [{"answer": 1}]\n')
    assert "turns" not in prompt.data(data | {"turns": []})
    assert "turns" not in read_prompt("You listen.\n---\n{{ payload }}", "p").names
