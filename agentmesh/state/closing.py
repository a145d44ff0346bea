"""Closing what is open of a trace whose row this transaction holds: its calls, its steps, what runs of them.

Whatever still runs comes too late, and a child trace that a call waits for is owed a cancel. Lock order: calls (by id)
→ steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from agentmesh.infrastructure.database import Tx
from agentmesh.records import new_id

LOCK_CALLS = """
SELECT id FROM mesh.calls WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('held', 'ready', 'running')
  AND NOT step_id = ANY(%(besides)s) ORDER BY id FOR NO KEY UPDATE
"""

DROP_CALLS = """
UPDATE mesh.calls SET status = 'cancelled', ended_at = mesh.mesh_now(), worker_id = NULL, child = NULL, claim_id = NULL,
  deadline = NULL, wake_at = NULL, epoch = epoch + 1, cancel_owed = child_trace_id IS NOT NULL
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('held', 'ready', 'running')
  AND NOT step_id = ANY(%(besides)s) RETURNING step_id
"""

DROP_STEPS = """
UPDATE mesh.steps SET status = 'cancelled', ended_at = mesh.mesh_now(), deadline = NULL, wake_at = NULL, rung_at = NULL
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('ready', 'running', 'waiting', 'joined')
  AND NOT id = ANY(%(besides)s) RETURNING id AS step_id
"""

# What runs inside a held trace has no attempt of its own before it has ended.
NOTE_RUNNING = """
INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, call_id, kind, n, epoch, worker_id, child, idem_key, started_at)
 SELECT x.attempt, c.tenant_id, c.trace_id, c.step_id, c.id, 'tool', c.n, c.epoch, c.worker_id, c.child, c.idem_key,
   c.deadline - make_interval(secs => c.timeout_s)
 FROM unnest(%(ids)s::uuid[], %(attempts)s::uuid[]) x(id, attempt) JOIN mesh.calls c ON c.id = x.id
 WHERE c.tenant_id = %(tenant)s AND c.status = 'running' AND c.claim_id IS NULL AND c.kind = 'tool'
ON CONFLICT (call_id, n) WHERE call_id IS NOT NULL DO NOTHING
"""

# Whoever still runs these is too late.
END_ATTEMPTS = """
UPDATE mesh.attempts SET outcome = 'stale', ended_at = mesh.mesh_now()
 WHERE step_id = ANY(%(steps)s) AND tenant_id = %(tenant)s AND outcome IS NULL
"""


def close(tx: Tx, at: dict[str, Any], *, besides: Iterable[UUID] = ()) -> None:
    """Nothing of the trace is open any more but these steps."""
    these = {"trace": at["trace"], "tenant": at["tenant"], "besides": list(besides)}
    note_running(tx, at["tenant"], [row["id"] for row in tx.all(LOCK_CALLS, these)])
    dropped = {row["step_id"] for drop in (DROP_CALLS, DROP_STEPS) for row in tx.all(drop, these)}
    tx.count(END_ATTEMPTS, {"tenant": at["tenant"], "steps": list(dropped)})


def note_running(tx: Tx, tenant: str, calls: Sequence[UUID]) -> None:
    """Of those of these locked calls that ran inside their held trace there is an attempt, for whoever ends them instead."""
    if calls:
        tx.count(NOTE_RUNNING, {"ids": list(calls), "attempts": [new_id() for _ in calls], "tenant": tenant})
