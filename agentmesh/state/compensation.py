"""What a trace's tools have done that can be undone, newest first. Reading only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from agentmesh.infrastructure.database import Database, Row, Tx

# A step that undoes calls names them; it has undone all of them, or parked them, once it has an output, and each whose
# `undo-N` is done. Where one branch goes back, what an open step of another is about to undo is left to that one.
DONE = """
SELECT c.id, c.tool, c.label, c.args, c.result, c.compensate FROM mesh.calls c
  JOIN mesh.steps s ON s.id = c.step_id AND s.tenant_id = c.tenant_id
 WHERE s.trace_id = %(trace)s AND c.tenant_id = %(tenant)s AND c.status = 'done' AND c.compensate IS NOT NULL
   AND s.ordinal >= %(since)s AND (%(nodes)s::text[] IS NULL OR s.node = ANY(%(nodes)s))
   AND (%(only)s::uuid[] IS NULL OR c.id = ANY(%(only)s))
   AND NOT EXISTS (SELECT 1 FROM mesh.steps u, jsonb_array_elements_text(u.action->'calls') WITH ORDINALITY AS x(id, n)
     WHERE u.trace_id = %(trace)s AND u.tenant_id = %(tenant)s AND u.node IN ('start', 'compensate') AND x.id = c.id::text
       AND (u.output IS NOT NULL OR %(nodes)s::text[] IS NOT NULL AND u.status IN ('ready', 'running', 'waiting', 'joined')
         OR EXISTS (SELECT 1 FROM mesh.calls d WHERE d.step_id = u.id AND d.tenant_id = %(tenant)s AND d.status = 'done'
           AND d.label = 'undo-' || (x.n - 1))))
 ORDER BY c.ended_at DESC, c.id DESC
"""


def done(db: Database, tenant_id: str, trace_id: UUID, *, only: Sequence[UUID] | None = None) -> list[Row]:
    """Calls of the trace, of `only` these, that took effect, can be undone, and have not been."""
    return db.once(DONE, _at(tenant_id, trace_id) | {"only": only})


def since(tx: Tx, at: Mapping[str, Any], ordinal: int) -> list[Row]:
    """Such calls of the trace from its `ordinal`-th step on."""
    return tx.all(DONE, _at(at["tenant"], at["trace"]) | {"since": ordinal})


def of_nodes(tx: Tx, at: Mapping[str, Any], nodes: Sequence[str]) -> list[Row]:
    """Such calls of these nodes, for the transaction that holds the trace."""
    return tx.all(DONE, _at(at["tenant"], at["trace"]) | {"nodes": nodes})


def _at(tenant_id: str, trace_id: UUID) -> dict[str, Any]:
    return {"tenant": tenant_id, "trace": trace_id, "since": 0, "nodes": None, "only": None}
