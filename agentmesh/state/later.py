"""Calls whose answer comes later: they run on, held by nobody, until somebody brings it or their deadline passes.

The answer is the call's, whichever attempt asked for it: its key was the same. It may even come before the tool has
returned.
"""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

import psycopg

from agentmesh.errors import CallEnded, UnknownCall
from agentmesh.infrastructure.database import Database, Row
from agentmesh.records import Failure, Json
from agentmesh.state import calls
from agentmesh.state.audit import NOTE, said
from agentmesh.state.calls import Claimed, Settled

# Ours, or ours already: a commit whose answer was lost is repeated.
WAIT = """
UPDATE mesh.calls SET worker_id = NULL, child = NULL, deadline = mesh.mesh_now() + make_interval(secs => %(within_s)s)
 WHERE id = %(call)s AND tenant_id = %(tenant)s AND epoch = %(epoch)s AND claim_id = %(attempt)s AND status = 'running'
   AND (worker_id = %(worker)s OR worker_id IS NULL)
"""

FIND = """
SELECT id, tenant_id, trace_id, step_id, epoch, worker_id, status, tool, kind, result, child_trace_id
 FROM mesh.calls WHERE id = %(call)s
"""


def wait(db: Database, claimed: Claimed, *, within_s: float) -> bool:
    """True when the call now waits for its answer, `within_s` at most; False when it has it, or was lost."""
    row = claimed.row
    at = {"call": row["id"], "tenant": row["tenant_id"], "epoch": row["epoch"], "attempt": claimed.attempt_id,
          "worker": claimed.holder.worker_id, "within_s": within_s}  # fmt: skip

    def once() -> bool:
        with db.checkout() as tx:
            return tx.count(WAIT, at) == 1

    try:
        return once()
    except (psycopg.OperationalError, psycopg.InterfaceError):
        return once()


def find(db: Database, call_id: UUID, *, tenant: str | None = None) -> Row:
    """The tool call. Raises UnknownCall; `tenant` None: whose it is was proved otherwise."""
    rows = db.read(FIND, {"call": call_id})
    if not rows or rows[0]["kind"] != "tool" or tenant not in {None, rows[0]["tenant_id"]}:
        raise UnknownCall("no tool call has this id", value=str(call_id))
    if rows[0]["child_trace_id"] is not None:
        raise UnknownCall("this call is answered by another agent", value=str(call_id), expected="a call that returned Later",
                          next=f"agentmesh trace show {rows[0]['child_trace_id']}")  # fmt: skip
    return rows[0]


def answer(
    db: Database, call: Row, outcome: Literal["won", "failed"], *, result: Json = None, failure: Failure | None = None,
    by: str,
) -> Settled:  # fmt: skip
    """The running call has ended with this. Raises CallEnded when it has ended, or runs not at the moment."""
    for _ in range(4):  # its worker lets go of it while we look, or the answer to our commit is lost
        if call["status"] != "running":
            break
        try:
            settled = _settle(
                db, call, by, worker_id=call["worker_id"], outcome=outcome, result=result, failure=failure
            )
        except (psycopg.OperationalError, psycopg.InterfaceError):
            settled = None
            call = find(db, call["id"])
            if call["status"] == "done" and outcome == "won" and call["result"] == result:
                return Settled("done", joined=False, rings=())  # ours; the rescuer rings
            continue
        if settled is not None:
            return settled
        call = find(db, call["id"])
    raise CallEnded(f"call {call['id']} waits for no answer", value=call["status"])


def _settle(db: Database, call: Row, by: str, **how: Any) -> Settled | None:
    about = said(by, trace_id=str(call["trace_id"]), call=str(call["id"]), outcome=how["outcome"])
    with db.begin() as tx:
        settled = calls.settle(tx, call, **how)
        if settled is not None:
            tx.all(NOTE, {"tenant": call["tenant_id"], "action": "CALL_FINISH", "said": about})
        return settled
    return None
