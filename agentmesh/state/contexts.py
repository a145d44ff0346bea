"""Contexts, and what a session of one trace is made of.

A context is a session that many traces share; its row comes with the first claim. Reading only, but for `bind`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from agentmesh.errors import UnknownTrace
from agentmesh.infrastructure.database import Database, Row
from agentmesh.records import Json
from agentmesh.state import memory
from agentmesh.state.blobs import BlobStore

OUTPUTS = """
SELECT node, kind, iteration, status, output FROM (
  SELECT ordinal, node, kind, iteration, status, output FROM mesh.steps
   WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND status IN ('done', 'failed') AND kind = 'tools'
   AND ordinal < coalesce(%(before)s, ordinal + 1)
   ORDER BY ordinal DESC LIMIT %(limit)s) x ORDER BY ordinal
"""


VISITS = 20
NODES = 1000
_VISIT = "status IN ('done', 'failed') AND kind NOT IN ('start', 'group') AND output IS NOT NULL"
_BEFORE = "tenant_id = %(tenant)s AND ordinal < coalesce(%(before)s, ordinal + 1)"
_NEXT = """(SELECT min(s.node) FROM mesh.steps s WHERE s.trace_id = %(trace)s AND s.tenant_id = %(tenant)s
   AND s.after_step_id IS NOT NULL AND s.status <> 'superseded'{})"""

# From node to node by the index, over however often each was visited: of the newest visits to it the one that came to
# something. The first step is after none, and not in that index.
BY_NODE = f"""
WITH RECURSIVE n AS (SELECT {_NEXT.format("")} AS node
  UNION ALL SELECT {_NEXT.format(" AND s.node > n.node")} FROM n WHERE n.node IS NOT NULL),
 v AS (SELECT s.* FROM n CROSS JOIN LATERAL (SELECT * FROM mesh.steps s WHERE s.trace_id = %(trace)s AND s.node = n.node
    AND s.after_step_id IS NOT NULL AND s.status <> 'superseded' AND {_BEFORE} ORDER BY s.iteration DESC LIMIT {VISITS}) s
  UNION ALL SELECT * FROM mesh.steps WHERE trace_id = %(trace)s AND ordinal = 1 AND {_BEFORE})
SELECT DISTINCT ON (node) node, kind, action->>'strategy' AS strategy, action ? 'for_each' AS each, output FROM v
 WHERE {_VISIT} ORDER BY node, ordinal DESC LIMIT {NODES}
"""


# Turns are what was asked from outside, not what traces asked of one another. `ended` sorts as text.
TURNS = """
SELECT id AS trace, from_id AS "from", intent, payload, result, error->>'code' AS error,
  to_char(ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z" ') || id AS ended FROM mesh.traces
 WHERE tenant_id = %(tenant)s AND context_id = %(context)s AND depth = 0 AND status IN ('done', 'failed') AND id <> %(trace)s
   AND ended_at <= coalesce(%(before)s, ended_at) ORDER BY ended_at DESC, id DESC LIMIT %(limit)s
"""


class ContextBinder:
    """Which context a trace belongs to, and which traces a context has."""

    def __init__(self, db: Database, *, tenant_id: str) -> None:
        self._db, self._tenant = db, tenant_id

    def bind(self, context_id: str) -> None:
        """Afterwards the context exists."""
        self._db.once(
            "INSERT INTO mesh.contexts (tenant_id, id) VALUES (%(tenant)s, %(context)s) ON CONFLICT DO NOTHING",
            {"tenant": self._tenant, "context": context_id},
        )

    def context_of(self, trace_id: UUID) -> str:
        """The one context of the trace. Raises UnknownTrace."""
        rows = self._db.once(
            "SELECT context_id FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s",
            {"trace": trace_id, "tenant": self._tenant},
        )
        if not rows:
            raise UnknownTrace("there is no such trace", value=str(trace_id))
        return str(rows[0]["context_id"])

    def all(self) -> Iterator[str]:
        """Every context, in order."""
        after: str | None = ""
        while after is not None:
            rows = self._db.read(
                "SELECT id FROM mesh.contexts WHERE tenant_id = %(tenant)s AND id > %(after)s ORDER BY id LIMIT 500",
                {"tenant": self._tenant, "after": after},
            )
            yield from (row["id"] for row in rows)
            after = rows[-1]["id"] if rows else None

    def traces_of(self, context_id: str, *, limit: int = 50) -> list[Row]:
        """Newest first: id, agent, intent, status."""
        return self._db.once(
            "SELECT id, agent, intent, status, created_at FROM mesh.traces"
            " WHERE tenant_id = %(tenant)s AND context_id = %(context)s ORDER BY id DESC LIMIT %(limit)s",
            {"tenant": self._tenant, "context": context_id, "limit": limit},
        )


class SessionManager:
    """The facts a SessionBuilder makes a session of: memory, and the results of earlier steps.

    `before` is the number of a step: what it and later ones came to is left out.
    """

    def __init__(self, db: Database, blobs: BlobStore, *, steps: int = 50) -> None:
        self._db, self._blobs, self._steps = db, blobs, steps

    def memory(self, tenant_id: str, context_id: str, trace_id: UUID) -> dict[str, Json]:
        return memory.newest(self._db, tenant_id, context_id, trace_id)

    def step(self, tenant_id: str, trace_id: UUID, step_id: str) -> Json:
        """What a step came to."""
        rows = self._db.once(
            "SELECT node, kind, action->>'strategy' AS strategy, action ? 'for_each' AS each, output FROM mesh.steps"
            " WHERE id = %(step)s AND trace_id = %(trace)s AND tenant_id = %(tenant)s",
            {"step": step_id, "trace": trace_id, "tenant": tenant_id},
        )
        return next((_result(row, self._blobs.expand(tenant_id, row["output"]) or {}) for row in rows), None)

    def results(self, tenant_id: str, trace_id: UUID, *, before: int | None = None) -> dict[str, Json]:
        """Results by label over the newest tools steps; a later step's result replaces an earlier one's."""
        found: dict[str, Json] = {}
        at = {"tenant": tenant_id, "trace": trace_id, "before": before, "limit": self._steps}
        for row in self._db.once(OUTPUTS, at):
            output = self._blobs.expand(tenant_id, row["output"]) or {}
            found |= output.get("results") or {}
        return found

    def turns(
        self, tenant_id: str, context_id: str, trace_id: UUID, *, before: datetime | None = None, limit: int = 100
    ) -> list[Json]:
        """The newest traces of the context that ended, but this one, in the order of their ends: `trace`, `ended`, `from`,
        `intent`, `payload`, and `answer`, or `error` (its code) of one that failed."""
        at = {"tenant": tenant_id, "context": context_id, "trace": trace_id, "before": before, "limit": limit}
        found: list[Json] = []
        for row in reversed(self._db.once(TURNS, at)):
            said = {"answer": row.pop("result")} if row["error"] is None else {"error": row["error"]}
            turn = {key: row[key] for key in ("ended", "from", "intent", "payload")} | said
            found.append(
                {"trace": str(row["trace"])} | {key: self._blobs.expand(tenant_id, one) for key, one in turn.items()}
            )
        return found

    def steps(self, tenant_id: str, trace_id: UUID, *, before: int | None = None) -> dict[str, Json]:
        """What each node of the trace came to when it last came to something in its newest 20 visits, of at most 1,000 nodes."""
        rows = self._db.once(BY_NODE, {"tenant": tenant_id, "trace": trace_id, "before": before})
        return {row["node"]: _result(row, self._blobs.expand(tenant_id, row["output"]) or {}) for row in rows}


def _result(row: Row, output: dict[str, Json]) -> Json:
    if "settled" in output or "decided" in output:
        return output.get("decided", output.get("value"))
    match row["kind"]:
        case "reason":
            return output.get("answer")
        case "tools" | "delegate":
            results = output.get("results") or {}
            if row["each"]:
                return results.get(row["node"])
            if row["strategy"] in {"parallel", "mixed"}:
                return results
            return results.get(output.get("last")) if output.get("ok") else None
        case _:
            return output.get("value")
