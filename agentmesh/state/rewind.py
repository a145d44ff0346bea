"""Going back: a trace begins anew at an earlier step, in place or as a fork of it.

What came after stays readable as superseded steps. Memory goes back to what it was when the step was opened, but for
keys that somebody else has written since: those are left, and named. Lock order: trace → calls → steps → context.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from agentmesh.errors import NotRewindable, UnknownTrace
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Json, Ring, named, new_id
from agentmesh.state import branches, memory
from agentmesh.state.branches import Back
from agentmesh.state.calls import step_ring
from agentmesh.state.changes import MemoryWrite, NewTrace
from agentmesh.state.closing import close
from agentmesh.state.dispatch import insert

STEP = """
SELECT s.id, s.ordinal, s.node, s.kind, s.action, s.iteration, s.mem_seq, s.state, s.status, b.kind AS before_kind,
  CASE WHEN s.kind = 'start' THEN s.action->>'after' WHEN b.kind = 'start' THEN b.action->>'after'
    WHEN b.action ? 'undo' THEN b.action->'undo'->>'after' ELSE b.id::text END AS after,
  b.ordinal AS before_ordinal, jsonb_array_length(coalesce(b.action->'slots', '[]')) AS chosen,
  CASE WHEN EXISTS (SELECT 1 FROM mesh.traces t WHERE t.id = s.trace_id AND t.tenant_id = s.tenant_id AND t.state ? 'open')
    THEN CASE s.kind WHEN 'start' THEN s.action->>'to' ELSE s.node END END AS branch,
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

TO_UNDO = """
SELECT 1 FROM mesh.calls c JOIN mesh.steps s ON s.id = c.step_id AND s.tenant_id = c.tenant_id
 WHERE s.trace_id = %(trace)s AND c.tenant_id = %(tenant)s AND c.status = 'done' AND c.compensate IS NOT NULL
   AND s.ordinal >= %(ordinal)s LIMIT 1
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
  extract(epoch FROM b.forget_at - mesh.mesh_asof())::float8 AS keep_s
  FROM mesh.memory m LEFT JOIN LATERAL (SELECT o.id, o.value, o.deleted, o.forget_at FROM mesh.memory o
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

SOURCE = """
SELECT id, context_id, agent, intent, from_id, payload, policy, permissions, priority, plan_hash, agent_version, status, state
  FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s
"""

SOURCE_STEPS = """
SELECT id, ordinal, after_step_id, kind, status, CASE kind WHEN 'start' THEN action->>'to' ELSE node END AS node FROM mesh.steps
 WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND kind <> 'group' AND status <> 'superseded' ORDER BY ordinal
"""

COPY_STEPS = """
INSERT INTO mesh.steps (id, tenant_id, trace_id, after_step_id, ordinal, node, iteration, kind, phase, status, queue, agent,
  priority, action, output, error, state, mem_seq, started_at, ended_at)
SELECT x.id, s.tenant_id, %(fork)s, x.after, s.ordinal, s.node, s.iteration, s.kind, s.phase, s.status, s.queue, s.agent,
  s.priority, s.action, s.output, s.error, s.state, 0, s.started_at, s.ended_at
 FROM jsonb_to_recordset(%(pairs)s::jsonb) AS x(source uuid, id uuid, after uuid)
  JOIN mesh.steps s ON s.id = x.source AND s.tenant_id = %(tenant)s
"""

COPY_MEMORY = """
INSERT INTO mesh.memory (id, tenant_id, context_id, type, scope, key, version, value, deleted, trace_id, origin, trusted,
  forget_at, mem_seq)
SELECT gen_random_uuid(), m.tenant_id, %(context)s, m.type, CASE m.scope WHEN '' THEN '' ELSE %(scope)s END, m.key, 1, m.value,
  false, %(fork)s, 'fork', m.trusted, m.forget_at, 0
 FROM (SELECT DISTINCT ON (o.type, o.key) o.* FROM mesh.memory o
   WHERE o.tenant_id = %(tenant)s AND o.context_id = %(source_context)s
     AND (o.type = 'long_term' AND coalesce(o.mem_seq, 0) <= coalesce(%(mem_seq)s, o.mem_seq, 0) OR o.scope = %(source_scope)s)
     AND NOT coalesce(o.step_id = ANY(%(after)s), false)
   ORDER BY o.type, o.key, o.version DESC) m WHERE NOT m.deleted
"""

BEGIN_FORK = """
UPDATE mesh.traces SET status = 'running', plan_hash = %(plan)s, agent_version = %(version)s, policy = %(policy)s::jsonb,
  state = coalesce(%(state)s::jsonb, '{}'), steps = %(place)s, seq = %(seq)s, started_at = mesh.mesh_now(), rung_at = NULL
 WHERE id = %(fork)s AND tenant_id = %(tenant)s AND status = 'queued'
"""


BEGUN = """
WITH t AS (UPDATE mesh.traces SET commit_id = commit_id WHERE id = %(trace)s AND tenant_id = %(tenant)s RETURNING id)
SELECT s.id, s.epoch, s.queue, s.agent, s.priority FROM t JOIN mesh.steps s ON s.trace_id = t.id AND s.tenant_id = %(tenant)s
 WHERE s.kind = 'start' ORDER BY s.ordinal DESC LIMIT 1
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
    step = _step(db, at)
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
        undo = tx.one(TO_UNDO, at) is not None
        ring = _begin(tx, at, step, place=row["steps"], undo=undo)
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
        ring = _begin(tx, at, step | {"kind": "branch", "node": node}, place=row["steps"])
        back.begin_again()
        body = said | {"to": node, "step": step["ordinal"], "restored": restored, "parked": parked,
                       "anew": sorted(back.nodes)}  # fmt: skip
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


def source(db: Database, *, tenant: str, trace_id: UUID) -> Row:
    """What a fork of the trace begins with. Raises UnknownTrace."""
    rows = db.once(SOURCE, {"trace": trace_id, "tenant": tenant})
    if not rows:
        raise UnknownTrace("no trace has this id", value=str(trace_id))
    return rows[0]


def fork(db: Database, made: NewTrace, *, of: Row, ordinal: int, policy: Json, plan_hash: str, by: str) -> list[Ring]:
    """The accepted trace `made` begins at the `ordinal`-th step of another, whose earlier steps and memory it has; where
    branches run beside one another, whose other steps it has but those that needed that one. The rings that are owed.

    A commit whose answer was lost is settled by repeating it under the same id. Raises NotRewindable.
    """
    tenant = made.tenant_id
    at: dict[str, Any] = {"trace": of["id"], "tenant": tenant, "ordinal": ordinal}
    step = _step(db, at)
    steps = db.once(SOURCE_STEPS, at)
    later = {one["id"] for one in steps if one["ordinal"] >= ordinal}
    state, mem_seq, beside = step["state"], step["mem_seq"] or 0, list[str]()
    if step["branch"]:
        nodes = branches.dependants(_plan(db, tenant, plan_hash, step), step["branch"])
        state, beside = branches.before(of["state"], nodes, step["branch"])
        later = {one["id"] for one in steps if one["node"] in nodes}
        step |= {"kind": "branch", "node": step["branch"]}
        mem_seq = None  # what the others wrote since is kept
    kept = {one["id"]: new_id() for one in steps if one["id"] not in later and one["status"] in {"done", "failed"}}
    place = 1 + max((one["ordinal"] for one in steps if one["id"] in kept), default=0)
    pairs = [
        {"source": str(one["id"]), "id": str(kept[one["id"]]), "after": str(kept[one["after_step_id"]])
         if one["after_step_id"] in kept else None}
        for one in steps if one["id"] in kept
    ]  # fmt: skip
    tools = [
        kept[one["id"]] for one in steps if one["id"] in kept and one["kind"] == "tools" and one["status"] == "done"
    ]
    mine = {"trace": made.id, "tenant": tenant, "fork": made.id}

    def once() -> list[Ring]:
        with db.begin() as tx:
            insert(tx, [made])
            tx.count("INSERT INTO mesh.contexts (tenant_id, id) VALUES (%(tenant)s, %(context)s) ON CONFLICT DO NOTHING",
                     {"tenant": tenant, "context": made.context_id})  # fmt: skip
            tx.count(BEGIN_FORK, mine | {
                "plan": plan_hash, "version": of["agent_version"], "policy": jsonb(policy), "state": jsonb(state),
                "place": place, "seq": 2 + len(tools),
            })  # fmt: skip
            tx.count(COPY_STEPS, mine | {"pairs": jsonb(pairs)})
            tx.count(COPY_MEMORY, mine | {
                "context": made.context_id, "scope": str(made.id), "source_context": of["context_id"],
                "source_scope": str(of["id"]), "mem_seq": mem_seq, "after": list(later),
            })  # fmt: skip
            began: dict[str, Json] = {"plan": plan_hash, "forked_from": str(of["id"]), "step": ordinal, **named(by)}
            after = step["after"] and kept.get(UUID(step["after"]))
            ring = _begin(tx, mine, step | {"after": after and str(after)}, place=place)
            tx.count(EVENT, mine | {"seq": 2, "name": "EXEC_START", "step": ring.id, "body": jsonb(began)})
            for seq, one in enumerate(tools, 3):
                tx.count(
                    EVENT,
                    mine | {"seq": seq, "name": "CALLBACK_RESULT", "step": one, "body": '{"ok": true, "copied": true}'},
                )
            return [ring, *branches.begin(tx, mine, beside)]
        raise psycopg.OperationalError("the fork was not committed")

    try:
        return once()
    except (psycopg.OperationalError, psycopg.InterfaceError):
        with suppress(psycopg.errors.UniqueViolation):  # the first one had committed
            return once()
        return [_begun(db, mine)]


def _plan(db: Database, tenant: str, plan_hash: str, step: Row) -> dict[str, Any]:
    """The body of the plan that a fork of a trace with branches is to follow, which has to have the step's node."""
    rows = db.once(
        "SELECT body FROM mesh.plans WHERE tenant_id = %(tenant)s AND hash = %(hash)s",
        {"tenant": tenant, "hash": plan_hash},
    )
    body: dict[str, Any] = rows[0]["body"] if rows else {"nodes": []}
    if step["branch"] not in {one["id"] for one in body["nodes"]}:
        raise NotRewindable("the plan to follow has no such node", value=step["branch"])
    return body


def _begun(db: Database, at: dict[str, Any]) -> Ring:
    """The ring of a fork that stands already; its commit waits for whatever that of the fork waited for."""
    rows = db.once(BEGUN, at)
    if not rows:
        raise NotRewindable("the fork has begun and gone on already", value=str(at["trace"]))
    return step_ring({f"step_{name}": value for name, value in rows[0].items()}, at["trace"])


def _step(db: Database, at: dict[str, Any]) -> Row:
    rows = db.once(STEP, at)
    if not rows:
        raise NotRewindable("this trace has no such step", value=str(at["ordinal"]),
                            next=f"agentmesh trace show {at['trace']}")  # fmt: skip
    step = rows[0]
    if step["kind"] == "tools" and step["before_kind"] == "reason" and step["chosen"]:
        raise NotRewindable("this step runs what the reasoner before it chose", value=str(step["ordinal"]),
                            expected=f"step {step['before_ordinal']}, which decides again")  # fmt: skip
    return step


def _begin(tx: Tx, at: dict[str, Any], step: Row, *, place: int, undo: bool = False) -> Ring:
    """The step that begins anew, `after` the one whose result it goes on with; `undo`: what was done since is undone first."""
    action: dict[str, Json] = {"to": step["node"]}
    if step["kind"] == "start":
        said = step["action"] or {}
        action = {key: target for key, target in {"to": said.get("then") or said.get("to")}.items() if target}
    if undo:
        action = {"to": "compensate", "since": step["ordinal"], "then": action.get("to", "start")}
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
            deleted=bool(one["gone"]),
            keep_s=one["keep_s"],
        )
        for one in rows
        if one["ours"]
    ]
    if back:
        memory.write(tx, at["tenant"], context, at["trace"], back)
    return [f"{one.type}:{one.key}" for one in back], [f"{one['type']}:{one['key']}" for one in rows if not one["ours"]]
