"""Signals that have come before the step that listens for them.

Only within a transaction that holds the trace row: the sender's, or the one that opened the step.
"""

from __future__ import annotations

from uuid import UUID

from agentmesh.infrastructure.database import Row, Tx

# The oldest signal of this name that no step has had.
HEAR = """
WITH g AS (UPDATE mesh.signals SET step_id = %(step)s WHERE id = (SELECT id FROM mesh.signals
     WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND name = %(name)s AND step_id IS NULL ORDER BY id LIMIT 1)
   AND tenant_id = %(tenant)s RETURNING payload),
 s AS (UPDATE mesh.steps s SET status = 'joined', rung_at = mesh.mesh_now(), wake_at = NULL,
    output = jsonb_build_object('ok', true, 'value', g.payload) FROM g
   WHERE s.id = %(step)s AND s.trace_id = %(trace)s AND s.tenant_id = %(tenant)s AND s.status = 'waiting'
   RETURNING s.id, s.epoch, s.queue, s.agent, s.priority)
SELECT * FROM s
"""

GOES_ON = """
UPDATE mesh.traces SET status = 'running', waits_for = NULL, inbox = greatest(0, inbox - 1)
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('running', 'waiting')
"""


def hear(tx: Tx, *, tenant: str, trace_id: UUID, step_id: UUID, name: str) -> Row | None:
    """The waiting step, joined by the signal it has now been given; None when there is none for it."""
    at = {"trace": trace_id, "tenant": tenant, "step": step_id}
    row = tx.one(HEAR, at | {"name": name})
    if row is not None:
        tx.count(GOES_ON, at)
    return row
