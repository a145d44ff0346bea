"""Moving a running trace to another plan, on purpose. Lock order: trace → steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from agentmesh.errors import DoesNotFit, UnknownTrace
from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Json, named

# Nobody holds it, so that no decision of the old plan is on its way.
MOVE = """
UPDATE mesh.traces SET plan_hash = %(plan)s, seq = seq + 1
 WHERE id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('running', 'waiting') AND worker_id IS NULL
   AND plan_hash = %(was)s RETURNING seq
"""

OPEN = """
SELECT id, node, kind FROM mesh.steps WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s
  AND status IN ('ready', 'running', 'waiting', 'joined') AND kind NOT IN ('group', 'start') ORDER BY ordinal
"""

RENAME = "UPDATE mesh.steps SET node = %(node)s WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s"

EVENT = """
INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
VALUES (%(trace)s, %(seq)s, %(tenant)s, 'EXEC_START', %(body)s::jsonb)
"""


@dataclass(frozen=True, slots=True)
class Move:
    """A trace from one plan to another, and what each of its open nodes is called there."""

    trace_id: UUID
    was: str
    to: str
    nodes: Mapping[str, str]


def open_steps(db: Database, *, tenant: str, trace_id: UUID) -> tuple[str, list[Row]]:
    """The hash of the plan that the trace follows, and its open steps. Raises UnknownTrace, or DoesNotFit."""
    at = {"trace": trace_id, "tenant": tenant}
    rows = db.once("SELECT plan_hash, status FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s", at)
    if not rows:
        raise UnknownTrace("no trace has this id", value=str(trace_id))
    if rows[0]["status"] not in {"running", "waiting"}:
        raise DoesNotFit("only a trace that runs or waits moves to another plan", value=rows[0]["status"])
    return rows[0]["plan_hash"], db.once(OPEN, at)


def fit(steps: Sequence[Row], kinds: Mapping[str, Collection[str]], renamed: Mapping[str, str]) -> dict[str, str]:
    """What each open node is called in the other plan, whose nodes make steps of these `kinds`. Raises DoesNotFit."""
    nodes: dict[str, str] = {}
    for step in steps:
        node: str = renamed.get(step["node"]) or step["node"]
        if step["kind"] not in kinds.get(node, ()):
            raise DoesNotFit(
                "an open step has no place in the other plan", value=f"{step['node']} ({step['kind']})",
                expected=f"a node of its kind among {', '.join(sorted(kinds))}; name it with --map old=new",
            )  # fmt: skip
        nodes[step["node"]] = node
    return nodes


def migrate(db: Database, move: Move, *, tenant: str, kinds: Mapping[str, Collection[str]], by: str) -> None:
    """The trace follows the other plan from now on; `kinds` says which kinds of steps each node of that one makes.

    Raises DoesNotFit, and then nothing has changed.
    """
    at: dict[str, Any] = {"trace": move.trace_id, "tenant": tenant}
    with db.begin() as tx:
        row = tx.one(MOVE, at | {"plan": move.to, "was": move.was})
        if row is None:
            raise DoesNotFit(
                "the trace is being worked, or has moved on", value=str(move.trace_id), expected="one that waits"
            )
        steps = tx.all(OPEN, at)
        nodes = fit(steps, kinds, move.nodes)
        for step in steps:
            tx.count(RENAME, at | {"step": step["id"], "node": nodes[step["node"]]})
        body: dict[str, Json] = {"plan": move.to, "was": move.was, **named(by), "nodes": dict(move.nodes)}
        tx.count(EVENT, at | {"seq": row["seq"], "body": jsonb(body)})
