"""Retry by hand: a failed trace goes on with the step that failed, under the same rows and the same keys.

Its failed calls, and those an early join had cancelled, may run again: a higher epoch, as many more attempts as they
had. What has succeeded stays. A child trace that failed is retried itself, and its parent's step waits for it. A row that
was lost with its worker stays a suspect. A `once` call that failed never runs again: a person who knows what came of it
resolves it, and the trace goes on from there. Lock order: trace → calls → step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any, Literal
from uuid import UUID

from agentmesh.errors import NotResolvable, NotRetryable
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Json, Ring, named, new_id
from agentmesh.state import branches
from agentmesh.state.calls import call_ring, step_ring

UNKNOWN = "E_OUTCOME_UNKNOWN"

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
SELECT id, kind, phase, need, wins, ordinal, (action->>'limit')::int AS width,
  action ? 'refused' OR action ? 'terms' AND error->>'code' = ANY(%(undecided)s) AS undecided FROM mesh.steps
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'failed' AND kind <> 'group' ORDER BY ordinal DESC LIMIT 1
"""

# A call that was resolved to run again stands before its slot, where nobody counts it.
LOCK_CALLS = """
SELECT id, slot, idx, slot_mode, group_id, status, effect, tool, error->>'code' AS code FROM mesh.calls
 WHERE step_id = %(step)s AND tenant_id = %(tenant)s AND idx >= 0 ORDER BY id FOR NO KEY UPDATE
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
  rung_at = CASE WHEN %(status)s <> 'waiting' THEN mesh.mesh_now() END
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s
RETURNING id, epoch, queue, agent, priority
"""

UNDECIDED = ("E_NO_QUORUM", "E_NO_BID", "E_TIMEOUT")
"""Why the answers of all children may not have been enough."""

# How the child traces of a step's calls stand now: some may have been retried by themselves.
CHILDREN = """
SELECT c.id, t.status, t.result FROM mesh.calls c JOIN mesh.traces t ON t.id = c.child_trace_id AND t.tenant_id = c.tenant_id
 WHERE c.step_id = %(step)s AND c.tenant_id = %(tenant)s AND c.status = 'failed'
"""

WAIT_AGAIN = """
UPDATE mesh.calls SET status = CASE WHEN id = ANY(%(done)s) THEN 'done' ELSE 'running' END, epoch = epoch + 1, error = NULL,
  result = CASE WHEN id = ANY(%(done)s) THEN (SELECT t.result FROM mesh.traces t WHERE t.id = calls.child_trace_id
    AND t.tenant_id = %(tenant)s) END, ended_at = CASE WHEN id = ANY(%(done)s) THEN mesh.mesh_now() END
 WHERE id = ANY(%(ids)s) AND tenant_id = %(tenant)s AND status = 'failed'
"""

# Their parent waits for them, and it may be that they have told it, or tell it now, while it did not.
ENDED = """
SELECT t.id, t.status, t.parent_owed FROM mesh.calls c JOIN mesh.traces t ON t.id = c.child_trace_id AND t.tenant_id = c.tenant_id
 WHERE c.trace_id = %(trace)s AND c.tenant_id = %(tenant)s AND c.kind = 'child' AND c.status = 'running'
   AND t.status IN ('done', 'failed', 'cancelled') ORDER BY t.id
"""

ANEW = """
UPDATE mesh.steps SET wake_at = mesh.mesh_now() + make_interval(secs => (action->>'within_s')::float8)
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s AND status = 'waiting' AND action ? 'within_s'
"""

TELL_AGAIN = """
UPDATE mesh.traces SET parent_owed = true WHERE id = %(child)s AND tenant_id = %(tenant)s
   AND status IN ('done', 'failed', 'cancelled')
"""

# What a person says is an attempt of its own, which ends the call.
SETTLE_BY_HAND = """
WITH c AS (UPDATE mesh.calls SET status = CASE WHEN %(won)s THEN 'done' ELSE 'failed' END, result = %(result)s::jsonb,
    error = %(error)s::jsonb, epoch = epoch + 1, n = n + 1, ended_at = mesh.mesh_now(),
    failures = failures + (NOT %(won)s)::int, max_attempts = max_attempts + (NOT %(won)s)::int
   WHERE id = %(call)s AND tenant_id = %(tenant)s AND status = 'failed' AND effect = 'once' RETURNING *)
INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, call_id, kind, n, epoch, idem_key, outcome, error, ended_at)
 SELECT %(attempt)s, tenant_id, trace_id, step_id, id, 'person', n, epoch, idem_key,
  CASE WHEN %(won)s THEN 'won' ELSE 'failed' END, error, mesh.mesh_now() FROM c
"""

STEP_ASIDE = """
UPDATE mesh.calls SET status = 'cancelled', epoch = epoch + 1, idx = least(0, (SELECT min(o.idx) FROM mesh.calls o
   WHERE o.step_id = calls.step_id AND o.slot = calls.slot)) - 1
 WHERE id = %(call)s AND tenant_id = %(tenant)s AND status = 'failed' AND effect = 'once'
"""

ANOTHER = """
INSERT INTO mesh.calls (id, tenant_id, trace_id, step_id, group_id, kind, slot, idx, slot_size, slot_mode, tool, label, args,
  needs, effect, inline, status, queue, task, priority, idem_key, timeout_s, max_attempts, backoff_s, backoff_cap_s, epoch,
  max_losses, limited, compensate)
SELECT %(id)s, tenant_id, trace_id, step_id, group_id, kind, slot, %(idx)s, slot_size, slot_mode, tool, label, args, needs,
  effect, inline, 'cancelled', queue, task, priority,
  left(encode(sha256(convert_to(idem_key || ' again', 'UTF8')), 'hex'), 40), timeout_s, 1, backoff_s,
  backoff_cap_s, 0, max_losses, limited, compensate
 FROM mesh.calls WHERE id = %(call)s AND tenant_id = %(tenant)s
"""


def retry(db: Database, *, tenant: str, trace_id: UUID, by: str) -> list[Ring]:
    """The failed trace runs again from the step that failed, its dead letters are settled; the rings that are owed.

    Where a child trace had failed, the step waits for that one, which is retried in the same way. A crash in between leaves
    a parent that waits for a failed child: to retry it again goes on from there. Raises NotRetryable: when it has not
    failed, when a verdict ended it, when a `once` call would run again, or when that is so of a child; then its parent
    fails anew.
    """
    at = {"trace": trace_id, "tenant": tenant}
    rings = _retry(db, at, by)
    ended = db.once(ENDED, at)
    again = [row["id"] for row in ended if row["status"] == "failed" and not row["parent_owed"]]
    for row in ended:
        if row["status"] != "failed":
            db.once(TELL_AGAIN, at | {"child": row["id"]})
    if rings is None and not again:
        raise NotRetryable("this trace has not failed", value=str(trace_id))
    found = list(rings or ())
    for child in again:
        try:
            found += retry(db, tenant=tenant, trace_id=child, by=by)
        except NotRetryable as exc:
            db.once(TELL_AGAIN, at | {"child": child})
            raise NotRetryable(f"child trace {child} of this one cannot be retried: {exc.what}", value=exc.value,
                               expected=exc.expected, next=exc.next) from exc  # fmt: skip
    return found


def _retry(db: Database, at: dict[str, Any], by: str) -> list[Ring] | None:
    """The trace by itself; None when it has not failed."""
    with db.begin() as tx:
        return again_in(tx, at, by)
    return None


def again_in(tx: Tx, at: dict[str, Any], by: str) -> list[Ring] | None:
    """`retry` without what is below, in this transaction; None when the trace has not failed."""
    trace_id: UUID = at["trace"]
    try:
        step, at = _reopen_trace(tx, at["tenant"], trace_id, {"retry": True, **named(by)})
    except NotRetryable:
        return None
    if step is None:
        raise NotRetryable("no step of this trace failed: a verdict ended it", value=str(trace_id),
                           next="agentmesh submit")  # fmt: skip
    if step["undecided"]:
        raise NotRetryable("the errands of this step are not sent again in place", value=str(trace_id),
                           next=f"agentmesh rewind {trace_id} --to {step['ordinal']}")  # fmt: skip
    closed = branches.begin_closed(tx, at)
    if step["kind"] == "delegate" and step["wins"] < step["need"]:
        return closed + _wait_again(tx, at, step)
    if step["kind"] == "tools" and step["wins"] < step["need"]:
        return closed + _reopen_tools(tx, at, step, _again(tx.all(LOCK_CALLS, at)))
    row = tx.one(REOPEN_STEP, at | {"status": "ready", "phase": step["phase"], "pending": 0, "wins": step["wins"]})
    return closed + ([_step_ring(row, trace_id)] if row else [])


def _wait_again(tx: Tx, at: dict[str, Any], step: Row) -> list[Ring]:
    """The step waits for its failed child traces once more; what one of them has come to meanwhile counts."""
    calls = tx.all(LOCK_CALLS, at)
    children = {row["id"]: row["status"] for row in tx.all(CHILDREN, at)}
    done = [call for call, status in children.items() if status == "done"]
    again = [call for call, status in children.items() if status not in {"done", "cancelled"}]
    won = len(done) + sum(_won(slot) for slot in _slots(calls))
    if won + len(again) < step["need"]:
        raise NotRetryable("child traces of this step were cancelled, and are not asked again in place", value=str(at["trace"]),
                           next=f"agentmesh rewind {at['trace']} --to {step['ordinal']}")  # fmt: skip
    tx.count(WAIT_AGAIN, at | {"done": done, "ids": [*done, *again]})
    joined = won >= step["need"]
    status, pending = ("joined", 0) if joined else ("waiting", len(again))
    row = tx.one(REOPEN_STEP, at | {"status": status, "phase": "run", "pending": pending, "wins": won})
    tx.count(ANEW, at)
    return [_step_ring(row, at["trace"])] if row and joined else []


def resolve(
    db: Database, call: Row, *, to: Literal["done", "failed", "again"], by: str, result: Json = None, reason: str = ""
) -> list[Ring]:
    """What became of a `once` call that failed is known now, and its trace goes on with it; the rings that are owed.

    `done`: it has taken effect, with this result. `failed`: it has not; what follows it in its slot has its turn.
    `again`: another call of the same tool, under a key of its own, takes its place. Other failed calls of the step run
    again as in a retry, but for those of `once`: their slots stay lost. The person is named in the trace's events.
    Raises NotResolvable: when the call is no failed call of `once`, or is not what its trace has failed at.
    """
    body = {"resolve": str(call["id"]), "as": to, **named(by)} | ({"reason": reason} if reason else {})
    with db.begin() as tx:
        try:
            step, at = _reopen_trace(tx, call["tenant_id"], call["trace_id"], body)
        except NotRetryable as exc:
            raise NotResolvable("the trace of this call has not failed", value=str(call["id"])) from exc
        if step is None or step["id"] != call["step_id"] or step["wins"] >= step["need"]:
            raise NotResolvable("this call is not what its trace has failed at", value=str(call["id"]))
        closed = branches.begin_closed(tx, at)
        calls = tx.all(LOCK_CALLS, at)
        mine = next((one for one in calls if one["id"] == call["id"]), None)
        if mine is None or (mine["status"], mine["effect"]) != ("failed", "once"):
            raise NotResolvable("this call is no failed call of effect 'once'", value=str(call["id"]))
        _settle_by_hand(tx, at | {"call": call["id"]}, mine, to, result)
        return closed + _reopen_tools(tx, at, step, _going_on(tx.all(LOCK_CALLS, at), mine))
    return []


def _reopen_trace(tx: Tx, tenant: str, trace_id: UUID, body: dict[str, Json]) -> tuple[Row | None, dict[str, Any]]:
    """The step that failed, if one did, and what names it in statements. Raises NotRetryable."""
    at: dict[str, Any] = {"trace": trace_id, "tenant": tenant}
    if tx.one(REOPEN_TRACE, at | {"body": jsonb(body), "by": body["by"]}) is None:
        raise NotRetryable("this trace has not failed", value=str(trace_id))
    step = tx.one(FAILED_STEP, at | {"undecided": list(UNDECIDED)})
    return step, at | {"step": step["id"] if step else None}


def _settle_by_hand(tx: Tx, at: dict[str, Any], call: Row, to: str, result: Json) -> None:
    if to == "again":
        tx.count(STEP_ASIDE, at)
        tx.count(ANOTHER, at | {"id": new_id(), "idx": call["idx"]})
        return
    error = None if to == "done" else {"code": "E_TOOL", "message": "it has not taken effect, as a person has said"}
    said = {"attempt": new_id(), "won": to == "done", "result": jsonb(result if to == "done" else None)}
    tx.count(SETTLE_BY_HAND, at | said | {"error": jsonb(error) if error else None})


def _again(calls: Sequence[Row]) -> list[tuple[list[Row], list[Row]]]:
    """Every slot, with its calls that run again: all that have not succeeded, unless the slot has. Raises NotRetryable."""
    found = [(slot, [] if _won(slot) else [one for one in slot if one["status"] != "done"]) for slot in _slots(calls)]
    once = next((one for _, again in found for one in again if _spent(one)), None)
    if once is not None:
        raise NotRetryable(f"call {once['tool']} may have taken effect, and must not run twice", value=str(once["id"]),
                           expected="a failed step without a failed call of effect 'once'",
                           next=f"agentmesh resolve {once['id']}")  # fmt: skip
    return found


def _going_on(calls: Sequence[Row], resolved: Row) -> list[tuple[list[Row], list[Row]]]:
    """The same once a call was resolved: slots that another `once` call has lost stay so, and its own goes on behind it."""
    found = []
    for slot in _slots(calls):
        again = [] if _won(slot) else [one for one in slot if one["status"] != "done"]
        if slot[0]["slot"] == resolved["slot"]:
            again = [one for one in again if one["idx"] >= resolved["idx"] and not _spent(one)]
        lost = any(_spent(one) and (slot[0]["slot_mode"] == "all" or one["code"] == UNKNOWN) for one in slot)
        found.append((slot, [] if lost else [one for one in again if not _spent(one)]))
    return found


def _reopen_tools(tx: Tx, at: dict[str, Any], step: Row, slots: Sequence[tuple[list[Row], list[Row]]]) -> list[Ring]:
    """The step waits for the calls that run again, of a for_each so many at once as it says; where that leads nowhere, or to
    enough already, it has joined."""
    need, width = step["need"], step["width"]
    won, opened = sum(_won(slot) for slot, _ in slots), [again for _, again in slots if again]
    if won >= need or won + len(opened) < need:
        row = tx.one(REOPEN_STEP, at | {"status": "joined", "phase": "run", "pending": 0, "wins": won})
        return [_step_ring(row, at["trace"])] if row else []
    rows = tx.all(
        REOPEN_CALLS,
        at
        | {
            "ids": [one["id"] for again in opened for one in again],
            "first": [again[0]["id"] for again in opened[:width]],
        },
    )
    pending, wins = _count(tx, [(slot, bool(again)) for slot, again in slots], at)
    tx.one(REOPEN_STEP, at | {"status": "waiting", "phase": "run", "pending": pending, "wins": wins})
    return [call_ring(row) for row in rows if row["status"] == "ready"]


def _count(tx: Tx, slots: Collection[tuple[list[Row], bool]], at: dict[str, Any]) -> tuple[int, int]:
    """Open slots and won slots of the step, its groups counted anew. An open group of `all` has passed nothing on,
    another its wins alone."""
    groups: dict[UUID | None, list[tuple[bool, bool]]] = {}
    for slot, is_open in slots:
        groups.setdefault(slot[0]["group_id"], []).append((_won(slot), is_open))
    pending = wins = 0
    for group, members in groups.items():
        won, left = sum(one for one, _ in members), sum(one for _, one in members)
        require = _reopen_group(tx, at, group, left, won) if group else None
        whole = require == "all" and left > 0
        unheard = len(members) if whole else len(members) - won
        pending += unheard if group and left else left
        wins += 0 if whole else won
    return pending, wins


def _reopen_group(tx: Tx, at: dict[str, Any], group: UUID, left: int, won: int) -> str:
    row = tx.one(
        "UPDATE mesh.steps SET status = CASE WHEN %(left)s > 0 THEN 'waiting' ELSE 'done' END, pending = %(left)s,"
        " wins = %(won)s, ended_at = CASE WHEN %(left)s = 0 THEN ended_at END"
        " WHERE id = %(group)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s RETURNING require",
        at | {"group": group, "left": left, "won": won},
    )
    return str(row["require"]) if row else ""


def _slots(calls: Sequence[Row]) -> list[list[Row]]:
    return [list(some) for _, some in groupby(sorted(calls, key=_place), key=lambda one: one["slot"])]


def _won(slot: list[Row]) -> bool:
    done = [one["status"] == "done" for one in slot]
    return any(done) if slot[0]["slot_mode"] == "first" else all(done)


def _spent(call: Row) -> bool:
    """Whether it must never run again."""
    return (call["effect"], call["status"]) == ("once", "failed")


def _place(call: Row) -> tuple[int, int]:
    return call["slot"], call["idx"]


def _step_ring(row: Row, trace_id: UUID) -> Ring:
    return step_ring({f"step_{name}": value for name, value in row.items()}, trace_id)
