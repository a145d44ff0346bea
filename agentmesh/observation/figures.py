"""What figures are made of: calls and steps that ended, and what workers tell of themselves. Of all tenants together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from agentmesh.infrastructure.database import Database, Row

# How long a call waited is known of the first start of one that nothing stood before.
CALLS = """
SELECT c.id, c.n, c.tool, c.queue, CASE WHEN c.status = 'done' THEN 'done' WHEN c.error->>'code' = 'E_TIMEOUT' THEN 'timeout'
   ELSE 'failed' END AS outcome, extract(epoch FROM a.ended_at - a.started_at)::float8 AS seconds,
  CASE WHEN NOT c.inline AND c.idx = 0 AND c.n = 1 THEN extract(epoch FROM a.started_at - c.created_at)::float8 END AS waited
 FROM mesh.calls c LEFT JOIN mesh.attempts a ON a.call_id = c.id AND a.n = c.n AND a.tenant_id = c.tenant_id
 WHERE c.id = ANY(%(ids)s) AND c.tenant_id = ANY(%(tenants)s) AND c.kind = 'tool' AND c.status IN ('done', 'failed')
"""

# From the end of its last call to somebody's taking the joined step.
STEPS = """
SELECT s.kind, extract(epoch FROM s.ended_at - coalesce(s.started_at, s.created_at))::float8 AS seconds,
  (SELECT extract(epoch FROM (SELECT min(a.started_at) FROM mesh.attempts a WHERE a.step_id = s.id AND a.call_id IS NULL
      AND a.tenant_id = s.tenant_id AND a.kind = 'callback') - max(c.ended_at))::float8 FROM mesh.calls c
    WHERE c.step_id = s.id AND c.tenant_id = s.tenant_id AND NOT c.inline AND c.status IN ('done', 'failed')) AS joined
 FROM mesh.steps s WHERE s.id = ANY(%(ids)s) AND s.tenant_id = ANY(%(tenants)s) AND s.ended_at IS NOT NULL
"""

WORKERS = """
SELECT id, counts FROM mesh.workers WHERE beat_at > mesh.mesh_asof() - interval '1 hour'
"""


def calls(db: Database, events: Sequence[Row]) -> list[Row]:
    """The tool calls that ended for good with these events, each once: tool, queue, outcome, seconds, waited (or None)."""
    last = {one["call_id"]: (one["body"] or {}).get("attempts") for one in events}
    rows = db.read(CALLS, _given(events, list(last))) if last else []
    return [row for row in rows if last[row["id"]] == row["n"]]


def steps(db: Database, events: Sequence[Row]) -> list[Row]:
    """The steps that these events ended: kind, seconds, and how long the step had joined before it was taken (or None)."""
    return db.read(STEPS, _given(events, [one["step_id"] for one in events])) if events else []


def counted(db: Database) -> Mapping[UUID, Mapping[str, int]]:
    """What workers that were heard within an hour have counted since they came."""
    return {row["id"]: row["counts"] for row in db.read(WORKERS)}


def dead(db: Database) -> int:
    """How many workers lost their lease, ever."""
    return int(db.read("SELECT count(*) AS n FROM mesh.workers WHERE state = 'dead'")[0]["n"])


def _given(events: Sequence[Row], ids: Sequence[UUID]) -> Row:
    return {"ids": list(ids), "tenants": sorted({one["tenant_id"] for one in events})}
