"""The mind of a conversation: what it answers and what it remembers follows from what it is shown, so that a turn that was
lost, doubled or seen out of order changes everything after it."""

from __future__ import annotations

from typing import Any

from agentmesh import ReasonerBase, register_callback, register_embedder


class Talker(ReasonerBase):
    def select_action(self, session: Any) -> Any:
        saw = [one["payload"]["n"] for one in session.turns]
        summary = session.memory.get("long_term:summary") or {}
        return {"answer": {"n": session.payload["n"], "saw": saw, "summary": summary.get("text")}}


class Sums(ReasonerBase):
    def select_action(self, session: Any) -> Any:
        said = [one["answer"]["n"] for one in session.payload["turns"]]
        return {"answer": {"of": (session.payload["summary"] or {"of": []})["of"] + said}}


@register_callback("tally")
def tally(result: Any, session: Any) -> Any:
    before = session.memory.get("long_term:tally") or {"turns": 0, "sum": 0}
    now = {"turns": before["turns"] + 1, "sum": before["sum"] * 3 % 1009 + session.payload["n"]}
    topic = f"topic-{session.payload['n'] % 7}"
    seen = [*(session.memory.get(f"long_term:{topic}") or []), result["n"]]
    return {
        "verdict": "finish",
        "result": result,
        "memory": [{"key": "tally", "value": now}, {"key": topic, "value": seen}],
    }


@register_embedder("letters")
class Letters:
    """A text means how often it has each of the vowels."""

    def embed(self, texts: Any, *, within_s: float) -> Any:
        return [[float(text.count(one)) for one in "aeiou"] for text in texts]
