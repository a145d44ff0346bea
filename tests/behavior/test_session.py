"""Sessions: values in, values out."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from agentmesh.behavior.session import VARIABLES, Note, Session
from agentmesh.behavior.strategies import SessionBuilder
from agentmesh.errors import Mistake

VALUES = {
    "trace_id": "t",
    "context_id": "c",
    "tenant": "x",
    "agent": "a",
    "intent": "i",
    "from_": "u",
}


def test_a_session_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Session(**VALUES).intent = "other"  # type: ignore[misc]


def test_notes_are_taken_once_and_in_order() -> None:
    session = Session(**VALUES)
    body = {"a": 1}
    session.note("REASONER_PROMPT", body)
    session.note("REASONER_FEEDBACK", {})
    body["a"] = 2

    assert session.taken_notes() == (
        Note("REASONER_PROMPT", {"a": 1}),
        Note("REASONER_FEEDBACK", {}),
    )
    assert session.taken_notes() == ()


def test_two_sessions_share_no_notes() -> None:
    first, second = Session(**VALUES), Session(**VALUES)
    first.note("X", {})
    assert second.notes == []


def test_expressions_see_fields_of_the_session() -> None:
    assert set(VARIABLES) <= set(Session.__dataclass_fields__)
    assert Session(**VALUES).variables()["intent"] == "i"


def test_the_structured_strategy_passes_values_through() -> None:
    built = SessionBuilder().build(**VALUES, memory={"long:a": 1})
    assert built == Session(**VALUES, memory={"long:a": 1})


def test_the_structured_strategy_can_choose_from_memory() -> None:
    memory = {"long:a": 1, "long:b": 2}
    built = SessionBuilder().build("structured", {"memory_keys": ["long:b", "long:c"]}, **VALUES, memory=memory)
    assert built.memory == {"long:b": 2}


def test_a_strategy_can_be_registered() -> None:
    builder = SessionBuilder()
    builder.register("loud", lambda **values: Session(**{**values, "intent": values["intent"].upper()}))
    assert builder.build("loud", **VALUES).intent == "I"


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(Mistake) as caught:
        SessionBuilder().build("structurd", **VALUES)
    assert "did you mean structured?" in caught.value.expected


def test_an_option_a_strategy_does_not_know_is_refused() -> None:
    with pytest.raises(Mistake):
        SessionBuilder().build("structured", {"nope": 1}, **VALUES)
