"""Going back in a plan whose branches run beside one another: one node begins anew, and with it all that needed it.

Their steps are superseded; every other branch goes on where it stands, or begins again where the end of the trace had
closed it. What the tools of those steps did is undone first, and memory goes back for what they wrote, but for keys that
somebody has written since. Lock order: trace → calls → steps → context.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from agentmesh.errors import NotRewindable
from agentmesh.infrastructure.database import Row, Tx, jsonb
from agentmesh.records import Json, Ring, new_id
from agentmesh.state import compensation, rescue
from agentmesh.state.calls import step_ring
from agentmesh.state.closing import close

TRACE = """
SELECT t.id, t.tenant_id, t.worker_id, t.epoch, t.state, p.body AS plan FROM mesh.traces t
  JOIN mesh.plans p ON p.tenant_id = t.tenant_id AND p.hash = t.plan_hash
 WHERE t.id = %(trace)s AND t.tenant_id = %(tenant)s AND t.status IN ('running', 'waiting', 'done', 'failed')
 FOR NO KEY UPDATE OF t
"""

NODE = """CASE WHEN {0}.kind = 'start' THEN coalesce({0}.action->>'then', {0}.action->>'to')
  ELSE coalesce({0}.action->'undo'->>'then', {0}.node) END"""
"""The node that a step stands for: what undoes a branch's work stands for the node that begins anew after it."""

STEPS = f"""
SELECT s.id, coalesce(s.group_of, s.id) AS whole, s.kind, s.status, {NODE.format("s")} AS node
  FROM mesh.steps s WHERE s.trace_id = %(trace)s AND s.tenant_id = %(tenant)s AND s.status <> 'superseded'
"""

SUPERSEDE = """
UPDATE mesh.steps SET status = 'superseded' WHERE id = ANY(%(steps)s) AND trace_id = %(trace)s AND tenant_id = %(tenant)s
"""

# Of every key that these steps wrote: whether one of them wrote it last, and what it was before them.
WRITTEN = """
SELECT DISTINCT ON (m.type, m.key) m.type, m.key, coalesce(m.step_id = ANY(%(after)s), false) AS ours, b.value,
  b.id IS NULL OR b.deleted AS gone, coalesce(b.trusted, false) AS trusted,
  extract(epoch FROM b.forget_at - mesh.mesh_asof())::float8 AS keep_s
  FROM mesh.memory m LEFT JOIN LATERAL (SELECT o.id, o.value, o.deleted, o.forget_at, o.trusted FROM mesh.memory o
    WHERE o.tenant_id = m.tenant_id AND o.context_id = m.context_id AND o.type = m.type AND o.scope = m.scope AND o.key = m.key
      AND NOT coalesce(o.step_id = ANY(%(after)s), false) ORDER BY o.version DESC LIMIT 1) b ON true
 WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND EXISTS (SELECT 1 FROM mesh.memory w
   WHERE w.tenant_id = m.tenant_id AND w.context_id = m.context_id AND w.type = m.type AND w.scope = m.scope AND w.key = m.key
     AND w.trace_id = %(trace)s AND w.step_id = ANY(%(after)s))
 ORDER BY m.type, m.key, m.version DESC
"""

# Only plans with branches keep which of their nodes are open.
CLOSED = f"""
SELECT o.node, p.body AS plan FROM mesh.traces t
  JOIN mesh.plans p ON p.tenant_id = t.tenant_id AND p.hash = t.plan_hash, jsonb_array_elements_text(t.state->'open') AS o(node)
 WHERE t.id = %(trace)s AND t.tenant_id = %(tenant)s
   AND o.node <> (SELECT {NODE.format("s")} FROM mesh.steps s WHERE s.id = %(step)s AND s.tenant_id = %(tenant)s)
"""

BEGIN_AGAIN = """
WITH t AS (UPDATE mesh.traces SET steps = steps + 1 WHERE id = %(trace)s AND tenant_id = %(tenant)s
  RETURNING id, tenant_id, steps, queue, agent, priority)
INSERT INTO mesh.steps (id, tenant_id, trace_id, ordinal, node, iteration, kind, status, queue, agent, priority, action, rung_at)
SELECT %(id)s, t.tenant_id, t.id, t.steps, 'start', 1 + (SELECT max(m.iteration) FROM mesh.steps m WHERE m.trace_id = t.id
   AND m.tenant_id = t.tenant_id), 'start', 'ready', t.queue, t.agent, t.priority, %(action)s::jsonb, mesh.mesh_now() FROM t
RETURNING id, epoch, queue, agent, priority
"""

LIVE = ("ready", "running", "waiting", "joined")


class Back:
    """What going back to one node means for a trace, whose row this transaction holds from now on.

    `nodes` begin anew or are needed to end first, `steps` are superseded, `state` is what the trace goes on with.
    """

    def __init__(self, tx: Tx, at: Mapping[str, Any], node: str) -> None:
        self._tx, self._at = tx, dict(at)
        trace = tx.one(TRACE, at)
        if trace is None:
            raise NotRewindable("a cancelled trace, and one that has not begun, cannot go back", value=str(at["trace"]))
        self._plan = trace["plan"]
        self.nodes = dependants(self._plan, node)
        self.rings: list[Ring] = []
        if trace["worker_id"] is not None:  # whoever holds it may be at another branch, which goes on
            self.rings += rescue.let_go(tx, trace, "released")
        rows = tx.all(STEPS, at)
        wholes = {row["id"] for row in rows if row["node"] in self.nodes and row["kind"] != "group"}
        self.steps = [row["id"] for row in rows if row["whole"] in wholes]
        self._others = [row["id"] for row in rows if row["whole"] not in wholes]
        if any(row["node"] == "compensate" for row in rows):
            raise NotRewindable("what all branches have done is undone", value=node, expected="step 1")
        live = {row["node"] for row in rows if row["status"] in LIVE and row["id"] in set(self._others)}
        self.state, beside = before(trace["state"], self.nodes, node)
        self._closed = [one for one in beside if one not in live]

    def supersede(self) -> None:
        """Nothing of these steps is open any more, and they count no longer."""
        close(self._tx, self._at, besides=self._others)
        self._tx.count(SUPERSEDE, self._at | {"steps": self.steps})

    def begin_again(self) -> None:
        """Other branches that the end of the trace had closed begin again."""
        self.rings += begin(self._tx, self._at, self._plan, self._closed)


def dependants(plan: Mapping[str, Any], node: str) -> Collection[str]:
    """The node, and every one that needs it, or needs one that does."""
    found = {node}
    while more := {
        one["id"] for one in plan["nodes"] if one["id"] not in found and found & set(one.get("needs") or ())
    }:
        found |= more
    return found


def before(state: Mapping[str, Any], nodes: Collection[str], node: str) -> tuple[dict[str, Any], list[str]]:
    """The state of a trace in which none of these nodes has begun but `node`, and which others are open in it."""
    beside = [one for one in state.get("open") or () if one not in nodes]
    marks = {name: mark for name, mark in (state.get("marks") or {}).items() if name not in nodes}
    return {**state, "open": [*beside, node], "marks": marks}, beside


def begin_closed(tx: Tx, at: Mapping[str, Any]) -> list[Ring]:
    """Branches that the failure of the trace, at the step `at` names, had closed begin again; the rings that are owed."""
    rows = tx.all(CLOSED, at)
    return begin(tx, at, rows[0]["plan"], [row["node"] for row in rows]) if rows else []


def begin(tx: Tx, at: Mapping[str, Any], plan: Mapping[str, Any], nodes: Sequence[str]) -> list[Ring]:
    """Each of these nodes begins, with a step of its own, once what it did before is undone; the rings that are owed."""
    rings = []
    for node in nodes:
        undo = compensation.of_nodes(tx, at, sorted(dependants(plan, node)))
        if row := tx.one(BEGIN_AGAIN, {**at, "id": new_id(), "action": jsonb(towards(node, undo))}):
            rings.append(step_ring({f"step_{name}": value for name, value in row.items()}, at["trace"]))
    return rings


def towards(node: str | None, undo: Sequence[Row]) -> dict[str, Json]:
    """What a start step says that leads to this node (None: the first one), once these calls are undone."""
    if undo:
        return {"to": "compensate", "then": node or "start", "calls": [str(one["id"]) for one in undo]}
    return {"to": node} if node else {}


def written(tx: Tx, at: Mapping[str, Any], context: str, steps: Sequence[UUID]) -> list[Row]:
    """What these steps wrote, as `rewind` reads it."""
    return tx.all(WRITTEN, {**at, "context": context, "after": steps})
