"""What a trace's tools have done that can be undone, newest first. Reading only."""

from __future__ import annotations

from uuid import UUID

from agentmesh.infrastructure.database import Database, Row

# A call that was undone is done by a step of its own, which names it.
DONE = """
SELECT c.id, c.tool, c.label, c.args, c.result, c.compensate FROM mesh.calls c
  JOIN mesh.steps s ON s.id = c.step_id AND s.tenant_id = c.tenant_id
 WHERE s.trace_id = %(trace)s AND c.tenant_id = %(tenant)s AND c.status = 'done' AND c.compensate IS NOT NULL
   AND s.ordinal >= %(since)s AND c.id::text NOT IN (SELECT jsonb_array_elements_text(u.action->'calls') FROM mesh.steps u
     WHERE u.trace_id = %(trace)s AND u.tenant_id = %(tenant)s AND u.node = 'compensate')
 ORDER BY c.ended_at DESC, c.id DESC
"""


def done(db: Database, tenant_id: str, trace_id: UUID, *, since: int = 0) -> list[Row]:
    """Calls of the trace, from the `since`-th step on, that took effect, can be undone, and have not been."""
    return db.once(DONE, {"tenant": tenant_id, "trace": trace_id, "since": since})
