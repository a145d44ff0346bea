"""Going back: a trace begins anew at an earlier step.

What came after stays readable as superseded steps. Memory goes back to what it was when the step was opened, but for
keys that somebody else has written since: those are left, and named. Lock order: trace → calls → steps → context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from agentmesh.errors import NotRewindable
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Json, Ring, named, new_id
from agentmesh.state import branches, compensation, memory
from agentmesh.state.branches import Back
from agentmesh.state.calls import step_ring
from agentmesh.state.changes import MemoryWrite
from agentmesh.state.closing import close

STEP = f"""
SELECT s.id, s.ordinal, s.node, s.kind, s.action, s.iteration, s.mem_seq, s.state, s.status, b.kind AS before_kind,
  CASE WHEN s.kind = 'start' THEN s.action->>'after' WHEN b.kind = 'start' THEN b.action->>'after'
    WHEN b.action ? 'undo' THEN b.action->'undo'->>'after' ELSE b.id::text END AS after,
  b.ordinal AS before_ordinal, jsonb_array_length(coalesce(b.action->'slots', '[]')) AS chosen,
  CASE WHEN EXISTS (SELECT 1 FROM mesh.traces t WHERE t.id = s.trace_id AND t.tenant_id = s.tenant_id AND t.state ? 'open')
    THEN {branches.NODE.format("s")} END AS branch,
  (SELECT max(m.iteration) FROM mesh.steps m WHERE m.trace_id = s.trace_id AND m.tenant_id = s.tenant_id) AS iterations
 FROM mesh.steps s LEFT JOIN mesh.steps b ON b.id = s.after_step_id AND b.tenant_id = s.tenant_id
 WHERE s.trace_id = %(trace)s AND s.tenant_id = %(tenant)s AND s.ordinal = %(ordinal)s AND s.kind <> 'group'
   AND s.status <> 'superseded'
"""

REOPEN = """
UPDATE mesh.traces SET status = 'running', epoch = epoch + 1, worker_id = NULL, child = NULL, claim_id = NULL, result = NULL,
  error = NULL, ended_at = NULL, waits_for = NULL, wake_at = NULL, parent_owed = false, seq = seq + 1, steps = steps + 1,
  state = coalesce(%(state)s::jsonb, '{}')
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('running', 'waiting', 'done', 'failed') AND plan_hash IS NOT NULL
RETURNING id, context_id, seq, steps
"""

STOP = """
UPDATE mesh.traces SET status = 'running', epoch = epoch + 1, worker_id = NULL, child = NULL, claim_id = NULL,
  waits_for = NULL, wake_at = NULL, paused_at = NULL, seq = seq + 1, steps = steps + 1
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('running', 'waiting')
RETURNING seq, steps, (SELECT max(m.iteration) FROM mesh.steps m WHERE m.trace_id = %(trace)s AND m.tenant_id = %(tenant)s)
  AS iterations
"""

SUPERSEDE = """
UPDATE mesh.steps SET status = 'superseded'
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND ordinal >= %(ordinal)s AND status <> 'superseded' RETURNING id
"""

START = """
INSERT INTO mesh.steps (id, tenant_id, trace_id, ordinal, node, iteration, kind, status, queue, agent, priority, action,
  rung_at, state, mem_seq)
SELECT %(step)s, t.tenant_id, t.id, %(place)s, 'start', %(iteration)s, 'start', 'ready', t.queue, t.agent, t.priority,
  %(action)s::jsonb, mesh.mesh_now(), nullif(t.state, '{}'),
  coalesce((SELECT c.mem_seq FROM mesh.contexts c WHERE c.tenant_id = t.tenant_id AND c.id = t.context_id), 0)
 FROM mesh.traces t WHERE t.id = %(trace)s AND t.tenant_id = %(tenant)s
RETURNING id, epoch, queue, agent, priority
"""

# Of every key that this trace wrote since: who wrote it last, and what it was before.
WRITTEN = """
SELECT DISTINCT ON (m.type, m.key) m.type, m.key, m.trace_id = %(trace)s AS ours, b.value, b.id IS NULL OR b.deleted AS gone,
  coalesce(b.trusted, false) AS trusted, extract(epoch FROM b.forget_at - mesh.mesh_asof())::float8 AS keep_s
  FROM mesh.memory m LEFT JOIN LATERAL (SELECT o.id, o.value, o.deleted, o.forget_at, o.trusted FROM mesh.memory o
    WHERE o.tenant_id = m.tenant_id AND o.context_id = m.context_id AND o.type = m.type AND o.scope = m.scope AND o.key = m.key
      AND CASE o.type WHEN 'long_term' THEN o.mem_seq <= %(mem_seq)s ELSE NOT o.step_id = ANY(%(after)s) END
    ORDER BY o.version DESC LIMIT 1) b ON true
 WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND EXISTS (SELECT 1 FROM mesh.memory w
   WHERE w.tenant_id = m.tenant_id AND w.context_id = m.context_id AND w.type = m.type AND w.scope = m.scope AND w.key = m.key
     AND w.trace_id = %(trace)s AND (w.type = 'long_term' AND w.mem_seq > %(mem_seq)s OR w.step_id = ANY(%(after)s)))
 ORDER BY m.type, m.key, m.version DESC
"""

EVENT = """
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, body)
VALUES (%(trace)s, %(seq)s, %(tenant)s, %(name)s, %(step)s, %(body)s::jsonb)
"""


@dataclass(frozen=True, slots=True)
class Rewound:
    """Where a trace began anew: the ring, the memory keys that went back, and those that somebody else had written."""

    node: str
    restored: tuple[str, ...]
    parked: tuple[str, ...]
    rings: tuple[Ring, ...]


def rewind(db: Database, *, tenant: str, trace_id: UUID, ordinal: int, by: str, reason: str = "") -> Rewound:
    """The trace begins anew at its `ordinal`-th step; where branches run beside one another, that step's node and all that
    needed it do. Raises UnknownTrace or NotRewindable."""
    at: dict[str, Any] = {"trace": trace_id, "tenant": tenant, "ordinal": ordinal}
    step = step_at(db, at)
    said = named(by) | ({"reason": reason} if reason else {})
    if step["branch"]:
        return _rewind_branch(db, at, step, said)
    with db.begin() as tx:
        row = tx.one(REOPEN, at | {"state": jsonb(step["state"])})
        if row is None:
            raise NotRewindable("a cancelled trace, and one that has not begun, cannot go back", value=str(trace_id))
        close(tx, at)
        after = [one["id"] for one in tx.all(SUPERSEDE, at)]
        gone = {"context": row["context_id"], "mem_seq": step["mem_seq"] or 0, "after": after}
        restored, parked = _restore(tx, at, row["context_id"], tx.all(WRITTEN, at | gone))
        ring = begin_at(tx, at, step, place=row["steps"], undo=compensation.since(tx, at, ordinal))
        body = said | {"to": step["node"], "step": ordinal, "restored": restored, "parked": parked}
        tx.count(EVENT, at | {"seq": row["seq"], "name": "EXEC_ROLLBACK", "step": ring.id, "body": jsonb(body)})
        return Rewound(step["node"], tuple(restored), tuple(parked), (ring,))
    raise NotRewindable("this trace could not go back", value=str(trace_id))


def _rewind_branch(db: Database, at: dict[str, Any], step: Row, said: dict[str, Json]) -> Rewound:
    node: str = step["branch"]
    with db.begin() as tx:
        back = Back(tx, at, node)
        back.supersede()
        row = tx.one(REOPEN, at | {"state": jsonb(back.state)})
        if row is None:
            raise psycopg.Rollback
        restored, parked = _restore(tx, at, row["context_id"], branches.written(tx, at, row["context_id"], back.steps))
        anew = sorted(back.nodes)
        undo = compensation.of_nodes(tx, at, anew)
        ring = begin_at(tx, at, step | {"kind": "branch", "node": node}, place=row["steps"], undo=undo)
        back.begin_again()
        body = said | {"to": node, "step": step["ordinal"], "restored": restored, "parked": parked, "anew": anew}
        tx.count(EVENT, at | {"seq": row["seq"], "name": "EXEC_ROLLBACK", "step": ring.id, "body": jsonb(body)})
        return Rewound(node, tuple(restored), tuple(parked), (ring, *back.rings))
    raise NotRewindable("this trace could not go back", value=str(at["trace"]))


def undo(db: Database, *, tenant: str, trace_id: UUID, by: str, reason: str = "") -> Rewound:
    """Nothing of the trace goes on: what its tools did is undone, newest first, and then it is cancelled.

    Raises NotRewindable for a trace that has ended or not begun.
    """
    at: dict[str, Any] = {"trace": trace_id, "tenant": tenant, "ordinal": 0}
    with db.begin() as tx:
        row = tx.one(STOP, at)
        if row is None:
            raise NotRewindable(
                "this trace does not run", value=str(trace_id), expected="one that has begun and not ended"
            )
        close(tx, at)
        action: dict[str, Json] = {"to": "compensate", "end": "cancelled"}
        start = tx.one(START, at | {
            "step": new_id(), "place": row["steps"], "iteration": row["iterations"] + 1, "action": jsonb(action),
        })  # fmt: skip
        if start is None:
            raise psycopg.Rollback
        ring = step_ring({f"step_{name}": value for name, value in start.items()}, trace_id)
        body = named(by) | {"undo": True} | ({"reason": reason} if reason else {})
        tx.count(EVENT, at | {"seq": row["seq"], "name": "EXEC_ROLLBACK", "step": ring.id, "body": jsonb(body)})
        return Rewound("compensate", (), (), (ring,))
    raise NotRewindable("this trace could not be stopped", value=str(trace_id))


def step_at(db: Database, at: dict[str, Any]) -> Row:
    """The step that a trace is to begin anew at, and what it begins with. Raises NotRewindable."""
    rows = db.once(STEP, at)
    if not rows:
        raise NotRewindable("this trace has no such step", value=str(at["ordinal"]),
                            next=f"agentmesh trace show {at['trace']}")  # fmt: skip
    step = rows[0]
    if step["kind"] == "tools" and step["before_kind"] == "reason" and step["chosen"]:
        raise NotRewindable("this step runs what the reasoner before it chose", value=str(step["ordinal"]),
                            expected=f"step {step['before_ordinal']}, which decides again")  # fmt: skip
    return step


def begin_at(tx: Tx, at: dict[str, Any], step: Row, *, place: int, undo: Sequence[Row] = ()) -> Ring:
    """The step that begins anew, `after` the one whose result it goes on with; the calls to `undo` are undone first."""
    said = step["action"] or {}
    action = branches.towards(said.get("then") or said.get("to") if step["kind"] == "start" else step["node"], undo)
    if step["after"]:
        action["after"] = step["after"]
    row = tx.one(
        START, at | {"step": new_id(), "place": place, "iteration": step["iterations"] + 1, "action": jsonb(action)}
    )
    if row is None:
        raise NotRewindable("the trace is not there any more", value=str(at["trace"]))
    return step_ring({f"step_{name}": value for name, value in row.items()}, at["trace"])


def _restore(tx: Tx, at: dict[str, Any], context: str, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Write what was before, where it is ours to take back; the keys that went back, and those that somebody else wrote."""
    back = [
        MemoryWrite(
            one["type"],
            one["key"],
            None if one["gone"] else one["value"],
            "rewind",
            trusted=one["trusted"],
            deleted=bool(one["gone"]),
            keep_s=one["keep_s"],
        )
        for one in rows
        if one["ours"]
    ]
    if back:
        memory.write(tx, at["tenant"], context, at["trace"], back)
    return [f"{one.type}:{one.key}" for one in back], [f"{one['type']}:{one['key']}" for one in rows if not one["ours"]]
