"""What other systems are told of a trace: a row in the commit that it tells of, sent afterwards, at least once.

A webhook is part of the trace's policy. Its row is due at `wake_at`; who sends it pushes that away first, so that a
sender's death delays it and loses nothing. `tries` fences what a sender writes after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from agentmesh.infrastructure.counts import COUNTS
from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Failure, Json, new_id
from agentmesh.state.audit import said
from agentmesh.state.changes import Change

INSERT_DELIVERIES = """d AS (INSERT INTO mesh.deliveries (id, tenant_id, trace_id, step_id, target, body, wake_at)
   SELECT x.id, t.tenant_id, t.id, x.step_id, x.target, x.body, mesh.mesh_now()
   FROM t, jsonb_to_recordset(%(deliveries)s::jsonb) AS x(id uuid, step_id uuid, target text, body jsonb))"""

# For a transition whose `t` returns policy and error and ends the trace itself.
INSERT_END = """wd AS (INSERT INTO mesh.deliveries (id, tenant_id, trace_id, target, body, wake_at)
   SELECT %(delivery)s, t.tenant_id, t.id, t.policy->'webhook'->>'url', jsonb_build_object(
     'secret', t.policy->'webhook'->>'secret', 'type', 'trace.' || t.status,
     'data', jsonb_build_object('trace', t.id, 'agent', t.agent, 'intent', t.intent, 'context', t.context_id,
       'status', t.status, 'result', NULL, 'error', t.error)), mesh.mesh_now()
   FROM t WHERE t.policy->'webhook'->'on' ? 'end')"""

END_COLUMNS = "policy, status, agent, intent, context_id, error"


def rows(held: Any, change: Change) -> list[dict[str, Json]]:
    """The deliveries that this change of a held trace means."""
    hook: Mapping[str, Any] = held.policy.get("webhook") or {}
    on: Sequence[str] = hook.get("on", ())
    about = {"trace": str(held.id), "agent": held.agent, "intent": held.intent, "context": held.context_id}
    made: list[tuple[UUID | None, str, dict[str, Json]]] = []
    if "callback" in on:
        made += [
            (one.step_id, "callback.result", {**one.body, "output": change.steps[0].output if change.steps else None})
            for one in change.events
            if one.name == "CALLBACK_RESULT"
        ]
    if "end" in on and change.end is not None:
        end = change.end
        made.append((None, f"trace.{end.status}", {"status": end.status, "result": end.result, "error": end.error}))
    return [
        {"id": str(new_id()), "step_id": str(step) if step else None, "target": hook["url"],
         "body": {"secret": hook["secret"], "type": kind, "data": {**about, **data}}}
        for step, kind, data in made
    ]  # fmt: skip


DUE = """
SELECT DISTINCT tenant_id, target FROM mesh.deliveries WHERE status = 'ready' AND wake_at <= mesh.mesh_asof() LIMIT %(batch)s
"""

TAKE = """
WITH due AS (SELECT id FROM mesh.deliveries
   WHERE tenant_id = %(tenant)s AND target = %(target)s AND status = 'ready' AND wake_at <= mesh.mesh_asof()
   ORDER BY wake_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE mesh.deliveries d SET tries = d.tries + 1, wake_at = mesh.mesh_now() + make_interval(secs => %(lease_s)s)
 FROM due WHERE d.id = due.id AND d.tenant_id = %(tenant)s AND d.status = 'ready' AND d.wake_at <= mesh.mesh_asof()
RETURNING d.id, d.tenant_id, d.trace_id, d.target, d.body, d.tries, d.created_at
"""

SETTLE = """
UPDATE mesh.deliveries SET status = %(status)s, error = %(error)s::jsonb,
  wake_at = mesh.mesh_now() + make_interval(secs => %(after_s)s)
 WHERE id = %(id)s AND tenant_id = %(tenant)s AND tries = %(tries)s AND status = 'ready'
"""

GIVE_UP = """
UPDATE mesh.deliveries SET status = 'failed', wake_at = NULL,
  error = coalesce(error, jsonb_build_object('code', 'E_TIMEOUT', 'message', 'its target took nothing for too long'))
 WHERE tenant_id = %(tenant)s AND target = %(target)s AND status = 'ready'
   AND wake_at < mesh.mesh_asof() - make_interval(secs => %(age_s)s)
"""

LISTED = """
SELECT id, trace_id, target, body->>'type' AS type, status, tries, created_at, wake_at, error FROM mesh.deliveries
 WHERE tenant_id = %(tenant)s AND (%(status)s::text IS NULL OR status = %(status)s) ORDER BY id DESC LIMIT %(limit)s
"""

AGAIN = """
UPDATE mesh.deliveries SET status = 'ready', wake_at = mesh.mesh_now() WHERE tenant_id = %(tenant)s AND status = 'failed'
  AND (%(id)s::uuid IS NULL OR id = %(id)s)
RETURNING mesh.audit_note(tenant_id, 'WEBHOOK_RETRY', %(said)s::jsonb || jsonb_build_object('trace_id', trace_id, 'delivery', id))
"""


def due(db: Database, *, batch: int) -> list[tuple[str, str]]:
    """Who is to be told of something now: tenant and target, once each."""
    return [(row["tenant_id"], row["target"]) for row in db.once(DUE, {"batch": batch})]


def take(db: Database, tenant: str, target: str, *, lease_s: float) -> Row | None:
    """The oldest delivery that is due there, for nobody else to send until `lease_s` from now; None when there is none."""
    rows = db.once(TAKE, {"tenant": tenant, "target": target, "lease_s": lease_s})
    return rows[0] if rows else None


def settle(
    db: Database, row: Row, status: Literal["done", "failed", "ready"], *, failure: Failure | None = None,
    after_s: float | None = None,
) -> bool:  # fmt: skip
    """True when the delivery is now `status` (ready: again after `after_s`); False when another sender has it by now."""
    values = {"id": row["id"], "tenant": row["tenant_id"], "tries": row["tries"], "status": status, "after_s": after_s,
              "error": jsonb(failure.as_json()) if failure else None}  # fmt: skip
    with db.checkout() as tx:
        won = tx.count(SETTLE, values) == 1
    if won:
        COUNTS.add(f"deliveries.{'retried' if status == 'ready' else status}")
    return won


def give_up(db: Database, tenant: str, target: str, *, age_s: float) -> None:
    """Afterwards what has been due there for longer than this has failed."""
    db.once(GIVE_UP, {"tenant": tenant, "target": target, "age_s": age_s})


def listed(db: Database, tenant: str, *, status: str | None = None, limit: int = 200) -> list[Row]:
    """The newest deliveries of a tenant."""
    return db.read(LISTED, {"tenant": tenant, "status": status, "limit": limit})


def again(db: Database, tenant: str, delivery_id: UUID | None = None, *, by: str) -> int:
    """How many failed deliveries are due again now, under their old ids: this one, or all (None)."""
    with db.checkout() as tx:
        return tx.count(AGAIN, {"tenant": tenant, "id": delivery_id, "said": said(by)})
