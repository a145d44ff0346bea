"""Forgetting: versions of memory entries whose time is over are deleted, context by context, in bounded batches.

What a running trace may go back to stays: of a long-term entry the newest version that any of its steps began with and
all later ones, of a short-term one all. While a trace of the context is open, so does the newest version. The oldest
versions go first, so that no hole is left.
"""

from __future__ import annotations

from agentmesh.infrastructure.database import Database, Row
from agentmesh.state.memory import LOCK

DUE = """
SELECT tenant_id, context_id AS id FROM (SELECT tenant_id, context_id, forget_at FROM mesh.memory
  WHERE forget_at < mesh.mesh_asof() ORDER BY forget_at LIMIT %(batch)s) m GROUP BY 1, 2 ORDER BY min(forget_at)
"""

# What is still needed is looked at again in an hour, so that it does not stand in the way of what is not.
FORGET = """
WITH open AS (SELECT t.id::text AS id FROM mesh.traces t WHERE t.tenant_id = %(tenant)s AND t.context_id = %(context)s
   AND t.status IN ('held', 'queued', 'running', 'waiting')),
 floor AS (SELECT min(s.mem_seq) AS seq FROM mesh.steps s
   WHERE s.tenant_id = %(tenant)s AND s.trace_id IN (SELECT id::uuid FROM open)),
 due AS (SELECT m.id, m.type, m.scope, m.key, m.version, EXISTS (SELECT 1 FROM mesh.memory o
     WHERE o.tenant_id = m.tenant_id AND o.context_id = m.context_id AND o.type = m.type AND o.scope = m.scope
       AND o.key = m.key AND o.version < m.version AND coalesce(o.forget_at, 'infinity') >= mesh.mesh_asof()) AS behind
   FROM mesh.memory m
   WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND m.forget_at < mesh.mesh_asof()
   ORDER BY m.version LIMIT %(batch)s),
 gone AS (DELETE FROM mesh.memory m USING due WHERE m.id = due.id AND NOT due.behind AND CASE due.type
   WHEN 'short_term' THEN due.scope NOT IN (SELECT id FROM open)
   ELSE NOT EXISTS (SELECT 1 FROM open) OR EXISTS (SELECT 1 FROM mesh.memory n, floor
     WHERE n.tenant_id = %(tenant)s AND n.context_id = %(context)s AND n.type = due.type AND n.scope = due.scope
       AND n.key = due.key AND n.version > due.version AND n.mem_seq <= coalesce(floor.seq, n.mem_seq)) END
   RETURNING m.id)
UPDATE mesh.memory m SET forget_at = mesh.mesh_now() + interval '1 hour'
   FROM due WHERE m.id = due.id AND m.id NOT IN (SELECT id FROM gone)
"""


def due(db: Database, *, batch: int) -> list[Row]:
    """Contexts (tenant_id, id) with entries whose time is over, longest first."""
    return db.once(DUE, {"batch": batch})


def forget(db: Database, context: Row, *, batch: int) -> None:
    """Delete at most `batch` versions of this context (as `due` has it) whose time is over."""
    at = {"tenant": context["tenant_id"], "context": context["id"], "batch": batch}
    with db.begin() as tx:
        tx.one(LOCK, at | {"n": 0})
        tx.count(FORGET, at)
