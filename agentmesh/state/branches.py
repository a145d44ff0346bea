"""Going back in a plan whose branches run beside one another: one node begins anew, and with it all that needed it.

Their steps are superseded; every other branch goes on where it stands, or begins again where the end of the trace had
closed it. Memory goes back for what the superseded steps wrote, but for keys that somebody has written since. Lock order:
trace → calls → steps → context.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from agentmesh.errors import NotRewindable
from agentmesh.infrastructure.database import Row, Tx
from agentmesh.records import Ring, new_id
from agentmesh.state import rescue
from agentmesh.state.calls import step_ring
from agentmesh.state.closing import close
from agentmesh.state.retry import BEGIN_AGAIN, HEADS

TRACE = """
SELECT t.id, t.tenant_id, t.worker_id, t.epoch, t.state, p.body AS plan FROM mesh.traces t
  JOIN mesh.plans p ON p.tenant_id = t.tenant_id AND p.hash = t.plan_hash
 WHERE t.id = %(trace)s AND t.tenant_id = %(tenant)s AND t.status IN ('running', 'waiting', 'done', 'failed')
 FOR NO KEY UPDATE OF t
"""

STEPS = """
SELECT id, coalesce(group_of, id) AS whole, kind, status, CASE kind WHEN 'start' THEN action->>'to' ELSE node END AS node
  FROM mesh.steps WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status <> 'superseded'
"""

TO_UNDO = """
SELECT tool FROM mesh.calls WHERE step_id = ANY(%(steps)s) AND trace_id = %(trace)s AND tenant_id = %(tenant)s
  AND status = 'done' AND compensate IS NOT NULL LIMIT 1
"""

SUPERSEDE = """
UPDATE mesh.steps SET status = 'superseded' WHERE id = ANY(%(steps)s) AND trace_id = %(trace)s AND tenant_id = %(tenant)s
"""

# Of every key that these steps wrote: whether one of them wrote it last, and what it was before them.
WRITTEN = """
SELECT DISTINCT ON (m.type, m.key) m.type, m.key, coalesce(m.step_id = ANY(%(after)s), false) AS ours, b.value,
  b.id IS NULL OR b.deleted AS gone, extract(epoch FROM b.forget_at - mesh.mesh_asof())::float8 AS keep_s
  FROM mesh.memory m LEFT JOIN LATERAL (SELECT o.id, o.value, o.deleted, o.forget_at FROM mesh.memory o
    WHERE o.tenant_id = m.tenant_id AND o.context_id = m.context_id AND o.type = m.type AND o.scope = m.scope AND o.key = m.key
      AND NOT coalesce(o.step_id = ANY(%(after)s), false) ORDER BY o.version DESC LIMIT 1) b ON true
 WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND EXISTS (SELECT 1 FROM mesh.memory w
   WHERE w.tenant_id = m.tenant_id AND w.context_id = m.context_id AND w.type = m.type AND w.scope = m.scope AND w.key = m.key
     AND w.trace_id = %(trace)s AND w.step_id = ANY(%(after)s))
 ORDER BY m.type, m.key, m.version DESC
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
        self.nodes = dependants(trace["plan"], node)
        self.rings: list[Ring] = []
        if trace["worker_id"] is not None:  # whoever holds it may be at another branch, which goes on
            self.rings += rescue.let_go(tx, trace, "released")
        rows = tx.all(STEPS, at)
        wholes = {row["id"] for row in rows if row["node"] in self.nodes and row["kind"] != "group"}
        self.steps = [row["id"] for row in rows if row["whole"] in wholes]
        self._others = [row["id"] for row in rows if row["whole"] not in wholes]
        self._require_nothing_to_undo(rows)
        live = {row["node"] for row in rows if row["status"] in LIVE and row["id"] in set(self._others)}
        self.state, beside = before(trace["state"], self.nodes, node)
        self._closed = [one for one in beside if one not in live]

    def supersede(self) -> None:
        """Nothing of these steps is open any more, and they count no longer."""
        close(self._tx, self._at, besides=self._others)
        self._tx.count(SUPERSEDE, self._at | {"steps": self.steps})

    def begin_again(self) -> None:
        """Other branches that the end of the trace had closed begin again."""
        self.rings += begin(self._tx, self._at, self._closed)

    def _require_nothing_to_undo(self, rows: Sequence[Row]) -> None:
        done = self._tx.one(TO_UNDO, self._at | {"steps": self.steps})
        if done is not None or any(row["node"] == "compensate" for row in rows):
            raise NotRewindable("what branches have done is undone as a whole", value=done["tool"] if done else None,
                                expected="step 1")  # fmt: skip


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


def begin(tx: Tx, at: Mapping[str, Any], nodes: Sequence[str]) -> list[Ring]:
    """Each of these nodes begins, with a step of its own; the rings that are owed."""
    for node in nodes:
        tx.count(BEGIN_AGAIN, {**at, "id": new_id(), "node": node})
    heads = tx.all(HEADS, {**at, "nodes": list(nodes)}) if nodes else []
    return [step_ring({f"step_{name}": value for name, value in one.items()}, at["trace"]) for one in heads]


def written(tx: Tx, at: Mapping[str, Any], context: str, steps: Sequence[UUID]) -> list[Row]:
    """What these steps wrote, as `rewind` reads it."""
    return tx.all(WRITTEN, {**at, "context": context, "after": steps})
