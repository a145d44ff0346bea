"""A step that is settled by hand: whatever it runs or waits for, its result is the one that was given.

The trace is taken from whoever holds it, and the step stands as joined: whoever takes it next drops its open calls, and
its callback rules on the result. Lock order: trace → step.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg

from agentmesh.errors import NothingOpen
from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Json, Ring, named
from agentmesh.state.calls import step_ring

TAKE_OVER = """
UPDATE mesh.traces SET status = 'running', epoch = epoch + 1, worker_id = NULL, child = NULL, claim_id = NULL,
  waits_for = NULL, seq = seq + 1
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('running', 'waiting') RETURNING seq
"""

OPEN = """
SELECT id, ordinal, node, kind FROM mesh.steps WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s
  AND status IN ('ready', 'running', 'waiting', 'joined') AND kind <> 'group' ORDER BY ordinal
"""

SETTLE = """
UPDATE mesh.steps SET status = 'joined', epoch = epoch + 1, output = %(output)s::jsonb, failures = 0, error = NULL,
  wake_at = NULL, deadline = NULL, rung_at = mesh.mesh_now()
 WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s
   AND status IN ('ready', 'running', 'waiting', 'joined')
RETURNING id, epoch, queue, agent, priority
"""

END_ATTEMPTS = """
UPDATE mesh.attempts SET outcome = 'stale', ended_at = mesh.mesh_now()
 WHERE step_id = %(step)s AND tenant_id = %(tenant)s AND call_id IS NULL AND outcome IS NULL
"""

EVENT = """
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, body)
VALUES (%(trace)s, %(seq)s, %(tenant)s, 'EXEC_SIGNAL', %(step)s, %(body)s::jsonb)
"""


def settle(db: Database, *, tenant: str, trace_id: UUID, result: Json, by: str) -> Ring:
    """The one open step of the trace has come to `result`; its ring, which is owed.

    Raises NothingOpen where there is no such step, or several stand open beside one another.
    """
    at: dict[str, Any] = {"trace": trace_id, "tenant": tenant}
    output: dict[str, Json] = {"ok": True, "value": result, "settled": by}
    with db.begin() as tx:
        trace = tx.one(TAKE_OVER, at)
        if trace is None:
            raise NothingOpen("this trace does not run", value=str(trace_id))
        step = _only(tx.all(OPEN, at), trace_id)
        at |= {"step": step["id"]}
        row = tx.one(SETTLE, at | {"output": jsonb(output)})
        if row is None:
            raise psycopg.Rollback
        tx.count(END_ATTEMPTS, at)
        body: dict[str, Json] = {"node": step["node"], **named(by), "settled": True}
        tx.count(EVENT, at | {"seq": trace["seq"], "body": jsonb(body)})
        return step_ring({f"step_{name}": value for name, value in row.items()}, trace_id)
    raise NothingOpen("this trace could not be settled", value=str(trace_id))


def _only(steps: list[Row], trace_id: UUID) -> Row:
    if len(steps) != 1:
        open_ones = ", ".join(f"{one['ordinal']} {one['node']}" for one in steps)
        raise NothingOpen("not one step of this trace is open", value=open_ones or str(trace_id))
    if steps[0]["kind"] == "start" or steps[0]["node"] == "compensate":
        raise NothingOpen("this step does no work of its own that could have a result", value=steps[0]["node"])
    return steps[0]
