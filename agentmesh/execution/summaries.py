"""Summing a context up: when it has grown past a bound, a reasoner of the agent's writes what is remembered of older turns.

The summary is a value that commits with the step before whose decision it was made. A reasoner that fails at it does not
stop the decision: that is recorded, and it is asked again with the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentmesh.behavior.reasoners import parse_action
from agentmesh.behavior.session import Note, Session
from agentmesh.behavior.strategies import SUMMARY, split
from agentmesh.errors import BadAction
from agentmesh.execution.failures import AWAY, failure_of, theirs
from agentmesh.execution.views import HostedAgent
from agentmesh.records import Action, Json, Policy

KEY = SUMMARY.partition(":")[2]
SHARE = 0.35
"""Of the time that a decision has, where it is summed up first; the rest is for the decision."""


@dataclass(frozen=True, slots=True)
class Summed:
    """A summary to be written (None: it failed), and what its reasoner wants recorded."""

    entry: dict[str, Json] | None
    notes: tuple[Note, ...]


def sum_up(agent: HostedAgent, values: Mapping[str, Any]) -> Summed | None:
    """The context's next summary; None where it has not grown past its agent's bound."""
    spec = agent.spec.session.summary
    if spec is None:
        return None
    before = values["memory"].get(SUMMARY)
    _, open_turns = split(list(values["turns"]), before)
    if len(open_turns) <= max(spec.after, spec.keep):
        return None
    covered = open_turns[: len(open_turns) - spec.keep]
    known: Mapping[str, Any] = before if isinstance(before, dict) else {}
    said = [{key: value for key, value in one.items() if key not in {"trace", "ended"}} for one in covered]
    session = Session(**{
        **values, "intent": "summarise", "node": KEY, "payload": {"summary": known.get("text"), "turns": said},
        "memory": {}, "results": {}, "steps": {}, "turns": (), "tools": (), "policy": shared(values["policy"], SHARE),
    })  # fmt: skip
    try:
        action = parse_action(theirs(lambda: agent.reasoners[spec.reasoner].select_action(session)))
        text = _answer(action)
    except AWAY:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever it raises, the decision itself goes on
        why: Json = failure_of(exc, code="E_REASONER").as_json()
        return Summed(None, (*session.taken_notes(), Note("REASONER_PROMPT", {"node": KEY, "error": why})))
    turns = int(known.get("turns") or 0) + len(covered)
    entry: dict[str, Json] = {"text": text, "turns": turns, "through": covered[-1]["ended"]}
    return Summed(entry, session.taken_notes())


def shared(policy: Policy, share: float) -> Policy:
    """The policy with so much of a reasoner's time."""
    return policy.model_copy(update={"reasoner_timeout_s": policy.reasoner_timeout_s * share})


def _answer(action: Action) -> Json:
    if action.slots:
        raise BadAction("a summary is an answer", value=action.slots[0][0].tool, expected='{"answer": …}')
    return action.answer
