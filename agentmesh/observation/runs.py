"""What many traces came to: how far they are, how long they took, and a ledger of what was lost or doubled.

A run is named by the ids of its traces; what they delegated is counted apart. Everything is counted in the database,
from rows that the engine wrote, never from what a producer remembers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from agentmesh.infrastructure.database import Database, Row
from agentmesh.observation.timeline import ENDED

# A run's traces are newer than its first one: the index on (tenant_id, id) finds them and their children.
_RUN = "t.tenant_id = %(tenant)s AND t.id >= %(first)s AND t.root_id = ANY(%(ids)s)"

STATES = f"""
SELECT t.parent_id IS NOT NULL AS child, t.status, count(*) AS n FROM mesh.traces t WHERE {_RUN} GROUP BY 1, 2
"""  # noqa: S608 - our own condition

DURATIONS = f"""
SELECT extract(epoch FROM t.ended_at - t.created_at)::float8 AS seconds, t.created_at, t.ended_at FROM mesh.traces t
 WHERE {_RUN} AND t.parent_id IS NULL AND t.ended_at IS NOT NULL
"""  # noqa: S608 - our own condition

SURVIVED = f"""
SELECT count(*) AS n FROM mesh.calls c JOIN mesh.traces t ON t.id = c.trace_id AND t.tenant_id = c.tenant_id
 WHERE {_RUN} AND c.status = 'failed' AND c.slot_mode = 'first' AND EXISTS (SELECT 1 FROM mesh.calls d
   WHERE d.step_id = c.step_id AND d.tenant_id = c.tenant_id AND d.slot = c.slot AND d.status = 'done')
"""  # noqa: S608 - our own condition

LEDGER = f"""
WITH run AS (SELECT t.id, t.tenant_id, t.parent_id, t.status FROM mesh.traces t WHERE {_RUN}),
won AS (SELECT a.call_id, count(*) AS n FROM mesh.attempts a JOIN run r ON r.id = a.trace_id
  WHERE a.tenant_id = %(tenant)s AND a.kind = 'tool' AND a.outcome = 'won' GROUP BY a.call_id),
ends AS (SELECT e.trace_id, count(*) AS n FROM mesh.events e JOIN run r ON r.id = e.trace_id
  WHERE e.tenant_id = %(tenant)s AND e.name IN ('EXEC_DONE', 'EXEC_FAIL', 'EXEC_CANCEL') GROUP BY e.trace_id)
SELECT
 (SELECT count(*) FROM mesh.envelopes v WHERE v.tenant_id = %(tenant)s AND v.trace_id = ANY(%(ids)s)) AS accepted,
 (SELECT count(*) FROM run WHERE parent_id IS NULL AND status = 'done') AS done,
 (SELECT count(*) FROM run WHERE parent_id IS NULL AND status IN ('failed', 'cancelled')) AS failed,
 (SELECT count(*) FROM run WHERE parent_id IS NOT NULL) AS children,
 (SELECT count(*) FROM run WHERE parent_id IS NOT NULL AND status = 'done') AS children_done,
 (SELECT count(*) FROM run WHERE status NOT IN ('done', 'failed', 'cancelled')) AS open,
 (SELECT count(*) FROM mesh.calls c JOIN run r ON r.id = c.trace_id
   WHERE c.tenant_id = %(tenant)s AND c.status = 'done') AS calls_done,
 (SELECT count(*) FROM won) AS calls_won,
 (SELECT count(*) FROM won WHERE n > 1) AS calls_twice,
 (SELECT count(*) FROM ends WHERE n > 1) AS ended_twice,
 (SELECT count(*) FROM run r WHERE NOT EXISTS (SELECT 1 FROM ends e WHERE e.trace_id = r.id)) AS without_end
"""  # noqa: S608 - our own condition

RESCUED = f"""
SELECT a.kind, coalesce(c.tool, t.agent) AS name, a.outcome, count(*) AS n
 FROM mesh.attempts a JOIN mesh.traces t ON t.id = a.trace_id AND t.tenant_id = a.tenant_id
 LEFT JOIN mesh.calls c ON c.id = a.call_id AND c.tenant_id = a.tenant_id
 WHERE {_RUN} AND a.outcome IN ('lost', 'released', 'stale') GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""  # noqa: S608 - our own condition


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `ended` counts its own traces, `open` also what they delegated."""

    done: int
    failed: int
    open: int

    @property
    def ended(self) -> int:
        return self.done + self.failed


@dataclass(frozen=True, slots=True)
class Ledger:
    """A run's books. `lost`: accepted and without an end. `twice`: a result or an end that was recorded twice."""

    row: Row

    @property
    def accepted(self) -> int:
        return int(self.row["accepted"])

    @property
    def done(self) -> int:
        return int(self.row["done"])

    @property
    def lost(self) -> int:
        missing = self.accepted - self.row["done"] - self.row["failed"]
        return int(max(missing, self.row["open"], self.row["without_end"]))

    @property
    def twice(self) -> int:
        return int(self.row["calls_twice"] + self.row["ended_twice"])


def progress(db: Database, tenant: str, ids: Sequence[UUID]) -> Progress:
    """How many of these traces have ended, and what is still open of them and their children."""
    done = failed = still = 0
    for row in db.once(STATES, _key(tenant, ids)):
        if row["status"] not in ENDED:
            still += row["n"]
        elif not row["child"] and row["status"] == "done":
            done += row["n"]
        elif not row["child"]:
            failed += row["n"]
    return Progress(done, failed, still)


def durations(db: Database, tenant: str, ids: Sequence[UUID]) -> tuple[list[float], float]:
    """Seconds from dispatch to end of each trace that ended, and from the first dispatch to the last end."""
    rows = db.once(DURATIONS, _key(tenant, ids))
    if not rows:
        return [], 0.0
    whole = max(row["ended_at"] for row in rows) - min(row["created_at"] for row in rows)
    return [row["seconds"] for row in rows], whole.total_seconds()


def survived(db: Database, tenant: str, ids: Sequence[UUID]) -> int:
    """Tool calls that failed and whose place another one took with success."""
    return int(db.once(SURVIVED, _key(tenant, ids))[0]["n"])


def ledger(db: Database, tenant: str, ids: Sequence[UUID]) -> Ledger:
    """The books of these traces and their children."""
    return Ledger(db.once(LEDGER, _key(tenant, ids))[0])


def rescued(db: Database, tenant: str, ids: Sequence[UUID]) -> list[Row]:
    """Attempts whose worker was lost, drained or too late: kind, name (tool or agent), outcome, n."""
    return db.once(RESCUED, _key(tenant, ids))


def _key(tenant: str, ids: Sequence[UUID]) -> dict[str, object]:
    return {"tenant": tenant, "ids": list(ids), "first": min(ids)}
