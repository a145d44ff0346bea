"""Every change of a trace that its holder makes: claim, take, commit, release.

A trace is held by one (worker_id, epoch); whoever lost it changes nothing. Lock order: trace → calls (by id) → step →
context. `claim` starts a queued trace, `take` goes on with one whose step is ready or joined, `commit` lands a Change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg

from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Json, new_id
from agentmesh.state import memory
from agentmesh.state.changes import Change, plain
from agentmesh.state.dispatch import INSERT_CHILDREN, child_rows
from agentmesh.state.memory import INSERT_SHORT_TERM


@dataclass(frozen=True, slots=True)
class Holder:
    """Who runs: a worker process and, under prefork, the child of it (None: the process itself)."""

    worker_id: UUID
    child: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A trace that is ours as long as (worker_id, epoch) says so."""

    id: UUID
    tenant_id: str
    context_id: str
    agent: str
    intent: str
    from_id: str
    locale: str | None
    queue: str
    priority: int
    permissions: tuple[str, ...]
    payload: Json
    policy: dict[str, Json]
    plan_hash: str
    depth: int
    root_id: UUID
    steps: int
    epoch: int
    holder: Holder


@dataclass(frozen=True, slots=True)
class Taken:
    """A held trace and the step it was taken for, with the calls of a tools step in slot order."""

    trace: Held
    step: Row
    calls: tuple[Row, ...]
    attempt_id: UUID
    attempt_n: int


@dataclass(frozen=True, slots=True)
class Landed:
    """A commit that won. `kept` False: the trace was let go (asked for, ended, or found paused)."""

    kept: bool
    epoch: int


COLUMNS = """id, tenant_id, context_id, agent, intent, from_id, locale, queue, priority, permissions, payload, policy,
  plan_hash, depth, root_id, steps, epoch"""

CLAIM = f"""
WITH t AS (
  UPDATE mesh.traces SET status = 'running', worker_id = %(worker)s, child = %(child)s, claim_id = %(claim)s,
    plan_hash = %(plan)s, agent_version = %(version)s, policy = %(policy)s::jsonb || policy, steps = 1, seq = seq + 3,
    started_at = mesh.mesh_now(), wake_at = NULL
   WHERE id = %(trace)s AND epoch = %(epoch)s AND status = 'queued' AND worker_id IS NULL AND paused_at IS NULL
     AND agent = %(agent)s AND (wake_at IS NULL OR wake_at <= mesh.mesh_asof())
  RETURNING {COLUMNS}),
 x AS (INSERT INTO mesh.contexts (tenant_id, id) SELECT tenant_id, context_id FROM t ON CONFLICT DO NOTHING),
 s AS (INSERT INTO mesh.steps (id, tenant_id, trace_id, ordinal, node, kind, status, queue, agent, priority, started_at,
    deadline, mem_seq)
   SELECT %(step)s, tenant_id, id, 1, %(node)s, %(kind)s, 'running', queue, agent, priority, mesh.mesh_now(),
     mesh.mesh_now() + make_interval(secs => (policy->>'reasoner_timeout_s')::float8),
     coalesce((SELECT c.mem_seq FROM mesh.contexts c WHERE c.tenant_id = t.tenant_id AND c.id = t.context_id), 0) FROM t),
 a AS (INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, kind, n, epoch, worker_id, child)
   SELECT %(attempt)s, tenant_id, id, %(step)s, %(kind)s, 1, 1, %(worker)s, %(child)s FROM t),
 e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, body)
   SELECT t.id, v.seq, t.tenant_id, v.name, v.step, v.body::jsonb FROM t, (VALUES
     (2, 'ACP_RECEIVE', NULL::uuid, %(received)s), (3, 'RUN_ONCE_START', NULL::uuid, %(started)s),
     (4, 'EXEC_START', %(step)s::uuid, jsonb_build_object('plan', %(plan)s::text)::text)) v(seq, name, step, body))
SELECT * FROM t
"""

# Which trace a step belongs to never changes, so the subquery guards nothing.
TAKE_TRACE = f"""
UPDATE mesh.traces SET worker_id = %(worker)s, child = %(child)s, claim_id = %(claim)s
 WHERE id = (SELECT trace_id FROM mesh.steps WHERE id = %(step)s) AND status = 'running' AND worker_id IS NULL AND paused_at IS NULL AND agent = %(agent)s
RETURNING {COLUMNS}, seq
"""

LOCK_CALLS = """
SELECT id, status FROM mesh.calls WHERE step_id = %(step)s AND tenant_id = %(tenant)s
 AND status IN ('held', 'ready', 'running') ORDER BY id FOR NO KEY UPDATE
"""

TAKE_STEP = """
UPDATE mesh.steps SET status = 'running', started_at = coalesce(started_at, mesh.mesh_now()), wake_at = NULL,
  phase = CASE WHEN status = 'joined' THEN 'callback' ELSE phase END,
  pending = CASE WHEN kind = 'tools' THEN 0 ELSE pending END,
  deadline = mesh.mesh_now() + make_interval(secs => CASE
    WHEN kind = 'tools' OR phase = 'callback' THEN %(callback_s)s::float8 ELSE %(reason_s)s::float8 END)
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s AND epoch = %(epoch)s
   AND status IN ('ready', 'joined') AND (wake_at IS NULL OR wake_at <= mesh.mesh_asof())
RETURNING *, (SELECT count(*) FROM mesh.attempts a WHERE a.step_id = %(step)s AND a.call_id IS NULL) AS starts,
  (SELECT o.status FROM mesh.steps o WHERE o.id = %(step)s) AS was
"""

DROP_CALLS = """
UPDATE mesh.calls SET status = 'cancelled', ended_at = mesh.mesh_now(), worker_id = NULL, claim_id = NULL, deadline = NULL, wake_at = NULL,
  epoch = epoch + 1
 WHERE step_id = %(step)s AND tenant_id = %(tenant)s AND status IN ('held', 'ready', 'running')
"""

READ_CALLS = """
SELECT c.*, (SELECT count(*) FROM mesh.attempts a WHERE a.call_id = c.id AND a.outcome = 'lost') AS lost_attempts,
  (SELECT count(*) FROM mesh.attempts a WHERE a.call_id = c.id AND a.outcome = 'timeout') AS timeouts
 FROM mesh.calls c WHERE c.step_id = %(step)s AND c.tenant_id = %(tenant)s ORDER BY c.slot, c.idx
"""

NOTE_TAKEN = """
WITH t AS (UPDATE mesh.traces SET seq = seq + %(n)s WHERE id = %(trace)s AND tenant_id = %(tenant)s
  RETURNING id, tenant_id, seq - %(n)s AS base),
 a AS (INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, kind, n, epoch, worker_id, child)
   SELECT %(attempt)s, tenant_id, id, %(step)s, %(kind)s, %(attempt_n)s, %(epoch)s, %(worker)s, %(child)s FROM t)
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, call_id, body)
 SELECT t.id, t.base + x.n, t.tenant_id, x.name, x.step_id, x.call_id, coalesce(x.body, '{}')
   FROM t, jsonb_to_recordset(%(events)s::jsonb) AS x(n int, name text, step_id uuid, call_id uuid, body jsonb)
"""

COMMIT = f"""
WITH t AS (
  UPDATE mesh.traces SET seq = seq + %(n_events)s, steps = steps + %(n_steps)s, commit_id = %(commit)s,
    status = coalesce(%(end_status)s, status), result = coalesce(%(result)s::jsonb, result),
    error = coalesce(%(error)s::jsonb, error),
    ended_at = CASE WHEN %(end_status)s::text IS NOT NULL THEN mesh.mesh_now() END,
    parent_owed = %(end_status)s::text IS NOT NULL AND parent_call_id IS NOT NULL,
    worker_id = CASE WHEN %(keep)s AND paused_at IS NULL THEN worker_id END,
    child = CASE WHEN %(keep)s AND paused_at IS NULL THEN child END,
    claim_id = CASE WHEN %(keep)s AND paused_at IS NULL THEN claim_id END,
    epoch = epoch + CASE WHEN %(keep)s AND paused_at IS NULL THEN 0 ELSE 1 END
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND worker_id = %(worker)s AND epoch = %(epoch)s
     AND status = 'running' AND commit_id IS DISTINCT FROM %(commit)s
  RETURNING id, tenant_id, context_id, root_id, depth, agent, queue, priority, seq - %(n_events)s AS base, epoch, worker_id,
    child),
 s AS (UPDATE mesh.steps st SET
    status = CASE WHEN x.status = 'running' AND t.worker_id IS NULL THEN 'ready' ELSE x.status END,
    phase = coalesce(x.phase, st.phase), action = coalesce(x.action, st.action), output = coalesce(x.output, st.output),
    error = coalesce(x.error, st.error), pending = coalesce(x.pending, st.pending), wins = coalesce(x.wins, st.wins),
    failures = coalesce(x.failures, st.failures), callbacks = coalesce(x.callbacks, st.callbacks),
    deadline = CASE WHEN x.status = 'running' THEN mesh.mesh_now() + make_interval(secs => x.timeout_s) END,
    wake_at = mesh.mesh_now() + make_interval(secs => x.wake_s),
    epoch = st.epoch + (x.status = 'ready')::int,
    rung_at = CASE WHEN x.wake_s IS NOT NULL THEN NULL WHEN x.status = 'ready' THEN mesh.mesh_now() ELSE st.rung_at END,
    rings = CASE WHEN x.status = 'ready' THEN 0 ELSE st.rings END,
    ended_at = CASE WHEN x.status IN ('done', 'failed', 'cancelled') THEN mesh.mesh_now() END
   FROM t, jsonb_to_recordset(%(steps)s::jsonb) AS x(id uuid, status text, phase text, action jsonb, output jsonb,
     error jsonb, pending int, wins int, failures int, callbacks text[], timeout_s float8, wake_s float8)
   WHERE st.id = x.id AND st.tenant_id = t.tenant_id),
 ns AS (INSERT INTO mesh.steps (id, tenant_id, trace_id, after_step_id, ordinal, node, iteration, kind, phase, status,
     require, need, slots, pending, queue, agent, priority, callbacks, action, started_at, deadline, rung_at, mem_seq)
   SELECT x.id, t.tenant_id, t.id, x.after_step_id, x.ordinal, x.node, x.iteration, x.kind, x.phase,
     CASE WHEN x.status <> 'running' OR t.worker_id IS NOT NULL THEN x.status
       WHEN x.kind = 'tools' THEN 'waiting' ELSE 'ready' END,
     x.require, x.need, x.slots, x.pending, t.queue, t.agent, t.priority, x.callbacks, x.action,
     CASE WHEN x.status <> 'ready' AND t.worker_id IS NOT NULL THEN mesh.mesh_now() END,
     CASE WHEN x.status = 'running' AND t.worker_id IS NOT NULL
       THEN mesh.mesh_now() + make_interval(secs => x.timeout_s) END,
     CASE WHEN x.status = 'ready' THEN mesh.mesh_now() END,
     coalesce((SELECT c.mem_seq FROM mesh.contexts c WHERE c.tenant_id = t.tenant_id AND c.id = t.context_id), 0)
   FROM t, jsonb_to_recordset(%(new_steps)s::jsonb) AS x(id uuid, node text, kind text, status text, iteration int,
     ordinal int, after_step_id uuid, phase text, require text, need int, slots int, pending int, callbacks text[],
     action jsonb, timeout_s float8)),
 c AS (UPDATE mesh.calls cl SET
    status = x.status, result = coalesce(x.result, cl.result), error = coalesce(x.error, cl.error),
    failures = cl.failures + x.failed::int, n = cl.n + (x.status = 'running')::int,
    epoch = cl.epoch + (x.status IN ('ready', 'cancelled'))::int,
    worker_id = CASE WHEN x.status = 'running' THEN t.worker_id END,
    child = CASE WHEN x.status = 'running' THEN t.child END,
    deadline = CASE WHEN x.status = 'running' THEN mesh.mesh_now() + make_interval(secs => cl.timeout_s) END,
    wake_at = CASE WHEN x.status = 'ready' THEN mesh.mesh_now() + make_interval(secs => x.wake_s) END,
    rung_at = CASE WHEN x.status = 'ready' AND x.wake_s IS NULL THEN mesh.mesh_now() END,
    ended_at = CASE WHEN x.status IN ('done', 'failed', 'cancelled') THEN mesh.mesh_now() END
   FROM t, jsonb_to_recordset(%(calls)s::jsonb) AS x(id uuid, epoch int, status text, result jsonb, error jsonb,
     failed boolean, wake_s float8)
   WHERE cl.id = x.id AND cl.tenant_id = t.tenant_id AND cl.epoch = x.epoch
     AND cl.status IN ('running', 'held', 'ready')),
 nc AS (INSERT INTO mesh.calls (id, tenant_id, trace_id, step_id, slot, idx, slot_size, slot_mode, tool, label, args, needs,
     effect, inline, status, queue, task, priority, idem_key, timeout_s, max_attempts, backoff_s, backoff_cap_s, n,
     worker_id, child, deadline, rung_at)
   SELECT x.id, t.tenant_id, t.id, x.step_id, x.slot, x.idx, x.slot_size, x.slot_mode, x.tool, x.label, x.args, x.needs,
     x.effect, x.inline, CASE WHEN x.status = 'running' AND t.worker_id IS NULL THEN 'ready' ELSE x.status END,
     x.queue, x.task, x.priority, x.idem_key, x.timeout_s, x.max_attempts, x.backoff_s, x.backoff_cap_s,
     (x.status = 'running' AND t.worker_id IS NOT NULL)::int,
     CASE WHEN x.status = 'running' THEN t.worker_id END, CASE WHEN x.status = 'running' THEN t.child END,
     CASE WHEN x.status = 'running' AND t.worker_id IS NOT NULL
       THEN mesh.mesh_now() + make_interval(secs => x.timeout_s) END,
     CASE WHEN x.status = 'ready' OR x.status = 'running' AND t.worker_id IS NULL THEN mesh.mesh_now() END
   FROM t, jsonb_to_recordset(%(new_calls)s::jsonb) AS x(id uuid, step_id uuid, slot int, idx int, slot_size int,
     slot_mode text, tool text, label text, args jsonb, needs text[], effect text, inline boolean, status text,
     queue text, task text, priority smallint, idem_key text, timeout_s float8, max_attempts int, backoff_s float8,
     backoff_cap_s float8)),
 a AS (UPDATE mesh.attempts at SET ended_at = mesh.mesh_now(), outcome = x.outcome, error = x.error
   FROM t, jsonb_to_recordset(%(attempts)s::jsonb) AS x(id uuid, outcome text, error jsonb)
   WHERE at.id = x.id AND at.tenant_id = t.tenant_id AND at.outcome IS NULL),
 na AS (INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, call_id, kind, n, epoch, worker_id, child, idem_key)
   SELECT x.id, t.tenant_id, t.id, x.step_id, x.call_id, x.kind, x.n, x.epoch, t.worker_id, t.child, x.idem_key
   FROM t, jsonb_to_recordset(%(new_attempts)s::jsonb) AS x(id uuid, step_id uuid, kind text, n int, epoch int,
     call_id uuid, idem_key text) WHERE t.worker_id IS NOT NULL),
 e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, call_id, body)
   SELECT t.id, t.base + x.n, t.tenant_id, x.name, x.step_id, x.call_id, coalesce(x.body, '{{}}')
   FROM t, jsonb_to_recordset(%(events)s::jsonb) AS x(n int, name text, step_id uuid, call_id uuid, body jsonb)),
 f AS (INSERT INTO mesh.effects (step_id, name, tenant_id, trace_id)
   SELECT x.step_id, x.name, t.tenant_id, t.id
   FROM t, jsonb_to_recordset(%(effects)s::jsonb) AS x(step_id uuid, name text)),
{INSERT_SHORT_TERM},
{INSERT_CHILDREN}
SELECT worker_id IS NOT NULL AS kept, epoch FROM t
"""


def claim(db: Database, trace_id: UUID, epoch: int, *, agent: str, holder: Holder, start: dict[str, Any]) -> Taken | None:
    """The queued trace, running its first step under `holder`; None when it is not ours to start.

    `start` has plan, version, policy (a JSON object below the intent's own), node, kind, claim, received, started.
    """
    step, attempt = new_id(), new_id()
    rows = db.once(
        CLAIM,
        {
            "trace": trace_id, "epoch": epoch, "agent": agent, "worker": holder.worker_id, "child": holder.child,
            "step": step, "attempt": attempt, **start,
        },
    )  # fmt: skip
    if not rows:
        return None
    first = {
        "id": step, "node": start["node"], "kind": start["kind"], "phase": "run", "iteration": 1, "ordinal": 1,
        "failures": 0, "epoch": 1, "action": None, "output": None, "error": None, "slots": 0, "wins": 0, "need": 0,
        "after_step_id": None, "status": "running", "was": "ready", "callbacks": [],
    }  # fmt: skip
    return Taken(_held(rows[0], holder), first, (), attempt, 1)


def take(db: Database, step_id: UUID, epoch: int, *, agent: str, holder: Holder, claim_id: UUID) -> Taken | None:
    """The step's trace and the ready or joined step, running under `holder`; None when there is nothing to take.

    Taking a joined tools step closes it: open calls are cancelled, `pending` is 0, and the events of its calls are
    appended.
    """
    with db.begin() as tx:
        who = {"worker": holder.worker_id, "child": holder.child}
        row = tx.one(TAKE_TRACE, {"step": step_id, "agent": agent, "claim": claim_id, **who})
        if row is None:
            return None
        held = _held(row, holder)
        at = {"step": step_id, "trace": held.id, "tenant": held.tenant_id}
        opened = tx.all(LOCK_CALLS, at)
        limits = {
            "callback_s": held.policy["callback_timeout_s"], "reason_s": held.policy["reasoner_timeout_s"], "epoch": epoch,
        }  # fmt: skip
        step = tx.one(TAKE_STEP, at | limits)
        if step is None:
            raise psycopg.Rollback
        if opened:
            tx.count(DROP_CALLS, at)
        calls = tuple(tx.all(READ_CALLS, at)) if step["kind"] == "tools" else ()
        events = _call_events(step, calls) if step["was"] == "joined" else []
        taken = Taken(held, step, calls, new_id(), step["starts"] + 1)
        kind = "callback" if step["phase"] == "callback" else "reason"
        tx.count(
            NOTE_TAKEN,
            at | who | {
                "n": len(events), "attempt": taken.attempt_id, "attempt_n": taken.attempt_n, "kind": kind,
                "epoch": step["epoch"], "events": jsonb(events),
            },
        )  # fmt: skip
        return taken
    return None


def _call_events(step: Row, calls: tuple[Row, ...]) -> list[dict[str, Json]]:
    """TOOL_EXEC, TOOL_FAIL, TOOL_TIMEOUT and EXEC_RESCUE for everything the leaves of this step recorded."""
    events: list[dict[str, Json]] = []

    def add(name: str, call: Row, **body: Json) -> None:
        events.append({
            "n": len(events) + 1, "name": name, "step_id": str(step["id"]), "call_id": str(call["id"]),
            "body": {"tool": call["tool"], "label": call["label"], "attempts": call["n"], **body},
        })  # fmt: skip

    for call in calls:
        if call["lost_attempts"]:
            add("EXEC_RESCUE", call, lost=call["lost_attempts"])
        if call["timeouts"]:
            add("TOOL_TIMEOUT", call, timeouts=call["timeouts"])
        if call["status"] == "done":
            add("TOOL_EXEC", call)
        elif call["status"] == "failed":
            add("TOOL_FAIL", call, error=call["error"])
    return events


def commit(db: Database, held: Held, change: Change) -> Landed | None:
    """Land the change whole; None when the trace is no longer ours, and then nothing was written.

    A commit whose answer was lost is settled by repeating it under the same id.
    """
    params = _params(held, change)
    long_term = [write for write in change.memory if write.type == "long_term"]

    def once() -> Row | None:
        if not long_term:
            rows = db.once(COMMIT, params)
            return rows[0] if rows else None
        with db.begin() as tx:
            row = tx.one(COMMIT, params)
            if row is not None:
                memory.write(tx, held.tenant_id, held.context_id, held.id, long_term)
            return row

    try:
        row = once()
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.UniqueViolation):
        row = _settled(db, held, change, once)
    return None if row is None else Landed(row["kept"], row["epoch"])


def _settled(db: Database, held: Held, change: Change, again: Any) -> Row | None:
    try:
        row: Row | None = again()
    except psycopg.errors.UniqueViolation:
        row = None
    if row is not None:
        return row
    rows = db.once(
        "SELECT worker_id IS NOT NULL AND worker_id = %(worker)s AS kept, epoch FROM mesh.traces"
        " WHERE id = %(trace)s AND tenant_id = %(tenant)s AND commit_id = %(commit)s",
        {"worker": held.holder.worker_id, "trace": held.id, "tenant": held.tenant_id, "commit": change.id},
    )
    return rows[0] if rows else None


def _params(held: Held, change: Change) -> dict[str, Any]:
    end = change.end
    events = [{"n": n, **plain(one)} for n, one in enumerate(change.events, 1)]
    return {
        "trace": held.id, "tenant": held.tenant_id, "worker": held.holder.worker_id, "epoch": held.epoch,
        "commit": change.id, "keep": change.keep and end is None,
        "n_events": len(events), "n_steps": len(change.new_steps),
        "end_status": end.status if end else None,
        "result": jsonb(end.result) if end else None, "error": jsonb(end.error) if end else None,
        "steps": jsonb([plain(one) | {"callbacks": _list(one.callbacks)} for one in change.steps]),
        "new_steps": jsonb([plain(one) for one in change.new_steps]),
        "calls": jsonb([plain(one) for one in change.calls]),
        "new_calls": jsonb([plain(one) for one in change.new_calls]),
        "attempts": jsonb([plain(one) for one in change.attempts]),
        "new_attempts": jsonb([plain(one) for one in change.new_attempts]),
        "effects": jsonb([{"step_id": str(step), "name": name} for step, name in change.effects]),
        "events": jsonb(events),
        "children": jsonb(child_rows(change.children)),
        "memory": jsonb(memory.rows(held.id, [one for one in change.memory if one.type == "short_term"])),
    }  # fmt: skip


def _list(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


def _held(row: Row, holder: Holder) -> Held:
    names = Held.__dataclass_fields__.keys() - {"holder", "permissions"}
    return Held(**{name: row[name] for name in names}, permissions=tuple(row["permissions"]), holder=holder)


def moved(held: Held, landed: Landed, *, steps: int) -> Held:
    """The same trace after a commit that kept it."""
    return replace(held, epoch=landed.epoch, steps=steps)
