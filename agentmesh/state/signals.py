"""What traces wait for, and how it arrives: a signal, a person's decision, the end of a time.

Whoever brings it takes the trace row first, then looks for the waiting step, so that a signal and the step that will
listen for it meet whichever comes first. A signal that nobody waits for is kept until somebody does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from agentmesh.errors import AlreadyDecided, TraceEnded, UnknownTrace
from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Failure, Json, Ring, named, new_id
from agentmesh.state import inbox
from agentmesh.state.calls import step_ring

OPEN = "status IN ('held', 'queued', 'running', 'waiting')"

SEND = f"""
WITH t AS (UPDATE mesh.traces SET seq = seq + 1, inbox = inbox + 1
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND {OPEN}
     AND NOT EXISTS (SELECT 1 FROM mesh.signals s WHERE s.trace_id = %(trace)s AND s.key = %(key)s)
   RETURNING id, tenant_id, seq),
 g AS (INSERT INTO mesh.signals (id, tenant_id, trace_id, name, key, payload, sent_by)
   SELECT %(signal)s, tenant_id, id, %(name)s, %(key)s, %(payload)s::jsonb, %(by)s FROM t)
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
 SELECT id, seq, tenant_id, 'EXEC_SIGNAL', %(body)s::jsonb FROM t RETURNING trace_id
"""

LISTENING = """
SELECT id FROM mesh.steps WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND kind = 'signal' AND status = 'waiting'
  AND waits_for = 'signal:' || %(name)s ORDER BY ordinal LIMIT 1
"""

LISTENER = """
SELECT coalesce(t.plan_hash, g.plan_hash) AS plan_hash, s.id IS NOT NULL AS waits, s.action->'schema' AS schema
  FROM mesh.traces t LEFT JOIN mesh.agents g ON g.tenant_id = t.tenant_id AND g.id = t.agent
  LEFT JOIN LATERAL (SELECT s.id, s.action FROM mesh.steps s WHERE s.trace_id = t.id AND s.tenant_id = t.tenant_id
     AND s.kind = 'signal' AND s.status = 'waiting' AND s.waits_for = 'signal:' || %(name)s ORDER BY s.ordinal LIMIT 1) s ON true
 WHERE t.id = %(trace)s AND t.tenant_id = %(tenant)s
"""

ASKED = """
SELECT s.id AS step_id, s.trace_id, s.node, s.action AS asked, s.created_at, s.wake_at, t.agent, t.intent, t.context_id,
  (SELECT array_agg(DISTINCT o.who) FROM mesh.traces r LEFT JOIN mesh.events e ON e.trace_id = r.id
      AND e.tenant_id = r.tenant_id AND e.seq = 1, LATERAL (VALUES (r.from_id), (e.body->>'by')) o(who)
    WHERE r.id IN (t.id, t.root_id) AND r.tenant_id = t.tenant_id AND o.who IS NOT NULL) AS asked_by
  FROM mesh.steps s JOIN mesh.traces t ON t.id = s.trace_id AND t.tenant_id = s.tenant_id
 WHERE s.tenant_id = %(tenant)s AND s.kind = 'approval' AND s.status = 'waiting'
   AND (%(trace)s::uuid IS NULL OR s.trace_id = %(trace)s) AND (%(after)s::uuid IS NULL OR s.id > %(after)s)
 ORDER BY s.id LIMIT %(limit)s
"""

LAST_ASKED = """
SELECT node, output FROM mesh.steps WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND kind = 'approval'
  AND output IS NOT NULL ORDER BY ordinal DESC LIMIT 1
"""

DECIDE = f"""
WITH t AS (UPDATE mesh.traces SET seq = seq + 1, status = CASE status WHEN 'waiting' THEN 'running' ELSE status END,
    waits_for = NULL
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND {OPEN} RETURNING id, tenant_id, seq)
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, body)
 SELECT id, seq, tenant_id, 'EXEC_SIGNAL', %(step)s, %(body)s::jsonb FROM t RETURNING trace_id
"""

DECIDED = """
UPDATE mesh.steps SET status = 'joined', rung_at = mesh.mesh_now(), wake_at = NULL, output = %(output)s::jsonb
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'waiting'
RETURNING id, epoch, queue, agent, priority
"""

DUE = """
SELECT id, trace_id, tenant_id, kind FROM mesh.steps WHERE status = 'waiting' AND wake_at IS NOT NULL
  AND wake_at <= mesh.mesh_asof() ORDER BY wake_at LIMIT %(batch)s
"""

TIME_IS_UP = """
UPDATE mesh.traces SET seq = seq + 1, status = 'running', waits_for = NULL
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('running', 'waiting') RETURNING seq
"""

# What an escalation adds is who may decide. It looks late where nobody was there to look: the time that is left has begun all
# the same, and may be over by now.
ESCALATE = """
UPDATE mesh.steps SET action = (action - 'escalate') || jsonb_build_object('who', (action->'who') || (action->'escalate'->'who'),
    'escalated', true), wake_at = wake_at + make_interval(secs => (action->>'left_s')::float8)
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'waiting' AND action ? 'escalate'
   AND wake_at <= mesh.mesh_asof()
RETURNING node
"""

WAKE = """
UPDATE mesh.steps SET status = 'joined', rung_at = mesh.mesh_now(), wake_at = NULL,
  output = CASE kind WHEN 'wait' THEN '{"ok": true, "value": null}' ELSE %(late)s::jsonb END
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'waiting' AND wake_at <= mesh.mesh_asof()
RETURNING id, epoch, queue, agent, priority, node
"""

EVENT = """
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, body)
VALUES (%(trace)s, %(seq)s, %(tenant)s, 'EXEC_SIGNAL', %(step)s, %(body)s::jsonb)
"""

LATE = Failure("E_TIMEOUT", "nobody answered in time")


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a signal: heard by a waiting step (whose ring this is), kept for a later one, or a repetition."""

    heard: bool
    repeated: bool
    rings: tuple[Ring, ...] = ()


def send(
    db: Database, *, tenant: str, trace_id: UUID, name: str, payload: Json = None, by: str, key: str | None = None
) -> Sent:
    """The signal is recorded, once under its `key`, and heard by the step that waits for it or will.

    Raises UnknownTrace, or TraceEnded.
    """
    at = {"trace": trace_id, "tenant": tenant, "name": name}
    body = {"signal": name, **named(by)}
    with suppress(psycopg.errors.UniqueViolation), db.begin() as tx:
        given = {"key": key, "signal": new_id(), "payload": jsonb(payload) or "null", "by": by, "body": jsonb(body)}
        if tx.one(SEND, at | given) is None:
            raise psycopg.Rollback
        step = tx.one(LISTENING, at)
        row = inbox.hear(tx, tenant=tenant, trace_id=trace_id, step_id=step["id"], name=name) if step else None
        return Sent(row is not None, repeated=False, rings=(_ring(row, trace_id),) if row else ())
    _require_open(db, at)
    return Sent(heard=False, repeated=True)


def listening(db: Database, *, tenant: str, trace_id: UUID, name: str) -> Row | None:
    """Whether a step `waits` for the signal now, and the `schema` of its payload if it has one; the `plan_hash` that the
    trace follows, or will. None: there is no such trace."""
    rows = db.once(LISTENER, {"trace": trace_id, "tenant": tenant, "name": name})
    return rows[0] if rows else None


def asked(
    db: Database, *, tenant: str, trace_id: UUID | None = None, after: UUID | None = None, limit: int = 200
) -> list[Row]:
    """What waits for a person's decision, oldest first, behind step `after`; `asked_by` are those who sent its trace, or
    that one's root."""
    return db.once(ASKED, {"tenant": tenant, "trace": trace_id, "after": after, "limit": limit})


def decide(
    db: Database, *, tenant: str, step: Row, choice: str, ok: bool, by: str, reason: str | None
) -> tuple[Ring, ...]:
    """The waiting approval is decided. Raises AlreadyDecided with the decision that stands, UnknownTrace, TraceEnded."""
    at = {"trace": step["trace_id"], "tenant": tenant, "step": step["step_id"]}
    said: dict[str, Json] = {"choice": choice, "by": by} | ({"reason": reason} if reason else {})
    output: dict[str, Json] = {"ok": ok, "value": said}
    if not ok:
        output["error"] = Failure("E_REJECTED", f"{by} chose {choice}" + (f": {reason}" if reason else "")).as_json()
    with db.begin() as tx:
        if tx.one(DECIDE, at | {"body": jsonb({"node": step["node"], **said, **named(by)})}) is None:
            raise psycopg.Rollback
        row = tx.one(DECIDED, at | {"output": jsonb(output)})
        if row is None:
            raise psycopg.Rollback
        return (_ring(row, step["trace_id"]),)
    raise decided_before(db, tenant=tenant, trace_id=step["trace_id"])


def decided_before(db: Database, *, tenant: str, trace_id: UUID) -> Exception:
    """Why nothing of this trace waits for a decision: UnknownTrace, or AlreadyDecided with what stands."""
    at = {"trace": trace_id, "tenant": tenant}
    rows = db.once("SELECT status FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s", at)
    if not rows:
        return UnknownTrace("no trace has this id", value=str(trace_id))
    last = db.once(LAST_ASKED, at)
    if last:
        said = (last[0]["output"] or {}).get("value") or (last[0]["output"] or {}).get("error")
        return AlreadyDecided(
            f"{last[0]['node']} has been decided", value=said, next=f"agentmesh trace show {trace_id}"
        )
    return AlreadyDecided("nothing of this trace waits for a decision", value=rows[0]["status"],
                          next=f"agentmesh trace show {trace_id}")  # fmt: skip


def due(db: Database, *, batch: int) -> Sequence[Row]:
    """Waiting steps whose time is over."""
    return db.once(DUE, {"batch": batch})


def wake(db: Database, row: Row) -> list[Ring]:
    """The step whose time is over goes on, or asks more people; nothing where it has been answered meanwhile."""
    at = {"trace": row["trace_id"], "tenant": row["tenant_id"], "step": row["id"]}
    with db.begin() as tx:
        trace = tx.one(TIME_IS_UP, at)
        if trace is None:
            raise psycopg.Rollback
        if row["kind"] == "approval" and (more := tx.one(ESCALATE, at)) is not None:
            tx.count(EVENT, at | {"seq": trace["seq"], "body": jsonb({"node": more["node"], "escalated": True})})
            tx.count(
                "UPDATE mesh.traces SET status = 'waiting', waits_for = 'approval:' || %(node)s"
                " WHERE id = %(trace)s AND tenant_id = %(tenant)s AND worker_id IS NULL",
                at | more,
            )
            return []
        late: dict[str, Json] = {"ok": False, "value": None, "error": LATE.as_json()}
        step = tx.one(WAKE, at | {"late": jsonb(late)})
        if step is None:
            raise psycopg.Rollback
        tx.count(EVENT, at | {"seq": trace["seq"], "body": jsonb({"node": step["node"], "time": "over"})})
        return [_ring(step, row["trace_id"])]
    return []


def _require_open(db: Database, at: dict[str, Any]) -> None:
    rows = db.once("SELECT status FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s", at)
    if not rows:
        raise UnknownTrace("no trace has this id", value=str(at["trace"]))
    if rows[0]["status"] in {"done", "failed", "cancelled"}:
        raise TraceEnded("the trace has ended", value=rows[0]["status"])


def _ring(row: Row, trace_id: UUID) -> Ring:
    return step_ring({f"step_{name}": row[name] for name in ("id", "epoch", "queue", "agent", "priority")}, trace_id)
