"""Every change of a trace that its holder makes: claim, take, commit, release.

A trace is held by one (worker_id, epoch); whoever lost it changes nothing. Lock order: trace → calls (by id) → step →
context. `claim` starts a queued trace, `begin` one whose first commit claims it, `take` goes on with one whose step is
ready or joined, `commit` lands a Change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from agentmesh.errors import UnknownTrace
from agentmesh.infrastructure.counts import COUNTS, transition
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.infrastructure.faults import point
from agentmesh.records import Json, Ring, new_id
from agentmesh.state import deliveries, inbox, landing, memory
from agentmesh.state.changes import Change, Event, MemoryWrite, NewStep, given
from agentmesh.state.closing import close, note_running
from agentmesh.state.dispatch import child_rows


@dataclass(frozen=True, slots=True)
class Holder:
    """Who runs: a worker process and, under prefork, the child of it (None: the process itself)."""

    worker_id: UUID
    child: int | None = None


@dataclass(frozen=True, slots=True)
class Claiming:
    """What the first commit of a trace writes to claim it."""

    claim_id: UUID
    version: str
    received: Json
    started: Json
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A trace that is ours as long as (worker_id, epoch) says so; with a `claiming`, once its first commit has won."""

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
    state: dict[str, Json]
    plan_hash: str
    depth: int
    root_id: UUID
    parent_call_id: UUID | None
    steps: int
    epoch: int
    lane: str | None
    holder: Holder
    claiming: Claiming | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A held trace and the step it was taken for, with the calls of a tools step in slot order."""

    trace: Held
    step: Row
    calls: tuple[Row, ...]
    attempt_id: UUID | None
    attempt_n: int


@dataclass(frozen=True, slots=True)
class Landed:
    """A commit that won. `kept` False: the trace was let go (asked for, ended, or found paused).

    `heard`: the new step, joined at once by a signal that had come before it.
    """

    kept: bool
    epoch: int
    heard: Row | None = None


COLUMNS = """id, tenant_id, context_id, agent, intent, from_id, locale, queue, priority, permissions, payload, policy, state,
  plan_hash, depth, root_id, parent_call_id, steps, epoch, lane"""

CLAIM = f"""
WITH t AS (
  UPDATE mesh.traces SET status = 'running', worker_id = %(worker)s, child = %(child)s, claim_id = %(claim)s,
    plan_hash = coalesce(plan_hash, %(plan)s), agent_version = %(version)s, steps = 1,
    policy = %(policy)s::jsonb || policy || CASE WHEN policy = '{{}}' THEN '{{}}' ELSE jsonb_build_object('given',
      (SELECT jsonb_agg(own) FROM jsonb_object_keys(policy) own)) END, seq = seq + 3,
    started_at = mesh.mesh_now(), wake_at = NULL
   WHERE {landing.FREE}
  RETURNING {COLUMNS}, seq),
 x AS (INSERT INTO mesh.contexts (tenant_id, id) SELECT tenant_id, context_id FROM t ON CONFLICT DO NOTHING),
 s AS (INSERT INTO mesh.steps (id, tenant_id, trace_id, ordinal, node, kind, status, queue, agent, priority, started_at,
    deadline, mem_seq)
   SELECT %(step)s, tenant_id, id, 1, CASE plan_hash WHEN %(plan)s THEN %(node)s ELSE 'start' END,
     CASE plan_hash WHEN %(plan)s THEN %(kind)s ELSE 'start' END, 'running', queue, agent, priority, mesh.mesh_now(),
     mesh.mesh_now() + make_interval(secs => (policy->>'reasoner_timeout_s')::float8),
     coalesce((SELECT c.mem_seq FROM mesh.contexts c WHERE c.tenant_id = t.tenant_id AND c.id = t.context_id), 0) FROM t),
 a AS (INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, kind, n, epoch, worker_id, child)
   SELECT %(attempt)s, tenant_id, id, %(step)s, 'reason', 1, 1, %(worker)s, %(child)s FROM t),
 e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, body)
   SELECT t.id, t.seq - 3 + v.n, t.tenant_id, v.name, v.step,
     coalesce(v.body::jsonb, jsonb_build_object('plan', t.plan_hash)) FROM t, (VALUES
     (1, 'ACP_RECEIVE', NULL::uuid, %(received)s), (2, 'RUN_ONCE_START', NULL::uuid, %(started)s),
     (3, 'EXEC_START', %(step)s::uuid, NULL)) v(n, name, step, body))
SELECT * FROM t
"""

# One that was rung again may have taken a worker with it already, and nothing says so: it is claimed before it is read.
BEGIN = f"SELECT {COLUMNS} FROM mesh.traces WHERE {landing.FREE} AND rings = 0"

# Which trace a step belongs to never changes, so the subquery guards nothing.
TAKE_TRACE = f"""
UPDATE mesh.traces SET worker_id = %(worker)s, child = %(child)s, claim_id = %(claim)s
 WHERE id = (SELECT trace_id FROM mesh.steps WHERE id = %(step)s) AND status = 'running' AND worker_id IS NULL
   AND paused_at IS NULL AND agent = %(agent)s AND coalesce(plan_hash, '') <> ALL(%(unread)s::text[])
RETURNING {COLUMNS}, seq
"""

LOCK_CALLS = """
SELECT id, status FROM mesh.calls WHERE step_id = %(step)s AND tenant_id = %(tenant)s
 AND status IN ('held', 'ready', 'running') ORDER BY id FOR NO KEY UPDATE
"""

TAKE_STEP = """
UPDATE mesh.steps SET status = 'running', started_at = coalesce(started_at, mesh.mesh_now()), wake_at = NULL,
  phase = CASE WHEN status = 'joined' THEN 'callback' ELSE phase END,
  pending = 0,
  deadline = mesh.mesh_now() + make_interval(secs => CASE
    WHEN status = 'joined' OR kind = 'tools' OR phase = 'callback' THEN %(callback_s)s::float8 ELSE %(reason_s)s::float8 END)
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s AND epoch = %(epoch)s
   AND status IN ('ready', 'joined') AND (wake_at IS NULL OR wake_at <= mesh.mesh_asof()) AND (losses = 0 OR %(alone)s)
RETURNING *, (SELECT count(*) FROM mesh.attempts a WHERE a.step_id = %(step)s AND a.call_id IS NULL) AS starts,
  (SELECT o.status FROM mesh.steps o WHERE o.id = %(step)s) AS was
"""

# Why a take took nothing: the step is free, but has taken a worker with it before.
SUSPECT = """
SELECT 1 FROM mesh.steps WHERE id = %(row)s AND epoch = %(epoch)s AND status IN ('ready', 'joined') AND losses > 0
  AND (wake_at IS NULL OR wake_at <= mesh.mesh_asof())
"""

OPEN_STEP = """
SELECT t.id, t.tenant_id, t.status, t.queue, t.epoch, s.id AS step_id, s.epoch AS step_epoch FROM mesh.traces t
  LEFT JOIN mesh.steps s ON s.trace_id = t.id AND s.tenant_id = t.tenant_id AND s.status IN ('ready', 'joined')
   AND (s.wake_at IS NULL OR s.wake_at <= mesh.mesh_asof())
 WHERE t.id = %(trace)s AND t.agent = %(agent)s ORDER BY s.ordinal LIMIT 1
"""

# Whatever a dropped call still returns is stale; its worker may also die and never say so.
DROP_CALLS = """
WITH c AS (UPDATE mesh.calls SET status = 'cancelled', ended_at = mesh.mesh_now(), worker_id = NULL, claim_id = NULL,
  deadline = NULL, wake_at = NULL, cancel_owed = child_trace_id IS NOT NULL,
  epoch = epoch + 1
 WHERE step_id = %(step)s AND tenant_id = %(tenant)s AND status IN ('held', 'ready', 'running') RETURNING id, n)
UPDATE mesh.attempts a SET outcome = 'stale', ended_at = mesh.mesh_now() FROM c
 WHERE a.call_id = c.id AND a.n = c.n AND a.tenant_id = %(tenant)s AND a.outcome IS NULL
"""

CLOSE_GROUPS = """
UPDATE mesh.steps SET status = 'done', ended_at = mesh.mesh_now()
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND group_of = %(step)s AND status = 'waiting'
"""

# Told already: it ended inline, in a round whose commit told it, before the step went on with its other calls as leaves.
# One whose place another has taken stands before its slot.
READ_CALLS = """
SELECT id, slot, idx, slot_size, group_id, kind, child_trace_id, tool, label, status, n, losses, timeouts, result, error,
  CASE WHEN kind = 'child' THEN args END AS heard,
  inline AND epoch = 1 AND EXISTS (SELECT 1 FROM mesh.events e WHERE e.trace_id = %(trace)s AND e.call_id = c.id) AS told
 FROM mesh.calls c WHERE step_id = %(step)s AND tenant_id = %(tenant)s AND idx >= 0 ORDER BY slot, idx
"""

OWN_TIME = """
UPDATE mesh.steps SET deadline = mesh.mesh_now() + make_interval(secs => %(seconds)s)
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s AND epoch = %(epoch)s AND status = 'running'
"""

LOOK = f"""
SELECT {COLUMNS}, worker_id, child FROM mesh.traces
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND plan_hash IS NOT NULL
"""

LOOK_STEPS = """
SELECT s.*, status AS was, CASE status WHEN 'joined' THEN 'callback' ELSE phase END AS phase FROM mesh.steps s
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('ready', 'running', 'waiting', 'joined')
   AND kind <> 'group' ORDER BY ordinal
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


@transition("claim")
def claim(
    db: Database, trace_id: UUID, epoch: int, *, agent: str, holder: Holder, start: dict[str, Any],
    unread: Iterable[str] = (),
) -> Taken | None:  # fmt: skip
    """The queued trace, running its first step under `holder`; None when it is not ours to start.

    `start` has plan, version, policy (a JSON object below the intent's own), node, kind, claim, received, started. A
    trace that was pinned to another plan when it was accepted begins with that one's start, unless it is among the
    plans that are `unread` here.
    """
    step, attempt = new_id(), new_id()
    rows = db.once(
        CLAIM,
        {
            "trace": trace_id, "epoch": epoch, "agent": agent, "worker": holder.worker_id, "child": holder.child,
            "step": step, "attempt": attempt, "unread": list(unread), **start,
        },
    )  # fmt: skip
    if not rows:
        return None
    own = rows[0]["plan_hash"] == start["plan"]
    first = _first(step, start["node"] if own else "start", start["kind"] if own else "start")
    return Taken(_held(rows[0], holder), first, (), attempt, 1)


def begin(
    db: Database, trace_id: UUID, epoch: int, *, agent: str, holder: Holder, start: dict[str, Any],
    unread: Iterable[str] = (),
) -> Taken | None:  # fmt: skip
    """The queued trace at its start, as `claim` would take it, but that its first commit claims it; until then it may
    become another's. None when it is not ours to start, or was rung before: `claim` tells.
    """
    known = tuple(unread)
    at = {"trace": trace_id, "epoch": epoch, "agent": agent, "unread": list(known)}
    rows = db.once(BEGIN, at)
    if not rows:
        return None
    row, own = rows[0], rows[0]["policy"]
    row |= {
        "policy": json.loads(start["policy"]) | own | ({"given": list(own)} if own else {}),
        "plan_hash": row["plan_hash"] or start["plan"], "steps": 1,
    }  # fmt: skip
    claiming = Claiming(
        start["claim"], start["version"], json.loads(start["received"]), json.loads(start["started"]), known
    )
    return Taken(replace(_held(row, holder), claiming=claiming), _first(new_id(), "start", "start"), (), None, 1)


def _first(step: UUID, node: str, kind: str) -> Row:
    return {
        "id": step, "node": node, "kind": kind, "phase": "run", "iteration": 1, "ordinal": 1,
        "failures": 0, "epoch": 1, "action": None, "output": None, "error": None, "slots": 0, "wins": 0, "need": 0,
        "after_step_id": None, "status": "running", "was": "ready", "callbacks": [],
    }  # fmt: skip


@transition("take")
def take(  # noqa: PLR0913 - all that guards it
    db: Database, step_id: UUID, epoch: int, *, agent: str, holder: Holder, claim_id: UUID, alone: bool = True,
    unread: Iterable[str] = (),
) -> Taken | None:  # fmt: skip
    """The step's trace and the ready or joined step, running under `holder`; None when there is nothing to take.

    One that was lost with its worker is a suspect: it is taken by a process that runs nothing else (`alone`). Traces of
    plans that are `unread` here are left to others.

    Taking a joined tools step closes it: open calls are cancelled, `pending` is 0, and the events of its calls are
    appended.
    """
    with db.begin() as tx:
        who = {"worker": holder.worker_id, "child": holder.child}
        row = tx.one(TAKE_TRACE, {"step": step_id, "agent": agent, "claim": claim_id, "unread": list(unread), **who})
        if row is None:
            return None
        held = _held(row, holder)
        at = {"step": step_id, "trace": held.id, "tenant": held.tenant_id}
        opened = tx.all(LOCK_CALLS, at)
        limits = {
            "callback_s": held.policy["callback_timeout_s"], "reason_s": held.policy["reasoner_timeout_s"], "epoch": epoch,
            "alone": alone,
        }  # fmt: skip
        step = tx.one(TAKE_STEP, at | limits)
        if step is None:
            raise psycopg.Rollback
        if opened:
            note_running(tx, held.tenant_id, [one["id"] for one in opened])
            tx.count(DROP_CALLS, at)
        calls = tuple(tx.all(READ_CALLS, at)) if step["slots"] else ()
        if any(one["group_id"] for one in calls):
            tx.count(CLOSE_GROUPS, at)  # no leaf is at them: it would hold the lock of an open call, and we hold those
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


def row_of(held: Held) -> Row:
    """A held trace as rescue gives it back."""
    return {
        "kind": "trace", "id": held.id, "tenant_id": held.tenant_id, "epoch": held.epoch, "worker_id": held.holder.worker_id,
    }  # fmt: skip


def now(db: Database) -> datetime:
    """The database's time."""
    moment: datetime = db.once("SELECT mesh.mesh_now() AS now", {})[0]["now"]
    return moment


def is_suspect(db: Database, step_id: UUID, epoch: int) -> bool:
    """Whether the step is free but was lost with a worker before."""
    return bool(db.once(SUSPECT, {"row": step_id, "epoch": epoch}))


def limit(db: Database, taken: Taken, seconds: float) -> None:
    """The step that was taken may run so long from now on, where it is still ours: its node's time, not the trace's."""
    held = taken.trace
    at = {"step": taken.step["id"], "epoch": taken.step["epoch"], "trace": held.id, "tenant": held.tenant_id}
    db.once(OWN_TIME, at | {"seconds": seconds})


def look(db: Database, *, tenant: str, trace_id: UUID) -> list[Taken]:
    """The open steps of a trace that has begun, each as whoever took it now would have it. Takes nothing."""
    at = {"trace": trace_id, "tenant": tenant}
    with db.checkout() as tx:
        row = tx.one(LOOK, at)
        if row is None:
            return []
        held = _held(row, Holder(row["worker_id"] or trace_id, row["child"]))
        found = []
        for step in tx.all(LOOK_STEPS, at):
            calls = tuple(tx.all(READ_CALLS, at | {"step": step["id"]}))
            found.append(Taken(held, step, calls, new_id(), 1))
        return found


def free(db: Database, trace_id: UUID, *, agent: str) -> Row | None:
    """The agent's trace with its step that may be taken, if any; None where the agent has no such trace."""
    rows = db.once(OPEN_STEP, {"trace": trace_id, "agent": agent})
    return rows[0] if rows else None


def free_ring(db: Database, trace_id: UUID, *, agent: str) -> Ring | None:
    """The doorbell of what of the agent's trace may be taken now: its step, or itself where it has not begun."""
    row = free(db, trace_id, agent=agent)
    if row is None or (row["step_id"] is None and row["status"] != "queued"):
        return None
    if row["step_id"] is None:
        return Ring("trace", row["id"], row["epoch"], row["queue"], f"agent.{agent}", row["id"])
    return Ring("step", row["step_id"], row["step_epoch"], row["queue"], f"agent.{agent}", row["id"])


FATE = "SELECT status, result, error FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s"
RINGS = """
SELECT 'trace' AS kind, t.id, t.epoch, t.queue, t.agent, t.priority FROM mesh.traces t
 WHERE t.id = %(trace)s AND t.tenant_id = %(tenant)s AND t.status = 'queued'
UNION ALL SELECT 'step', s.id, s.epoch, s.queue, s.agent, s.priority FROM mesh.steps s
 WHERE s.trace_id = %(trace)s AND s.tenant_id = %(tenant)s AND s.status IN ('ready', 'joined')
   AND (s.wake_at IS NULL OR s.wake_at <= mesh.mesh_asof())
"""


def fate(db: Database, tenant: str, trace_id: UUID) -> Row | None:
    """How the trace stands: status, result, error; None when there is none."""
    rows = db.read(FATE, {"trace": trace_id, "tenant": tenant})
    return rows[0] if rows else None


def rings(db: Database, tenant: str, trace_id: UUID) -> list[Ring]:
    """The doorbells of what of the trace is ready for an agent's worker. Raises UnknownTrace."""
    at = {"trace": trace_id, "tenant": tenant}
    if not db.once("SELECT 1 FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s", at):
        raise UnknownTrace("no trace has this id", value=str(trace_id))
    return [
        Ring(one["kind"], one["id"], one["epoch"], one["queue"], f"agent.{one['agent']}", trace_id, one["priority"])
        for one in db.once(RINGS, at)
    ]


def _call_events(step: Row, calls: tuple[Row, ...]) -> list[dict[str, Json]]:
    """TOOL_EXEC, TOOL_FAIL, TOOL_TIMEOUT and EXEC_RESCUE for everything the leaves of this step recorded."""
    events: list[dict[str, Json]] = []

    def add(name: str, call: Row, **body: Json) -> None:
        events.append({
            "n": len(events) + 1, "name": name, "step_id": str(step["id"]), "call_id": str(call["id"]),
            "body": {"tool": call["tool"], "label": call["label"], "attempts": call["n"], **body},
        })  # fmt: skip

    for call in calls:
        if call["told"]:
            continue
        if call["kind"] == "child":
            add("EXEC_DELEGATE", call, trace=str(call["child_trace_id"]), status=call["status"])
            continue
        asked = {} if call["child_trace_id"] is None else {"trace": str(call["child_trace_id"])}
        if call["losses"]:
            add("EXEC_RESCUE", call, lost=call["losses"])
        if call["timeouts"]:
            add("TOOL_TIMEOUT", call, timeouts=call["timeouts"])
        if call["status"] == "done":
            add("TOOL_EXEC", call, **asked)
        elif call["status"] == "failed":
            add("TOOL_FAIL", call, error=call["error"], **asked)
    return events


# Writes, so that its own commit waits for whatever ours waited for.
SETTLE_COMMIT = """
UPDATE mesh.traces SET commit_id = commit_id
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND commit_id = %(commit)s
RETURNING %(keep)s AND worker_id IS NOT DISTINCT FROM %(worker)s AND epoch = %(epoch)s AS kept, epoch
"""


@transition("commit")
def commit(db: Database, held: Held, change: Change) -> Landed | None:
    """Land the change whole; None when the trace is no longer ours, and then nothing was written.

    A commit whose answer was lost is settled by repeating it under the same id.
    """
    sql, params = _statement(held, change)
    long_term = [write for write in change.memory if write.type == "long_term"]

    heard: list[Row | None] = [None]

    def once() -> Row | None:
        if not long_term and change.listens is None and not change.closes:
            rows = db.once(sql, params)
            return rows[0] if rows else None
        with db.begin() as tx:
            row = tx.one(sql, params)
            if row is not None:
                point("memory.in_commit")
                if change.closes:
                    at = {"trace": held.id, "tenant": held.tenant_id}
                    close(tx, at, besides=[one.id for one in change.new_steps])
                _remember(tx, held, long_term, change.new_steps)
                if change.listens is not None:
                    step, name = change.listens
                    heard[0] = inbox.hear(tx, tenant=held.tenant_id, trace_id=held.id, step_id=step, name=name)
            return row

    try:
        row = once()
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.UniqueViolation):
        row = _settled(db, held, change, once)
    if row is None:
        COUNTS.add("fenced")
        return None
    return Landed(row["kept"], row["epoch"], heard[0])


def _remember(tx: Tx, held: Held, writes: list[MemoryWrite], opened: Sequence[NewStep]) -> None:
    """Write long-term memory; the steps that are opened with it begin after it."""
    if writes:
        seq = memory.write(tx, held.tenant_id, held.context_id, held.id, writes)
        if opened:
            tx.count(
                "UPDATE mesh.steps SET mem_seq = %(seq)s WHERE id = ANY(%(ids)s) AND tenant_id = %(tenant)s",
                {"seq": seq, "ids": [one.id for one in opened], "tenant": held.tenant_id},
            )


def _settled(db: Database, held: Held, change: Change, again: Any) -> Row | None:
    try:
        row: Row | None = again()
    except psycopg.errors.UniqueViolation:
        row = None
    if row is not None:
        return row
    rows = db.once(
        SETTLE_COMMIT,
        {
            "worker": held.holder.worker_id, "epoch": held.epoch, "keep": change.keep and change.end is None,
            "trace": held.id, "tenant": held.tenant_id, "commit": change.id,
        },
    )  # fmt: skip
    return rows[0] if rows else None


def _statement(held: Held, change: Change) -> tuple[str, dict[str, Any]]:
    """The SQL and the parameters of a change: only the parts that it has."""
    end, claiming = change.end, held.claiming
    if claiming is not None:
        first, change = _claimed(held, claiming, change)
    parts: dict[str, list[dict[str, Json]]] = {
        "steps": [given(one) for one in change.steps],
        "new_steps": [given(one) for one in change.new_steps],
        "calls": [given(one) for one in change.calls],
        "new_calls": [given(one) for one in change.new_calls],
        "attempts": [given(one) for one in change.attempts if one.call_id is None],
        "ran": [given(one) for one in change.attempts if one.call_id is not None],
        "new_attempts": [given(one) for one in change.new_attempts],
        "events": [{"n": n, **given(one)} for n, one in enumerate(change.events, 1)],
        "effects": [{"step_id": str(step), "name": name} for step, name in change.effects],
        "memory": memory.rows(held.id, [one for one in change.memory if one.type == "short_term"]),
        "children": child_rows(change.children),
        "letters": [given(one) for one in change.letters],
        "deliveries": deliveries.rows(held, change),
    }
    named = {name: jsonb(rows) for name, rows in parts.items() if rows}
    params = {
        "trace": held.id, "tenant": held.tenant_id, "worker": held.holder.worker_id, "epoch": held.epoch,
        "commit": change.id, "keep": change.keep and end is None,
        "step": change.steps[0].id if change.steps else None,
        "n_events": len(change.events), "n_steps": sum(one.group_of is None for one in change.new_steps),
        "end_status": end.status if end else None,
        "state": jsonb(change.state), "waits_for": change.waits_for,
        "result": jsonb(end.result) if end else None, "error": jsonb(end.error) if end else None,
    }  # fmt: skip
    if claiming is not None:
        params |= first
    return landing.statement(tuple(named), begins=claiming is not None), params | named


def _claimed(held: Held, claiming: Claiming, change: Change) -> tuple[dict[str, Any], Change]:
    """What a first commit has more than others, and the change without the step that it ends: that is only written now."""
    [step] = change.steps
    params = {
        "agent": held.agent, "unread": list(claiming.unread), "plan": held.plan_hash, "version": claiming.version,
        "policy": jsonb(held.policy), "child": held.holder.child, "claim": claiming.claim_id,
        "step": step.id, "step_status": step.status, "step_error": jsonb(step.error),
    }  # fmt: skip
    began = (
        Event("ACP_RECEIVE", body=claiming.received), Event("RUN_ONCE_START", body=claiming.started),
        Event("EXEC_START", step.id, body={"plan": held.plan_hash}),
    )  # fmt: skip
    return params, replace(change, steps=(), events=(*began, *change.events))


def _held(row: Row, holder: Holder) -> Held:
    names = Held.__dataclass_fields__.keys() - {"holder", "permissions", "claiming"}
    return Held(**{name: row[name] for name in names}, permissions=tuple(row["permissions"]), holder=holder)


def moved(held: Held, landed: Landed, *, steps: int, state: dict[str, Json] | None = None) -> Held:
    """The same trace after a commit that kept it. `state` None: as before."""
    state = held.state if state is None else state
    return replace(held, epoch=landed.epoch, steps=steps, state=state, claiming=None)
