"""A concierge: answers from what was said before, and remembers who asks."""

from __future__ import annotations

from typing import Any

from agentmesh import register_callback

ASKED = "what did i ask"
NAME = "i am "


def answer(session: Any) -> dict[str, Any]:
    """The decision: who it is, and what was asked, from memory, turns and the summary of older ones."""
    text = str(session.payload["text"])
    name = _name(text) or (session.memory.get("long_term:guest") or {}).get("name", "stranger")
    if text.lower().startswith(ASKED):
        older = (session.memory.get("long_term:summary") or {}).get("text", [])
        asked = [*older, *_questions(session.turns)]
        return {"answer": f"{name}, you asked: {' '.join(asked) or 'nothing yet'}"}
    return {"answer": f"Let me see, {name}." if text.endswith("?") else f"Welcome, {name}."}


def sum_up(session: Any) -> dict[str, Any]:
    """What is kept of older turns: the questions."""
    return {"answer": [*(session.payload["summary"] or []), *_questions(session.payload["turns"])]}


@register_callback("remember_guest")
def remember_guest(_result: Any, session: Any) -> dict[str, Any] | None:
    """Commits with the answer, or not at all."""
    name = _name(str(session.payload["text"]))
    return None if name is None else {"memory": [{"key": "guest", "value": {"name": name}}]}


def _name(text: str) -> str | None:
    return text[len(NAME) :].strip(" .!") if text.lower().startswith(NAME) else None


def _questions(turns: Any) -> list[str]:
    texts = [str(one["payload"]["text"]) for one in turns]
    return [text for text in texts if text.endswith("?") and not text.lower().startswith(ASKED)]
