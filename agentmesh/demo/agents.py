"""The demo's two agents: one works a complaint, the other files what it found.

A reasoner decides from the recorded results alone; a callback says how the trace goes on. Neither
knows a database, a queue or the label of a message.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from agentmesh.behavior.reasoners import ReasonerBase
from agentmesh.behavior.session import Session
from agentmesh.demo.cases import Classification, as_classification, classification_in, is_settled, solved
from agentmesh.execution.callbacks import register_callback
from agentmesh.records import Json

GIVE_UP_AFTER = 6
"""Visits to the reasoner after which a case goes to a person as it is."""

HOME: Final = Path(str(files("agentmesh.demo")))
"""Where the two agent files lie: an `agents.paths` of settings, as TOOLS is a `tools.imports`."""
WITH_MODEL: Final = (HOME / "with_model" / "complaint_analysis_agent.yaml", HOME / "report_agent.yaml")
"""The same two agents, the first deciding by a model."""
TOOLS: Final = "agentmesh.demo.tools"


class ComplaintReasoner(ReasonerBase):
    """Gather, classify, gather more where that is unsure, classify again, answer."""

    def select_action(self, session: Session) -> dict[str, Json]:
        text = session.payload["text"]
        search = session.results.get("similar_cases") or _nothing_found(session)
        found = classification_in(session.results)
        if search is None:
            return _gather(text, session.payload["customer"])
        if (found and is_settled(found)) or (session.iteration >= GIVE_UP_AFTER):
            return {"answer": solved(session.payload, found, session.results)}
        if found and found.round == search["round"]:
            return _gather_more(text, found.round + 1)
        return _classify(text, search)


class ReportReasoner(ReasonerBase):
    """File the case, then answer with what was filed."""

    def select_action(self, session: Session) -> dict[str, Json]:
        if "file_case" in session.results:
            return {"answer": session.results["file_case"]}
        return {"tools": [{"tool": "file_case", "args": {"case": dict(session.payload)}}]}


@register_callback("decide_on_complaint")
def decide_on_complaint(result: Json, session: Session) -> dict[str, Json]:
    """Delegate to the report agent once the classification is settled, or a model gave it; go on until then."""
    found = as_classification(result)
    said = _said_by_model(result, session)
    if said or (found and is_settled(found)):
        found = said or found
        return _delegate(solved(session.payload, found, session.results))
    if isinstance(result, dict) and "area" in result and "category" in result:
        return _delegate(result)
    return {"verdict": "continue"}


@register_callback("decide_on_report")
def decide_on_report(result: Json, session: Session) -> dict[str, Json]:  # noqa: ARG001
    """A filed case ends its trace; a case that could not be filed fails it."""
    if isinstance(result, dict) and "filed" in result:
        return {"verdict": "finish", "result": result}
    return {"verdict": "abort", "reason": "the case could not be filed"}


def _said_by_model(result: Json, session: Session) -> Classification | None:
    """The answer of the agent that decides by a model; None for any other result."""
    if not isinstance(result, dict) or set(result) != {"category", "confidence"}:
        return None
    rounds = (session.results.get("similar_cases") or {}).get("round", 0)
    return Classification(result["category"], float(result["confidence"]), "model", rounds)


def _delegate(case: dict[str, Json]) -> dict[str, Json]:
    return {
        "verdict": "delegate",
        "to": "report_agent",
        "intent": "generate_report",
        "payload": case,
        "result": case,
    }


def _gather(text: str, customer: int) -> dict[str, Json]:
    return {
        "tools": [
            {"tool": "similar_cases", "args": {"text": text, "round": 1}},
            {"tool": "open_cases", "args": {"customer": customer}},
            {"tool": "policy_that_applies", "args": {"text": text}},
        ],
        "strategy": "parallel",
    }


def _gather_more(text: str, round: int) -> dict[str, Json]:  # noqa: A002
    return {"tools": [{"tool": "similar_cases", "args": {"text": text, "round": round}}]}


def _classify(text: str, search: dict[str, Json]) -> dict[str, Json]:
    cases, turn = search["cases"], search["round"]
    return {
        "tools": [
            {"tool": "ask_model", "args": {"text": text, "cases": cases, "round": turn}},
            {"tool": "vote_of_similar_cases", "args": {"cases": cases, "round": turn}},
            {"tool": "keyword_rules", "args": {"text": text, "round": turn}},
        ],
        "strategy": "fallback",
    }


def _nothing_found(session: Session) -> dict[str, Json] | None:
    """None before anything was looked for; after a search that failed, a search without finds."""
    return {"round": 1, "cases": []} if session.iteration else None
