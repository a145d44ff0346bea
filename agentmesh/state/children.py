"""Child traces that their parent's step waits for: each is a call of that step, and its end is the call's result.

A child's end commits `parent_owed`; a second transaction counts the parent's step down, since none locks two traces. A
child that is no longer wanted is owed a cancel by its call. The rescuer pays what a crash left.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import psycopg

from agentmesh.infrastructure.database import Database, Row
from agentmesh.records import Failure, Ring
from agentmesh.state import calls, steering

OWED = "SELECT id FROM mesh.traces WHERE parent_owed ORDER BY id LIMIT %(batch)s"

PAID = """
UPDATE mesh.traces SET parent_owed = false WHERE id = %(child)s AND parent_owed
RETURNING tenant_id, status, result, error, parent_call_id
"""

# Whose tenant it is, the child's own row has told.
CALL = """
SELECT id, tenant_id, epoch FROM mesh.calls WHERE id = %(call)s AND tenant_id = %(tenant)s AND child_trace_id = %(child)s
  AND status = 'running'
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


def owed(db: Database, *, batch: int) -> Sequence[Row]:
    """Ended traces whose parents have not been told."""
    return db.once(OWED, {"batch": batch})


def pay(db: Database, child_id: UUID) -> tuple[Ring, ...]:
    """The end of this trace is the result of its parent's call, once; the rings that this leads to."""
    with db.begin() as tx:
        child = tx.one(PAID, {"child": child_id})
        if child is None:
            raise psycopg.Rollback
        call = tx.one(CALL, {"call": child["parent_call_id"], "tenant": child["tenant_id"], "child": child_id})
        if call is None:
            return ()
        done = child["status"] == "done"
        settled = calls.settle(
            tx, call, worker_id=None, outcome="won" if done else "failed", result=child["result"] if done else None,
            failure=None if done else _failure(child, child_id),
        )  # fmt: skip
        return settled.rings if settled else ()
    return ()


def unwanted(db: Database, *, batch: int) -> Sequence[Row]:
    """Calls that were dropped while their child traces may still run."""
    return db.once(UNWANTED, {"batch": batch})


def drop(db: Database, call: Row) -> None:
    """The child trace of a dropped call, and all below it, is cancelled."""
    steering.cancel(
        db, tenant=call["tenant_id"], trace_id=call["child_trace_id"], by="mesh", reason="no longer wanted", tree=True
    )
    db.once("UPDATE mesh.calls SET cancel_owed = false WHERE id = %(id)s AND tenant_id = %(tenant_id)s",
            {"id": call["id"], "tenant_id": call["tenant_id"]})  # fmt: skip


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
