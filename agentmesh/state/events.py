"""Writing trace events from outside a step: the TraceWriter.

Numbered events are appended only by a transition that updates the trace row; the holder's go with its commits
(state/traces). What is written here takes the trace row for its number, like every other.
"""

from __future__ import annotations

from uuid import UUID

from agentmesh.errors import Mistake, UnknownTrace
from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Json, new_id

ENDS = frozenset({"EXEC_DONE", "EXEC_FAIL", "EXEC_CANCEL"})

RECORD = """
WITH t AS (UPDATE mesh.traces SET seq = seq + 1
  WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status NOT IN ('done', 'failed', 'cancelled')
  RETURNING id, tenant_id, seq)
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
 SELECT id, seq, tenant_id, %(name)s, %(body)s::jsonb FROM t RETURNING seq
"""


AFTER = """
SELECT seq, name, at, step_id, call_id, body FROM mesh.events
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND seq > %(after)s ORDER BY seq
"""


def after(db: Database, tenant: str, trace_id: UUID, seq: int) -> list[Row]:
    """The trace's events past number `seq`, in order: seq, name, at, step_id, call_id, body."""
    return db.read(AFTER, {"trace": trace_id, "tenant": tenant, "after": seq})


class TraceWriter:
    """Trace events in PostgreSQL. `TraceWriter()` may be made before a database is known; it is bound by wiring."""

    def __init__(self, db: Database | None = None, *, tenant_id: str = "default") -> None:
        self._db, self._tenant = db, tenant_id

    def bind(self, db: Database, *, tenant_id: str) -> None:
        """Afterwards this writer writes there; an already bound one keeps its database."""
        if self._db is None:
            self._db, self._tenant = db, tenant_id

    def new_trace(self) -> UUID:
        """An id for a trace to come."""
        return new_id()

    def record(self, trace_id: UUID | str, event: str, payload: dict[str, Json] | None = None) -> int:
        """Append the event to an open trace; its number.

        Raises UnknownTrace when there is none that is open, and Mistake for an event that only a trace's end writes.
        """
        if event in ENDS:
            raise Mistake("this event is written by the trace's own end", value=event, expected="another event's name")
        rows = self._bound().once(
            RECORD,
            {"trace": UUID(str(trace_id)), "tenant": self._tenant, "name": event, "body": jsonb(payload or {})},
        )
        if not rows:
            raise UnknownTrace("there is no open trace with this id", value=str(trace_id))
        return int(rows[0]["seq"])

    record_event = record
    append = record

    def get(self, trace_id: UUID | str) -> list[Row]:
        """Every event of the trace in order: seq, name, at, step_id, call_id, body."""
        return after(self._bound(), self._tenant, UUID(str(trace_id)), 0)

    def _bound(self) -> Database:
        if self._db is None:
            raise UnknownTrace("this TraceWriter has no database yet", next="agentmesh config show")
        return self._db
