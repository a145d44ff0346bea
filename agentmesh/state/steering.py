"""What a person does to a trace while it runs: pause, resume, cancel. Each is idempotent, and told the truth.

Pause is a flag that stops the start of steps; calls that were dispatched run and are kept. Cancel ends the trace at
once: nothing of it starts afterwards, and what still runs comes too late. Lock order: trace → calls (by id) → step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from agentmesh.errors import UnknownTrace
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Ring, named, new_id
from agentmesh.state.calls import call_ring, step_ring
from agentmesh.state.closing import close
from agentmesh.state.deliveries import END_COLUMNS, INSERT_END

OPEN = "status IN ('held', 'queued', 'running', 'waiting')"

PAUSE = f"""
WITH t AS (UPDATE mesh.traces SET paused_at = mesh.mesh_now(), seq = seq + 1
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND {OPEN} AND paused_at IS NULL RETURNING id, tenant_id, seq)
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
 SELECT id, seq, tenant_id, 'EXEC_PAUSE', %(body)s::jsonb FROM t RETURNING trace_id
"""

RESUME = f"""
WITH t AS (UPDATE mesh.traces SET paused_at = NULL, seq = seq + 1,
    rung_at = CASE WHEN status = 'queued' THEN mesh.mesh_now() ELSE rung_at END
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND {OPEN} AND paused_at IS NOT NULL
   RETURNING id, tenant_id, seq, status, worker_id, epoch, queue, agent, priority, wake_at),
 e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
   SELECT id, seq, tenant_id, 'EXEC_RESUME', %(body)s::jsonb FROM t)
SELECT * FROM t
"""

# A fan-out that was decided while the trace was paused: its step is ready, its calls are held.
LOCK_HELD = """
SELECT c.id FROM mesh.calls c JOIN mesh.steps s ON s.id = c.step_id AND s.tenant_id = c.tenant_id
 WHERE c.trace_id = %(trace)s AND c.tenant_id = %(tenant)s AND c.status = 'held' AND c.idx = 0
   AND (NOT c.limited OR c.slot < (s.action->>'limit')::int)
   AND s.kind = 'tools' AND s.phase = 'run' AND s.status = 'ready' ORDER BY c.id FOR NO KEY UPDATE OF c
"""

START_HELD = """
UPDATE mesh.calls SET status = 'ready', rung_at = mesh.mesh_now() WHERE id = ANY(%(ids)s) AND tenant_id = %(tenant)s
RETURNING id, epoch, queue, task, priority, trace_id
"""

START_STEPS = """
UPDATE mesh.steps SET status = 'waiting', started_at = mesh.mesh_now(), rung_at = NULL
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND kind = 'tools' AND phase = 'run' AND status = 'ready'
"""

READY_STEPS = """
UPDATE mesh.steps SET rung_at = mesh.mesh_now() WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s
  AND status IN ('ready', 'joined') AND (wake_at IS NULL OR wake_at <= mesh.mesh_asof())
RETURNING id, epoch, queue, agent, priority
"""

CANCEL = f"""
WITH t AS (UPDATE mesh.traces SET status = 'cancelled', cancelled_at = mesh.mesh_now(), ended_at = mesh.mesh_now(),
    epoch = epoch + 1, worker_id = NULL, child = NULL, claim_id = NULL, wake_at = NULL, waits_for = NULL, paused_at = NULL,
    seq = seq + 1, parent_owed = parent_call_id IS NOT NULL, cancel_owed = %(tree)s
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND {OPEN} RETURNING id, tenant_id, seq, {END_COLUMNS}),
 {INSERT_END}
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
 SELECT id, seq, tenant_id, 'EXEC_CANCEL', %(body)s::jsonb FROM t RETURNING trace_id
"""

BELOW = f"""
WITH RECURSIVE below AS (
  SELECT id, status FROM mesh.traces WHERE parent_id = %(trace)s AND tenant_id = %(tenant)s
  UNION ALL SELECT t.id, t.status FROM mesh.traces t JOIN below b ON t.parent_id = b.id WHERE t.tenant_id = %(tenant)s)
SELECT id FROM below WHERE {OPEN} ORDER BY id LIMIT %(batch)s
"""

OWED = """
SELECT id, tenant_id FROM mesh.traces WHERE cancel_owed ORDER BY id LIMIT %(batch)s
"""

STATE = "SELECT status, paused_at FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s"
BATCH = 200


@dataclass(frozen=True, slots=True)
class Steered:
    """What became of an order. `changed` False: the trace was already so, or has ended; `status` is what it is now."""

    changed: bool
    status: str
    paused: bool
    rings: tuple[Ring, ...] = ()


def pause(db: Database, *, tenant: str, trace_id: UUID, by: str, reason: str = "") -> Steered:
    """No step of the trace starts from now on. Raises UnknownTrace."""
    at = {"trace": trace_id, "tenant": tenant}
    won = db.once(PAUSE, at | {"body": _said(by, reason)})
    return _now(db, at, changed=bool(won))


def resume(db: Database, *, tenant: str, trace_id: UUID, by: str, reason: str = "") -> Steered:
    """The paused trace goes on where it stood; the rings that are owed. Raises UnknownTrace."""
    at = {"trace": trace_id, "tenant": tenant}
    rings: list[Ring] = []
    with db.begin() as tx:
        row = tx.one(RESUME, at | {"body": _said(by, reason)})
        if row is None:
            raise psycopg.Rollback
        rings = _go_on(tx, at, row)
    return _now(db, at, changed=row is not None, rings=rings)


def cancel(db: Database, *, tenant: str, trace_id: UUID, by: str, reason: str = "", tree: bool = False) -> Steered:
    """The trace is over, and with `tree` everything it delegated. Raises UnknownTrace."""
    at = {"trace": trace_id, "tenant": tenant}
    changed = _cancel(db, at, by, reason, tree=tree)
    if changed and tree:
        cancel_below(db, tenant=tenant, trace_id=trace_id)
    return _now(db, at, changed=changed)


def cancel_below(db: Database, *, tenant: str, trace_id: UUID) -> int:
    """What the cancelled trace had delegated is cancelled, trace by trace from the top; how many that were.

    A crash in between leaves `cancel_owed` on the trace, and the rescuer goes on from there.
    """
    at = {"trace": trace_id, "tenant": tenant}
    cancelled = 0
    while rows := db.once(BELOW, at | {"batch": BATCH}):
        for row in rows:
            cancelled += _cancel(db, {"trace": row["id"], "tenant": tenant}, "mesh", f"with {trace_id}", tree=False)
    db.once("UPDATE mesh.traces SET cancel_owed = false WHERE id = %(trace)s AND tenant_id = %(tenant)s", at)
    return cancelled


def owed(db: Database, *, batch: int) -> Sequence[Row]:
    """Cancelled traces whose delegated ones may still be open."""
    return db.once(OWED, {"batch": batch})


def _cancel(db: Database, at: dict[str, Any], by: str, reason: str, *, tree: bool) -> bool:
    with db.begin() as tx:
        if tx.one(CANCEL, at | {"body": _said(by, reason), "tree": tree, "delivery": new_id()}) is None:
            raise psycopg.Rollback
        close(tx, at)
        return True
    return False


def _go_on(tx: Tx, at: dict[str, Any], row: Row) -> list[Ring]:
    trace: UUID = row["id"]
    if row["status"] == "queued":
        return [Ring("trace", trace, row["epoch"], row["queue"], f"agent.{row['agent']}", trace, row["priority"])]
    rings: list[Ring] = []
    if held := [one["id"] for one in tx.all(LOCK_HELD, at)]:
        rings += [call_ring(one) for one in tx.all(START_HELD, at | {"ids": held})]
        tx.count(START_STEPS, at)
    if row["worker_id"] is None:
        ready = tx.all(READY_STEPS, at)
        rings += [step_ring({f"step_{name}": value for name, value in one.items()}, trace) for one in ready]
    return rings


def _now(db: Database, at: dict[str, Any], *, changed: bool, rings: Sequence[Ring] = ()) -> Steered:
    rows = db.once(STATE, at)
    if not rows:
        raise UnknownTrace("no trace has this id", value=str(at["trace"]))
    return Steered(changed, rows[0]["status"], rows[0]["paused_at"] is not None, tuple(rings))


def _said(by: str, reason: str) -> str:
    body = named(by) | ({"reason": reason} if reason else {})
    return jsonb(body) or "{}"
