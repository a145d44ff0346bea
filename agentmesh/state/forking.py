"""Forks: a trace of its own that begins at a step of another, with what that one had by then."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from agentmesh.errors import NotRewindable, UnknownTrace
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Json, Ring, named, new_id
from agentmesh.state import branches
from agentmesh.state.calls import step_ring
from agentmesh.state.changes import NewTrace
from agentmesh.state.dispatch import insert
from agentmesh.state.rewind import EVENT, begin_at, step_at

SOURCE = """
SELECT id, context_id, agent, intent, from_id, payload, policy, permissions, priority, plan_hash, agent_version, status, state
  FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s
"""

HOLD_SOURCE = "SELECT 1 FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s FOR KEY SHARE"

SOURCE_STEPS = f"""
SELECT s.id, s.ordinal, s.after_step_id, s.kind, s.status, {branches.NODE.format("s")} AS node FROM mesh.steps s
 WHERE s.trace_id = %(trace)s AND s.tenant_id = %(tenant)s AND s.kind <> 'group' AND s.status <> 'superseded' ORDER BY s.ordinal
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

CONTEXT = "INSERT INTO mesh.contexts (tenant_id, id) VALUES (%(tenant)s, %(context)s) ON CONFLICT DO NOTHING"


def source(db: Database, *, tenant: str, trace_id: UUID) -> Row:
    """What a fork of the trace begins with. Raises UnknownTrace."""
    rows = db.once(SOURCE, {"trace": trace_id, "tenant": tenant})
    if not rows:
        raise UnknownTrace("no trace has this id", value=str(trace_id))
    return rows[0]


@dataclass(frozen=True, slots=True)
class _Whence:
    """What a fork begins with: the step, which of the source's steps it has under which ids, and the state after those.

    `later` are the steps it has not got. `mem_seq` None: memory as it is, but for what `later` wrote. `beside`: nodes of
    `plan` that begin again with it.
    """

    step: Row
    kept: Mapping[UUID, UUID]
    pairs: list[Json]
    tools: list[UUID]
    place: int
    later: list[UUID]
    state: Json
    mem_seq: int | None
    beside: list[str] = field(default_factory=list)
    plan: Mapping[str, Any] = field(default_factory=dict)


def fork(db: Database, made: NewTrace, *, of: Row, ordinal: int, policy: Json, plan_hash: str, by: str) -> list[Ring]:
    """The accepted trace `made` begins at the `ordinal`-th step of another, whose earlier steps and memory it has; where
    branches run beside one another, whose other steps it has but those that needed that one. The rings that are owed.

    A commit whose answer was lost is settled by repeating it under the same id. Raises NotRewindable.
    """
    at: dict[str, Any] = {"trace": of["id"], "tenant": made.tenant_id, "ordinal": ordinal}
    whence = _whence(db, at, of, plan_hash)
    mine = {"trace": made.id, "tenant": made.tenant_id, "fork": made.id}

    def once() -> list[Ring]:
        with db.begin() as tx:
            insert(tx, [made])
            tx.count(CONTEXT, mine | {"context": made.context_id})
            tx.count(BEGIN_FORK, mine | {
                "plan": plan_hash, "version": of["agent_version"], "policy": jsonb(policy), "state": jsonb(whence.state),
                "place": whence.place, "seq": 2 + len(whence.tools),
            })  # fmt: skip
            tx.count(COPY_STEPS, mine | {"pairs": jsonb(whence.pairs)})
            tx.count(COPY_MEMORY, mine | {
                "context": made.context_id, "scope": str(made.id), "source_context": of["context_id"],
                "source_scope": str(of["id"]), "mem_seq": whence.mem_seq, "after": whence.later,
            })  # fmt: skip
            return _begun_at(
                tx, mine, whence, {"plan": plan_hash, "forked_from": str(of["id"]), "step": ordinal, **named(by)}
            )
        raise psycopg.OperationalError("the fork was not committed")

    try:
        return once()
    except (psycopg.OperationalError, psycopg.InterfaceError):
        with suppress(psycopg.errors.UniqueViolation):  # the first one had committed
            return once()
        return [_begun(db, mine)]


def _whence(db: Database, at: dict[str, Any], of: Row, plan_hash: str) -> _Whence:
    step, steps = step_at(db, at), db.once(SOURCE_STEPS, at)
    later = {one["id"] for one in steps if one["ordinal"] >= at["ordinal"]}
    state, mem_seq, beside, plan = step["state"], step["mem_seq"] or 0, list[str](), dict[str, Any]()
    if step["branch"]:
        plan = _plan(db, at["tenant"], plan_hash, step)
        nodes = branches.dependants(plan, step["branch"])
        state, beside = branches.before(of["state"], nodes, step["branch"])
        later = {one["id"] for one in steps if one["node"] in nodes}
        step |= {"kind": "branch", "node": step["branch"]}
        mem_seq = None  # what the others wrote since is kept
    mine = [one for one in steps if one["id"] not in later and one["status"] in {"done", "failed"}]
    kept = {one["id"]: new_id() for one in mine}
    pairs: list[Json] = [
        {"source": str(one["id"]), "id": str(kept[one["id"]]), "after": str(kept[one["after_step_id"]])
         if one["after_step_id"] in kept else None}
        for one in mine
    ]  # fmt: skip
    tools = [kept[one["id"]] for one in mine if one["kind"] == "tools" and one["status"] == "done"]
    place = 1 + max((one["ordinal"] for one in mine), default=0)
    return _Whence(step, kept, pairs, tools, place, list(later), state, mem_seq, beside, plan)


def _begun_at(tx: Tx, mine: dict[str, Any], whence: _Whence, said: dict[str, Json]) -> list[Ring]:
    """The first step of the fork, its history, and the branches beside it; the rings that are owed."""
    after = whence.step["after"] and whence.kept.get(UUID(whence.step["after"]))
    ring = begin_at(tx, mine, whence.step | {"after": after and str(after)}, place=whence.place)
    tx.count(EVENT, mine | {"seq": 2, "name": "EXEC_START", "step": ring.id, "body": jsonb(said)})
    for seq, one in enumerate(whence.tools, 3):
        copied = {"seq": seq, "name": "CALLBACK_RESULT", "step": one, "body": '{"ok": true, "copied": true}'}
        tx.count(EVENT, mine | copied)
    return [ring, *branches.begin(tx, mine, whence.plan, whence.beside)]


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
