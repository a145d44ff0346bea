"""Everything about one trace in one JSON, for whoever has to find out why it stands where it stands.

Reads only, in several statements: of a trace that moves meanwhile the parts may be a moment apart. Secrets are redacted
everywhere, as in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from uuid import UUID

from agentmesh.execution.foresight import Foresight
from agentmesh.execution.views import Parts
from agentmesh.infrastructure.logging import redact
from agentmesh.observation import timeline
from agentmesh.records import Json
from agentmesh.state import traces

OPEN = ("held", "ready", "running", "waiting", "joined")
MAX_EVENTS = 1000


class Dumps:
    """Dumps of the traces of one tenant."""

    def __init__(self, parts: Callable[[], Parts], *, tenant: str) -> None:
        self._parts, self._tenant = parts, tenant

    def dump(self, trace_id: UUID) -> dict[str, Any]:
        """The trace with its context, session, memory, plan, steps, calls, attempts, children and newest events.

        `next` says of each open step what will be decided and why, `held_up_by` what keeps the whole trace from going on.
        Values over 64 KiB stay references. Raises UnknownTrace.
        """
        parts = self._parts()
        db, tenant = parts.db, self._tenant
        seen = timeline.trace(db, tenant, trace_id)
        row = seen.trace
        opened = [Foresight(parts, one) for one in traces.look(db, tenant=tenant, trace_id=trace_id)]
        whole: dict[str, Any] = {
            "trace": row,
            "held_up_by": _held_up(row),
            "next": [asdict(one.next()) for one in opened] or [_nothing(row)],
            "session": opened[-1].session() if opened else None,
            "context": timeline.context(db, tenant, row["context_id"]),
            "memory": timeline.part(db, tenant, trace_id, "memory"),
            "plan": timeline.plan(db, tenant, row["plan_hash"]) if row["plan_hash"] else None,
            "open_steps": [one for one in seen.steps if one["status"] in OPEN],
            "steps": [one for one in seen.steps if one["status"] not in OPEN],
            "pending_calls": [one for one in seen.calls if one["status"] in OPEN],
            "calls": [one for one in seen.calls if one["status"] not in OPEN],
            "attempts": seen.attempts,
            "children": seen.children,
            "signals": timeline.signals(db, tenant, trace_id),
            "events": timeline.newest(db, tenant, trace_id, limit=MAX_EVENTS),
        }
        redacted: dict[str, Any] = redact(whole)
        return redacted


def _held_up(row: Mapping[str, Any]) -> list[str]:
    """What keeps the trace from going on, whatever its steps say."""
    found = []
    if row["paused_at"] is not None:
        found.append(f"it is paused since {row['paused_at']}")
    if row["status"] == "held":
        found.append("it is not admitted yet: its lane or its agent's limit is full")
    if row["status"] == "queued" and row["wake_at"] is not None:
        found.append(f"it is not to begin before {row['wake_at']}")
    if row["worker"] is not None:
        found.append(f"worker {row['worker']} has it")
    return found


def _nothing(row: Mapping[str, Any]) -> dict[str, Json]:
    """Why no step is open."""
    why = f"the trace is {row['status']}" + ("" if row["plan_hash"] else ": it has not begun")
    return {"step": None, "node": None, "decision": None, "why": why}
