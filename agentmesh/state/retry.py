"""Retry by hand: a failed trace goes on with the step that failed, under the same rows and the same keys.

Its failed calls, and those an early join had cancelled, may run again: a higher epoch, as many more attempts as they
had. What has succeeded stays. A row that was lost with its worker stays a suspect. Lock order: trace → calls → step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

from agentmesh.errors import NotRetryable
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Json, Ring, new_id
from agentmesh.state.calls import call_ring, step_ring

REOPEN_TRACE = """
WITH t AS (
  UPDATE mesh.traces SET status = 'running', error = NULL, ended_at = NULL, epoch = epoch + 1, seq = seq + 1, parent_owed = false
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status = 'failed' RETURNING id, tenant_id, seq),
 e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
   SELECT id, seq, tenant_id, 'EXEC_RESUME', %(body)s::jsonb FROM t),
 d AS (UPDATE mesh.dead_letters SET settled_at = mesh.mesh_now(), settled_as = 'retried', settled_by = %(by)s FROM t
   WHERE dead_letters.trace_id = t.id AND dead_letters.tenant_id = t.tenant_id AND settled_at IS NULL)
SELECT id FROM t
"""

FAILED_STEP = """
SELECT id, kind, phase, need, wins, ordinal FROM mesh.steps
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'failed' AND kind <> 'group' ORDER BY ordinal DESC LIMIT 1
"""

LOCK_CALLS = """
SELECT id, slot, idx, slot_mode, group_id, status, effect, tool FROM mesh.calls
 WHERE step_id = %(step)s AND tenant_id = %(tenant)s ORDER BY id FOR NO KEY UPDATE
"""

REOPEN_CALLS = """
UPDATE mesh.calls SET status = CASE WHEN id = ANY(%(first)s) THEN 'ready' ELSE 'held' END, epoch = epoch + 1,
  max_attempts = max_attempts + failures, losses = least(losses, 1), error = NULL, result = NULL, ended_at = NULL,
  wake_at = NULL, rings = 0, rung_at = CASE WHEN id = ANY(%(first)s) THEN mesh.mesh_now() END
 WHERE id = ANY(%(ids)s) AND tenant_id = %(tenant)s AND status IN ('failed', 'cancelled')
RETURNING id, epoch, queue, task, priority, trace_id, status
"""

REOPEN_STEP = """
UPDATE mesh.steps SET status = %(status)s, phase = %(phase)s, pending = %(pending)s, wins = %(wins)s, epoch = epoch + 1,
  failures = 0, losses = least(losses, 1), error = NULL, ended_at = NULL, wake_at = NULL, rings = 0,
  rung_at = CASE WHEN %(status)s = 'ready' THEN mesh.mesh_now() END
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s
RETURNING id, epoch, queue, agent, priority
"""


# Only plans with branches keep which of their nodes are open.
BRANCHES = """
SELECT o.node FROM mesh.traces t, jsonb_array_elements_text(t.state->'open') AS o(node)
 WHERE t.id = %(trace)s AND t.tenant_id = %(tenant)s
   AND o.node <> (SELECT coalesce(s.action->>'to', s.node) FROM mesh.steps s WHERE s.id = %(step)s AND s.tenant_id = %(tenant)s)
"""

BEGIN_AGAIN = """
WITH t AS (UPDATE mesh.traces SET steps = steps + 1 WHERE id = %(trace)s AND tenant_id = %(tenant)s
  RETURNING id, tenant_id, steps, queue, agent, priority)
INSERT INTO mesh.steps (id, tenant_id, trace_id, ordinal, node, iteration, kind, status, queue, agent, priority, action, rung_at)
SELECT %(id)s, t.tenant_id, t.id, t.steps, 'start', 1 + (SELECT max(m.iteration) FROM mesh.steps m WHERE m.trace_id = t.id
   AND m.tenant_id = t.tenant_id), 'start', 'ready', t.queue, t.agent, t.priority,
  jsonb_build_object('to', %(node)s::text), mesh.mesh_now() FROM t
"""

HEADS = """
SELECT id, epoch, queue, agent, priority FROM mesh.steps WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s
  AND kind = 'start' AND status = 'ready' AND action->>'to' = ANY(%(nodes)s)
"""


def retry(db: Database, *, tenant: str, trace_id: UUID, by: str) -> list[Ring]:
    """The failed trace runs again from the step that failed, its dead letters are settled; the rings that are owed.

    Raises NotRetryable: when it has not failed, when a verdict ended it, or when a `once` call would run again.
    """
    body: dict[str, Json] = {"retry": True, "by": by}
    at = {"trace": trace_id, "tenant": tenant}
    with db.begin() as tx:
        if tx.one(REOPEN_TRACE, at | {"body": jsonb(body), "by": by}) is None:
            raise NotRetryable("this trace has not failed", value=str(trace_id))
        step = tx.one(FAILED_STEP, at)
        if step is None:
            raise NotRetryable("no step of this trace failed: a verdict ended it", value=str(trace_id),
                               next="agentmesh submit")  # fmt: skip
        if step["kind"] == "delegate" and step["wins"] < step["need"]:
            raise NotRetryable("a child trace of this step failed, and is not asked again in place", value=str(trace_id),
                               next=f"agentmesh rewind {trace_id} --to {step['ordinal']}")  # fmt: skip
        at |= {"step": step["id"]}
        closed = _begin_again(tx, at)
        if step["kind"] == "tools" and step["wins"] < step["need"]:
            return closed + _reopen_tools(tx, at)
        row = tx.one(REOPEN_STEP, at | {"status": "ready", "phase": step["phase"], "pending": 0, "wins": step["wins"]})
        return closed + ([_step_ring(row, trace_id)] if row else [])
    return []


def _begin_again(tx: Tx, at: dict[str, Any]) -> list[Ring]:
    """Branches that the failure had closed begin again."""
    rows = tx.all(BRANCHES, at)
    for row in rows:
        tx.count(BEGIN_AGAIN, at | {"id": new_id(), "node": row["node"]})
    began = tx.all(HEADS, at | {"nodes": [row["node"] for row in rows]}) if rows else []
    return [_step_ring(row, at["trace"]) for row in began]


def _reopen_tools(tx: Tx, at: dict[str, Any]) -> list[Ring]:
    calls = tx.all(LOCK_CALLS, at)
    slots = [list(some) for _, some in groupby(sorted(calls, key=_place), key=lambda one: one["slot"])]
    opened = [slot for slot in slots if not _won(slot)]
    again = [[one for one in slot if one["status"] != "done"] for slot in opened]
    once = next((one for slot in again for one in slot if one["effect"] == "once" and one["status"] == "failed"), None)
    if once is not None:
        raise NotRetryable(f"call {once['tool']} may have taken effect, and must not run twice", value=str(once["id"]),
                           expected="a failed step without a failed call of effect 'once'")  # fmt: skip
    rows = tx.all(
        REOPEN_CALLS,
        at | {"ids": [one["id"] for slot in again for one in slot], "first": [slot[0]["id"] for slot in again]},
    )
    pending, wins = _count(tx, slots, at)
    tx.one(REOPEN_STEP, at | {"status": "waiting", "phase": "run", "pending": pending, "wins": wins})
    return [call_ring(row) for row in rows if row["status"] == "ready"]


def _count(tx: Tx, slots: Sequence[list[Row]], at: dict[str, Any]) -> tuple[int, int]:
    """Open slots and won slots of the step, its groups counted anew; an open group of `all` has passed nothing on."""
    groups: dict[UUID | None, list[bool]] = {}
    for slot in slots:
        groups.setdefault(slot[0]["group_id"], []).append(_won(slot))
    pending = wins = 0
    for group, won in groups.items():
        left = won.count(False)
        require = _reopen_group(tx, at, group, left, len(won)) if group else None
        whole = require == "all" and left > 0
        pending += len(won) if whole else left
        wins += 0 if whole else len(won) - left
    return pending, wins


def _reopen_group(tx: Tx, at: dict[str, Any], group: UUID, left: int, slots: int) -> str:
    row = tx.one(
        "UPDATE mesh.steps SET status = CASE WHEN %(left)s > 0 THEN 'waiting' ELSE 'done' END, pending = %(left)s,"
        " wins = %(slots)s - %(left)s, ended_at = CASE WHEN %(left)s = 0 THEN ended_at END"
        " WHERE id = %(group)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s RETURNING require",
        at | {"group": group, "left": left, "slots": slots},
    )
    return str(row["require"]) if row else ""


def _won(slot: list[Row]) -> bool:
    done = [one["status"] == "done" for one in slot]
    return any(done) if slot[0]["slot_mode"] == "first" else all(done)


def _place(call: Row) -> tuple[int, int]:
    return call["slot"], call["idx"]


def _step_ring(row: Row, trace_id: UUID) -> Ring:
    return step_ring({f"step_{name}": value for name, value in row.items()}, trace_id)
