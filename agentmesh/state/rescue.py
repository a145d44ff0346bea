"""Giving back what its holder can no longer do: the work of the dead, and what ran past its deadline.

Candidates are selected in bounded batches; each is then changed by an ordinary guarded transition, one by one, so two
rescuers are harmless and one bad row stops nothing. Rescue of a trace takes the trace row first, then its calls by id.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import psycopg

from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Failure, Json, Policy, Ring, new_id
from agentmesh.state import calls
from agentmesh.state.calls import Settled
from agentmesh.state.closing import note_running
from agentmesh.state.deliveries import END_COLUMNS, INSERT_END
from agentmesh.state.traces import Holder

# What a worker left behind by its own will is handed back; a `once` call that it ran may have taken effect.
ORPHANS = """
(SELECT 'trace' AS kind, t.id, t.tenant_id, t.epoch, t.worker_id,
   CASE w.state WHEN 'gone' THEN 'released' ELSE 'lost' END AS outcome FROM mesh.traces t
  LEFT JOIN mesh.workers w ON w.id = t.worker_id
  WHERE t.worker_id IS NOT NULL AND w.state IS DISTINCT FROM 'alive' LIMIT %(batch)s)
UNION ALL
(SELECT 'call', c.id, c.tenant_id, c.epoch, c.worker_id,
   CASE WHEN w.state = 'gone' AND c.effect <> 'once' THEN 'released' ELSE 'lost' END FROM mesh.calls c
  LEFT JOIN mesh.workers w ON w.id = c.worker_id
  WHERE c.worker_id IS NOT NULL AND c.claim_id IS NOT NULL AND w.state IS DISTINCT FROM 'alive' LIMIT %(batch)s)
"""

# An inline call, a reasoner and a callback are first of all their holder's to time out: it gets two seconds more.
OVERDUE = """
(SELECT 'call' AS kind, c.id, c.tenant_id, c.epoch, c.worker_id, 'timeout' AS outcome FROM mesh.calls c
  WHERE c.status = 'running' AND c.deadline < mesh.mesh_asof() AND c.claim_id IS NOT NULL LIMIT %(batch)s)
UNION ALL
(SELECT 'trace', t.id, t.tenant_id, t.epoch, t.worker_id, 'timeout' FROM mesh.steps s
  JOIN mesh.traces t ON t.id = s.trace_id AND t.tenant_id = s.tenant_id
  WHERE s.status = 'running' AND s.deadline < mesh.mesh_asof() - interval '2 s' AND t.worker_id IS NOT NULL LIMIT %(batch)s)
"""

# A call on its tool's own queue that nobody could have taken: no worker with this tool has beaten for so long.
UNSERVED = """
SELECT c.id, c.epoch, c.task, c.tool FROM mesh.calls c
 WHERE c.status = 'ready' AND c.task = 'tool.' || c.tool
   AND greatest(c.created_at, c.wake_at) < mesh.mesh_asof() - make_interval(secs => %(after_s)s)
   AND NOT EXISTS (SELECT 1 FROM mesh.workers w WHERE c.tool = ANY(w.tools)
     AND w.beat_at > mesh.mesh_asof() - make_interval(secs => %(after_s)s)) LIMIT %(batch)s
"""

LET_GO = """
WITH t AS (
  UPDATE mesh.traces SET worker_id = NULL, child = NULL, claim_id = NULL, epoch = epoch + 1, seq = seq + 1
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND worker_id = %(worker)s AND epoch = %(epoch)s AND status = 'running'
  RETURNING id, tenant_id, seq, policy),
 e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
   SELECT id, seq, tenant_id, 'EXEC_RESCUE', %(body)s::jsonb FROM t)
SELECT (policy->>'max_losses')::int AS max_losses FROM t
"""

# The holder may have gone on to its next step between the selection and our lock on the trace.
STILL_OVERDUE = """
SELECT 1 FROM mesh.steps WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'running'
  AND deadline < mesh.mesh_asof() - interval '2 s'
"""

LOCK_INLINE = """
SELECT id, tenant_id, epoch, effect, deadline < mesh.mesh_asof() AS overdue FROM mesh.calls
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'running' AND claim_id IS NULL AND worker_id = %(worker)s
 ORDER BY id FOR NO KEY UPDATE
"""

REOPEN_STEPS = """
UPDATE mesh.steps SET status = CASE WHEN kind = 'tools' AND phase = 'run' THEN 'waiting' ELSE 'ready' END,
  epoch = epoch + 1, deadline = NULL, rung_at = mesh.mesh_now(), rings = 0,
  losses = losses + (%(outcome)s = 'lost' AND (kind <> 'tools' OR phase = 'callback'))::int,
  failures = failures + (%(outcome)s = 'timeout')::int,
  error = CASE WHEN %(outcome)s = 'timeout' THEN %(error)s::jsonb ELSE error END
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'running'
RETURNING id, status, epoch, queue, agent, priority, losses
"""

# The end of a trace whose step no process survives. Its row is ours in this transaction, and held by nobody.
PARK = f"""
WITH t AS (
  UPDATE mesh.traces SET status = 'failed', error = %(error)s::jsonb, ended_at = mesh.mesh_now(), seq = seq + 1,
    parent_owed = parent_call_id IS NOT NULL
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status = 'running' AND worker_id IS NULL
  RETURNING id, tenant_id, seq, {END_COLUMNS}),
 {INSERT_END},
 s AS (UPDATE mesh.steps st SET status = 'failed', error = %(error)s::jsonb, ended_at = mesh.mesh_now(), rung_at = NULL FROM t
   WHERE st.id = %(step)s AND st.trace_id = t.id AND st.tenant_id = t.tenant_id
   RETURNING st.id, st.node, st.phase, st.losses),
 e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, body)
   SELECT id, seq, tenant_id, 'EXEC_FAIL', %(step)s, jsonb_build_object('error_code', 'E_POISON') FROM t)
INSERT INTO mesh.dead_letters (id, tenant_id, trace_id, step_id, code, fingerprint, evidence)
 SELECT %(letter)s, t.tenant_id, t.id, s.id, 'E_POISON', 'E_POISON:' || t.agent || ':' || s.node, jsonb_build_object(
   'node', s.node, 'phase', s.phase, 'losses', s.losses, 'attempts', (SELECT jsonb_agg(jsonb_build_object('n', l.n,
     'kind', l.kind, 'worker', l.worker_id, 'child', l.child, 'started_at', l.started_at) ORDER BY l.n)
    FROM mesh.attempts l WHERE l.step_id = s.id AND l.tenant_id = t.tenant_id AND l.call_id IS NULL)) FROM t, s
"""

END_ATTEMPTS = """
UPDATE mesh.attempts SET ended_at = mesh.mesh_now(), outcome = %(outcome)s, error = %(error)s::jsonb
 WHERE step_id = ANY(%(steps)s) AND tenant_id = %(tenant)s AND call_id IS NULL AND outcome IS NULL
"""

TIMEOUT = Failure("E_TIMEOUT", "no answer before the deadline")
POISON = Failure(
    "E_POISON", "every worker that ran this step was lost, the last ones running nothing else", permanent=True
)
NO_WORKER = Failure("E_NO_WORKER", "no worker that has this tool was there for too long", permanent=True)
LOST = Failure("E_LOST", "the worker died or lost contact before the result was recorded")


def orphans(db: Database, *, batch: int) -> list[Row]:
    """Rows that name a worker that is not alive; `outcome` is released where it left by its own will, else lost."""
    return db.once(ORPHANS, {"batch": batch})


def overdue(db: Database, *, batch: int) -> list[Row]:
    """Running calls past their deadline, and held traces whose reasoner or callback is."""
    return db.once(OVERDUE, {"batch": batch})


def give_back(db: Database, row: Row, outcome: Literal["lost", "released", "timeout"]) -> list[Ring]:
    """Afterwards the row is ready again (or failed, by its policy) unless its holder was faster; the rings to ring."""
    if row["kind"] == "call":
        failure = {"lost": LOST, "timeout": TIMEOUT}.get(outcome)
        with db.checkout() as tx:
            settled = calls.settle(
                tx, row, worker_id=row["worker_id"], outcome=outcome, failure=failure, overdue=outcome == "timeout"
            )
        return list(settled.rings) if settled else []
    with db.begin() as tx:
        return let_go(tx, row, outcome)
    return []


def unserved(db: Database, *, after_s: float, batch: int) -> list[Row]:
    """Ready calls of tools that no worker has had for `after_s`."""
    return db.once(UNSERVED, {"after_s": after_s, "batch": batch})


def give_up(db: Database, row: Row, *, worker_id: UUID) -> list[Ring]:
    """The ready call has failed for want of a worker, in an attempt of this rescuer's own; the rings to ring."""
    holder, attempt = Holder(worker_id), new_id()
    with db.begin() as tx:
        claimed = tx.one(calls.CLAIM, calls.claiming(row["id"], row["epoch"], row["task"], holder, attempt))
        if claimed is None:
            raise psycopg.Rollback
        settled = calls.settle(tx, claimed, worker_id=worker_id, outcome="failed", failure=NO_WORKER)
        return list(settled.rings) if settled else []
    return []


def let_go(tx: Tx, row: Row, outcome: Literal["lost", "released", "timeout"]) -> list[Ring]:
    trace: UUID = row["id"]
    at = {"trace": trace, "tenant": row["tenant_id"], "worker": row["worker_id"], "epoch": row["epoch"]}
    body: dict[str, Json] = {"outcome": outcome, "worker": str(row["worker_id"])}
    trace_row = tx.one(LET_GO, at | {"body": jsonb(body)})
    if trace_row is None:
        raise psycopg.Rollback
    if outcome == "timeout" and tx.one(STILL_OVERDUE, at) is None:
        raise psycopg.Rollback
    inline = tx.all(LOCK_INLINE, at)
    note_running(tx, row["tenant_id"], [one["id"] for one in inline])
    error = {"lost": LOST, "timeout": TIMEOUT}.get(outcome)
    shown = jsonb(error.as_json()) if error else None
    steps = tx.all(REOPEN_STEPS, at | {"outcome": outcome, "error": shown})
    tx.count(
        END_ATTEMPTS,
        {"steps": [one["id"] for one in steps], "tenant": row["tenant_id"], "outcome": outcome, "error": shown},
    )
    limit = trace_row["max_losses"] or Policy().max_losses
    poison = next((one for one in steps if one["losses"] > limit), None)
    if poison is not None:
        tx.count(
            PARK,
            at | {"step": poison["id"], "letter": new_id(), "delivery": new_id(), "error": jsonb(POISON.as_json())},
        )
        return []
    rings = [
        calls.step_ring({f"step_{name}": one[name] for name in ("id", "epoch", "queue", "agent", "priority")}, trace)
        for one in steps
        if one["status"] == "ready"
    ]
    for call in inline:
        late = outcome == "timeout" and call["overdue"]
        settled: Settled | None = calls.settle(
            tx, call, worker_id=row["worker_id"], outcome="timeout" if late else "lost" if outcome == "timeout" else outcome,
            failure=TIMEOUT if late else error,
        )  # fmt: skip
        rings += settled.rings if settled else ()
    return rings
