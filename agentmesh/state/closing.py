"""Closing what is open of a trace whose row this transaction holds: its calls, its steps, what runs of them.

Whatever still runs comes too late, and a child trace that a call waits for is owed a cancel. Lock order: calls (by id)
→ steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from agentmesh.infrastructure.database import Tx

LOCK_CALLS = """
SELECT id FROM mesh.calls WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('held', 'ready', 'running')
  AND NOT step_id = ANY(%(besides)s) ORDER BY id FOR NO KEY UPDATE
"""

DROP_CALLS = """
UPDATE mesh.calls SET status = 'cancelled', ended_at = mesh.mesh_now(), worker_id = NULL, child = NULL, claim_id = NULL,
  deadline = NULL, wake_at = NULL, epoch = epoch + 1, cancel_owed = kind = 'child'
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('held', 'ready', 'running')
  AND NOT step_id = ANY(%(besides)s) RETURNING step_id
"""

DROP_STEPS = """
UPDATE mesh.steps SET status = 'cancelled', ended_at = mesh.mesh_now(), deadline = NULL, wake_at = NULL, rung_at = NULL
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('ready', 'running', 'waiting', 'joined')
  AND NOT id = ANY(%(besides)s) RETURNING id AS step_id
"""

# Whoever still runs these is too late.
END_ATTEMPTS = """
UPDATE mesh.attempts SET outcome = 'stale', ended_at = mesh.mesh_now()
 WHERE step_id = ANY(%(steps)s) AND tenant_id = %(tenant)s AND outcome IS NULL
"""


def close(tx: Tx, at: dict[str, Any], *, besides: Iterable[UUID] = ()) -> None:
    """Nothing of the trace is open any more but these steps."""
    these = {"trace": at["trace"], "tenant": at["tenant"], "besides": list(besides)}
    tx.all(LOCK_CALLS, these)
    dropped = {row["step_id"] for drop in (DROP_CALLS, DROP_STEPS) for row in tx.all(drop, these)}
    tx.count(END_ATTEMPTS, {"tenant": at["tenant"], "steps": list(dropped)})
