"""The rows as an outbox: which of them want a doorbell, and what happened to the last one.

`rung_at` is an intention, written with the transition; a publish that the broker refused is no ring and resets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from agentmesh.infrastructure.database import Database, Row
from agentmesh.records import Ring

# Due: never rung since it became ready (or its time came), or rung long enough ago to look again.
AGAIN = """({0}.rung_at IS NULL OR {0}.rung_at < {0}.wake_at OR {0}.rung_at < mesh.mesh_asof()
  - make_interval(secs => least(%(cap_s)s::float8, %(again_s)s::float8 * 2 ^ least({0}.rings, 10))))
  AND ({0}.wake_at IS NULL OR {0}.wake_at <= mesh.mesh_asof())"""

DUE = f"""
(SELECT 'trace' AS kind, t.id, t.epoch, t.queue, 'agent.' || t.agent AS task, t.id AS trace_id, t.priority, t.rung_at,
   t.rung_at IS NULL OR t.rung_at < t.wake_at AS new
  FROM mesh.traces t WHERE t.status = 'queued' AND t.paused_at IS NULL AND {AGAIN.format("t")}
    AND NOT EXISTS (SELECT 1 FROM mesh.agents g WHERE g.tenant_id = t.tenant_id AND g.id = t.agent AND g.paused_at IS NOT NULL)
  ORDER BY t.rung_at NULLS FIRST LIMIT %(batch)s)
UNION ALL
(SELECT 'step', s.id, s.epoch, s.queue, 'agent.' || s.agent, s.trace_id, s.priority, s.rung_at,
   s.rung_at IS NULL OR s.rung_at < s.wake_at
  FROM mesh.steps s JOIN mesh.traces t ON t.id = s.trace_id AND t.tenant_id = s.tenant_id
  WHERE s.status IN ('ready', 'joined') AND t.status = 'running' AND t.worker_id IS NULL AND t.paused_at IS NULL
    AND {AGAIN.format("s")} ORDER BY s.rung_at NULLS FIRST LIMIT %(batch)s)
UNION ALL
(SELECT 'call', c.id, c.epoch, c.queue, c.task, c.trace_id, c.priority, c.rung_at,
   c.rung_at IS NULL OR c.rung_at < c.wake_at
  FROM mesh.calls c WHERE c.status = 'ready' AND {AGAIN.format("c")} ORDER BY c.rung_at NULLS FIRST LIMIT %(batch)s)
"""

READY = """
SELECT queue, sum(n)::int AS n FROM (
  SELECT queue, count(*) AS n FROM mesh.traces WHERE status = 'queued' AND rung_at IS NOT NULL AND queue = ANY(%(queues)s)
    GROUP BY queue
  UNION ALL SELECT queue, count(*) FROM mesh.steps WHERE status IN ('ready', 'joined') AND rung_at IS NOT NULL
    AND queue = ANY(%(queues)s) GROUP BY queue
  UNION ALL SELECT queue, count(*) FROM mesh.calls WHERE status = 'ready' AND rung_at IS NOT NULL
    AND queue = ANY(%(queues)s) GROUP BY queue) x GROUP BY queue
"""

# Only a row that was rung once tells: one that was rung again is claimed through its first message, too.
OVERTAKEN = """
SELECT queue, priority, max(rung_at) AS newest FROM (
  SELECT queue, priority, rung_at FROM mesh.traces WHERE worker_id IS NOT NULL AND rings = 0 AND queue = ANY(%(queues)s)
  UNION ALL SELECT queue, priority, rung_at FROM mesh.calls WHERE worker_id IS NOT NULL AND rings = 0
    AND queue = ANY(%(queues)s)) x
 GROUP BY queue, priority
"""

# A row that is locked is in somebody's hands, and wants no ring. Whose tenant's it is, our own ids return.
MARK = """
WITH x AS (SELECT t.id, t.tenant_id FROM {0} t JOIN unnest(%(ids)s::uuid[], %(epochs)s::int[]) r(id, epoch)
    ON t.id = r.id AND t.epoch = r.epoch WHERE t.status IN ('queued', 'ready', 'joined')
  ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED)
UPDATE {0} t SET {1} FROM x WHERE t.id = x.id AND t.tenant_id = x.tenant_id
"""

TABLES = {"trace": "mesh.traces", "step": "mesh.steps", "call": "mesh.calls"}


def due(db: Database, *, again_s: float, cap_s: float, batch: int) -> list[Row]:
    """Ready rows that may want a doorbell, oldest first; `new` ones have had none."""
    return db.once(DUE, {"again_s": again_s, "cap_s": cap_s, "batch": batch})


def ready(db: Database, queues: Sequence[str]) -> dict[str, int]:
    """How many rung rows of each queue nobody has claimed."""
    return {row["queue"]: row["n"] for row in db.once(READY, {"queues": list(queues)})}


def overtaken(db: Database, queues: Sequence[str]) -> dict[tuple[str, int], Row]:
    """The latest ring among the rows being worked, by queue and priority."""
    return {(row["queue"], row["priority"]): row for row in db.once(OVERTAKEN, {"queues": list(queues)})}


def mark(db: Database, rings: Iterable[Ring]) -> None:
    """Note a ring of these rows, if they are still what the ring says; `rings` counts those after the first."""
    again = "t.rung_at IS NOT NULL AND (t.wake_at IS NULL OR t.rung_at >= t.wake_at)"
    _each(db, rings, f"rung_at = mesh.mesh_now(), rings = t.rings + ({again})::int")


def reset(db: Database, rings: Iterable[Ring]) -> None:
    """Note that the broker refused these: they were not rung."""
    _each(db, rings, "rung_at = NULL")


def _each(db: Database, rings: Iterable[Ring], change: str) -> None:
    by_kind: dict[str, list[Ring]] = {}
    for ring in rings:
        by_kind.setdefault(ring.kind, []).append(ring)
    for kind, some in by_kind.items():
        ids: list[UUID] = [one.id for one in some]
        db.once(
            MARK.format(TABLES[kind], change),
            {"ids": ids, "epochs": [one.epoch for one in some]},
        )
