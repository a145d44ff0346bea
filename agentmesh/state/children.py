"""Child traces that a step waits for: each is a call of that step, and its end is the call's result.

A child's end commits `parent_owed`; a second transaction counts the parent's step down, since none locks two traces. A
child that is no longer wanted is owed a cancel by its call. The rescuer pays what a crash left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from agentmesh.infrastructure import jsontext
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.infrastructure.faults import point
from agentmesh.records import Failure, Json, Ring
from agentmesh.state import calls, retry, steering
from agentmesh.state.calls import Claimed
from agentmesh.state.changes import NewTrace
from agentmesh.state.dispatch import INSERT_CHILDREN, child_rows

Settled = Callable[[Sequence[Mapping[str, Json]], int], bool]
"""Whether what has ended settles it, however many are left."""

# The call is nobody's from now on; a cancel or a drop of it finds the child there, and one that came first leaves none.
ASK = f"""
WITH c AS (
  UPDATE mesh.calls SET worker_id = NULL, child = NULL, child_trace_id = %(child)s,
    deadline = mesh.mesh_now() + make_interval(secs => timeout_s)
   WHERE id = %(call)s AND tenant_id = %(tenant)s AND epoch = %(epoch)s AND claim_id = %(attempt)s AND status = 'running'
     AND worker_id = %(worker)s
  RETURNING trace_id, tenant_id),
 t AS (SELECT p.id, p.tenant_id, p.root_id, p.depth, p.paused_at FROM c
   JOIN mesh.traces p ON p.id = c.trace_id AND p.tenant_id = c.tenant_id),
{INSERT_CHILDREN}
SELECT 1 FROM c
"""

# As ASK, for the child that the call has; ours already, where the answer to our commit was lost.
WAIT_AGAIN = """
UPDATE mesh.calls SET worker_id = NULL, child = NULL, deadline = mesh.mesh_now() + make_interval(secs => timeout_s)
 WHERE id = %(call)s AND tenant_id = %(tenant)s AND epoch = %(epoch)s AND claim_id = %(attempt)s AND status = 'running'
   AND (worker_id = %(worker)s OR worker_id IS NULL)
"""

LOCK_CHILD = "SELECT status FROM mesh.traces WHERE id = %(child)s AND tenant_id = %(tenant)s FOR NO KEY UPDATE"

ASKED_ALREADY = "SELECT 1 FROM mesh.calls WHERE id = %(call)s AND tenant_id = %(tenant)s AND child_trace_id = %(child)s"

OWED = "SELECT id FROM mesh.traces WHERE parent_owed ORDER BY id LIMIT %(batch)s"

PAID = """
UPDATE mesh.traces SET parent_owed = false WHERE id = %(child)s AND parent_owed
RETURNING tenant_id, status, result, error, parent_call_id
"""

# Whose tenant it is, the child's own row has told.
CALL = """
SELECT id, tenant_id, epoch, step_id FROM mesh.calls WHERE id = %(call)s AND tenant_id = %(tenant)s
  AND child_trace_id = %(child)s AND status = 'running' FOR NO KEY UPDATE
"""

# What is decided on does not change; big values stand aside.
ASKED = """
SELECT s.action->'terms' AS terms, g.body AS given, t.status = 'done' AS done, t.result AS answer, b.body AS whole
 FROM mesh.traces t JOIN mesh.calls c ON c.id = t.parent_call_id AND c.tenant_id = t.tenant_id
  JOIN mesh.steps s ON s.id = c.step_id AND s.tenant_id = c.tenant_id
  LEFT JOIN mesh.blobs b ON b.tenant_id = t.tenant_id AND b.hash = t.result->>'$blob'
  LEFT JOIN mesh.blobs g ON g.tenant_id = t.tenant_id AND g.hash = s.action->'terms'->'given'->>'$blob'
 WHERE t.id = %(child)s AND t.parent_owed AND s.action ? 'terms'
"""

# One end after another: each sees what those before it counted for.
LOCK_STEP = """
SELECT id, pending FROM mesh.steps WHERE id = %(step)s AND tenant_id = %(tenant)s AND status IN ('waiting', 'joined')
 FOR NO KEY UPDATE
"""

ENDED = """
SELECT args FROM mesh.calls WHERE step_id = %(step)s AND tenant_id = %(tenant)s AND status IN ('done', 'failed') ORDER BY id
"""

HEARD = "UPDATE mesh.calls SET args = %(heard)s::jsonb WHERE id = %(call)s AND tenant_id = %(tenant)s"

# As each end counts as a win, the next one is then enough.
ENOUGH = "UPDATE mesh.steps SET need = wins + 1 WHERE id = %(step)s AND tenant_id = %(tenant)s AND need > wins"

# A join is not kept waiting by the time the step had.
IN_TIME = """
UPDATE mesh.steps SET wake_at = NULL WHERE id = %(step)s AND tenant_id = %(tenant)s AND status = 'joined'
  AND wake_at IS NOT NULL
"""

UNWANTED = """
SELECT id, tenant_id, child_trace_id FROM mesh.calls WHERE cancel_owed ORDER BY id LIMIT %(batch)s
"""

HELD = """
SELECT t.id, t.tenant_id FROM mesh.traces t JOIN mesh.traces p ON p.id = t.parent_id AND p.tenant_id = t.tenant_id
 WHERE t.status = 'held' AND t.waits_for = 'parent' AND p.paused_at IS NULL ORDER BY t.id LIMIT %(batch)s
"""

ADMIT = """
UPDATE mesh.traces SET status = CASE WHEN lane IS NULL THEN 'queued' ELSE 'held' END,
  waits_for = CASE WHEN lane IS NOT NULL THEN 'limit' END, rung_at = CASE WHEN lane IS NULL THEN mesh.mesh_now() END
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status = 'held' AND waits_for = 'parent'
RETURNING id, epoch, queue, agent, priority, status
"""


def ask(db: Database, claimed: Claimed, child: NewTrace) -> bool:
    """True when the claimed call now waits for this child trace, as long as it may take; False when it was lost before."""
    at = _at(claimed) | {"child": child.id, "children": jsonb(child_rows([child]))}

    def once() -> bool:
        return bool(db.once(ASK, at) or db.once(ASKED_ALREADY, at))

    try:
        return once()
    except (psycopg.OperationalError, psycopg.InterfaceError):
        return once()


def ask_again(db: Database, claimed: Claimed) -> list[Ring] | None:
    """The claimed call waits for the child trace that it has already, which is retried where it had failed; the rings that
    are owed. None: it has none, or a cancelled one. Raises NotRetryable. Lock order: child → call, as in `pay`.
    """
    at = _at(claimed) | {"child": claimed.row["child_trace_id"]}
    if at["child"] is None:
        return None
    who = {"tenant": at["tenant"], "trace": at["child"]}
    with db.begin() as tx:
        child = tx.one(LOCK_CHILD, at)
        if child is None or child["status"] == "cancelled":
            return None
        found = retry.again_in(tx, who, by="mesh") or []
        tx.count(retry.TELL_AGAIN, who | {"child": at["child"]})
        if not tx.count(WAIT_AGAIN, at):
            raise psycopg.Rollback
        return found
    return None


def _at(claimed: Claimed) -> dict[str, Any]:
    row = claimed.row
    return {"call": row["id"], "tenant": row["tenant_id"], "epoch": row["epoch"], "attempt": claimed.attempt_id,
            "worker": claimed.holder.worker_id}  # fmt: skip


def owed(db: Database, *, batch: int) -> Sequence[Row]:
    """Ended traces whose parents have not been told."""
    return db.once(OWED, {"batch": batch})


@dataclass(frozen=True, slots=True)
class Asked:
    """The terms on which an answer is decided on with others, whether there is one (`done`), and what it is."""

    terms: dict[str, Json]
    done: bool
    answer: Json


def asked(db: Database, child_id: UUID) -> Asked | None:
    """On which terms the end of this trace counts for its parent; None: on none, or it has been told."""
    rows = db.once(ASKED, {"child": child_id})
    if not rows:
        return None
    row = rows[0]
    terms = row["terms"] if row["given"] is None else row["terms"] | {"given": _whole(row["given"])}
    return Asked(terms, row["done"], row["answer"] if row["whole"] is None else _whole(row["whole"]))


def pay(
    db: Database, child_id: UUID, *, heard: Mapping[str, Json] | None = None, settled: Settled = lambda _ended, _left: False
) -> tuple[Ring, ...]:  # fmt: skip
    """The end of this trace is the result of its parent's call, once; the rings that this leads to.

    `heard` is what it counts for among others (None: each of them is for itself), which is kept with its place among
    them; the step is joined where they are `settled`.
    """
    with db.begin() as tx:
        child = tx.one(PAID, {"child": child_id})
        if child is None:
            raise psycopg.Rollback
        call = tx.one(CALL, {"call": child["parent_call_id"], "tenant": child["tenant_id"], "child": child_id})
        if call is None:
            return ()
        at = {"call": call["id"], "step": call["step_id"], "tenant": child["tenant_id"]}
        if heard is not None:
            _hear(tx, at, heard, settled)
        done = child["status"] == "done"
        told = calls.settle(
            tx, call, worker_id=None, outcome="won" if done else "failed", result=child["result"] if done else None,
            failure=None if done else _failure(child, child_id),
        )  # fmt: skip
        if told is None:
            return ()
        if told.joined:
            tx.count(IN_TIME, at)
        return told.rings
    return ()


def _hear(tx: Tx, at: dict[str, Any], heard: Mapping[str, Json], settled: Settled) -> None:
    """Keep what an end counts for, and let the step be joined by it where that is settled. Lock order: call → step."""
    step = tx.one(LOCK_STEP, at)
    if step is None:
        return
    ended = [row["args"] for row in tx.all(ENDED, at)]
    counted = {**heard, "place": len(ended) + 1}
    tx.count(HEARD, at | {"heard": jsonb(counted)})
    if settled([*ended, counted], step["pending"] - 1):
        tx.count(ENOUGH, at)


def _whole(body: bytes) -> Any:
    return jsontext.loads(bytes(body), what="a blob", max_bytes=len(body))


def unwanted(db: Database, *, batch: int) -> Sequence[Row]:
    """Calls that were dropped while their child traces may still run."""
    return db.once(UNWANTED, {"batch": batch})


def drop(db: Database, call: Row) -> None:
    """The child trace of a dropped call, and all below it, is cancelled."""
    steering.cancel(
        db, tenant=call["tenant_id"], trace_id=call["child_trace_id"], by="mesh", reason="no longer wanted", tree=True
    )
    point("drop.after_cancel")
    db.once("UPDATE mesh.calls SET cancel_owed = false WHERE id = %(id)s AND tenant_id = %(tenant_id)s"
            " AND child_trace_id = %(child_trace_id)s",
            {name: call[name] for name in ("id", "tenant_id", "child_trace_id")})  # fmt: skip


def held(db: Database, *, batch: int) -> Sequence[Row]:
    """Children that were sent while their parent was paused, and whose parent goes on."""
    return db.once(HELD, {"batch": batch})


def admit(db: Database, row: Row) -> list[Ring]:
    """The held trace is queued, or held by its agent's limits from now on; its ring."""
    rows = db.once(ADMIT, {"trace": row["id"], "tenant": row["tenant_id"]})
    return [
        Ring("trace", one["id"], one["epoch"], one["queue"], f"agent.{one['agent']}", one["id"], one["priority"])
        for one in rows
        if one["status"] == "queued"
    ]


def _failure(child: Row, child_id: UUID) -> Failure:
    error = child["error"] or {"code": "E_CANCELLED", "message": "the child trace was cancelled"}
    return Failure(
        str(error.get("code", "E_TRACE_FAILED")), str(error.get("message", "the child trace failed")), permanent=True,
        detail={"trace": str(child_id)},
    )  # fmt: skip
