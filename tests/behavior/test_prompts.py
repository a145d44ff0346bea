"""Prompt templates: what a model is told, and what is data."""

from __future__ import annotations

import pytest

from agentmesh.behavior.prompts import read_prompt
from agentmesh.behavior.session import Session
from agentmesh.errors import BadPrompt, BadRule

TEXT = "You are careful.\n---\nasked: {{ payload.text }}\nlast: {{ results }}\n"


def session(**given: object) -> Session:
    return Session(trace_id="t", context_id="c", tenant="x", agent="a", intent="i", from_="u", **given)  # type: ignore[arg-type]


def test_places_are_filled_with_json_in_one_line() -> None:
    prompt = read_prompt(TEXT, "p")
    seen = session(payload={"text": 'two\nlines "x"'}, results={"b": 1, "a": None})
    assert prompt.system == "You are careful."
    assert prompt.data(seen.variables()) == 'asked: "two\\nlines \\"x\\""\nlast: {"a": null, "b": 1}\n'
    assert prompt.names == {"payload", "results"}


def test_without_a_part_for_data_everything_is_shown() -> None:
    data = read_prompt("You decide.", "p").data(session(payload={"n": 1}, memory={"long:x": 2}).variables())
    assert data == 'intent: "i"\npayload: {"n": 1}\nmemory: {"long:x": 2}\nresults: {}\n'


def test_the_version_is_that_of_the_text() -> None:
    assert read_prompt(TEXT, "p").version == read_prompt(TEXT, "q").version != read_prompt(TEXT + " ", "p").version


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("Be {{ payload.tone }}.", BadPrompt, "puts data of a trace into what the model is told"),
        ("\n---\n{{ payload }}", BadPrompt, "tells the model nothing"),
        ("Hi\n---\n{{ payload.x + }}", BadRule, "place 1"),
        ("Hi\n---\n{{ 1 }} {{ nobody }}", BadRule, "place 2"),
    ],
)
def test_a_mistake_in_a_template_is_found_when_it_is_read(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read_prompt(text, "p")
