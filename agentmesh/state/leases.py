"""Who is alive: worker rows, their beats, and the one rescuer that leads.

A worker is dead when it has not beaten for its lease, or provably gone. What names a worker that is not alive belongs
to nobody and is given back by state/rescue. Time is the database's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

from agentmesh.infrastructure.counts import transition
from agentmesh.infrastructure.database import Database, Row, jsonb

REGISTER = """
INSERT INTO mesh.workers (id, name, host, boot_id, pid_ns, pid, pid_started, state, queues, agents, tools, version, lease_s)
VALUES (%(id)s, %(name)s, %(host)s, %(boot_id)s, %(pid_ns)s, %(pid)s, %(pid_started)s, 'alive', %(queues)s, %(agents)s,
  %(tools)s, %(version)s, %(lease_s)s)
"""

# The beat and what names us in one statement; the caller reads its own notes afterwards. A call without a claim of its
# own runs inside a held trace and goes with it.
BEAT = """
WITH b AS (UPDATE mesh.workers SET beat_at = mesh.mesh_now(), stuck = %(stuck)s, counts = %(counts)s::jsonb
   WHERE id = %(id)s AND state = 'alive' RETURNING id)
SELECT kind, id, claim_id, epoch, child, tenant_id, extract(epoch FROM mesh.mesh_asof())::float8 AS now_s FROM (
 SELECT 'alive' AS kind, id, NULL::uuid AS claim_id, NULL::int AS epoch, NULL::int AS child, NULL::text AS tenant_id FROM b
 UNION ALL SELECT 'trace', id, claim_id, epoch, child, tenant_id FROM mesh.traces WHERE worker_id = %(id)s
 UNION ALL SELECT 'call', id, claim_id, epoch, child, tenant_id FROM mesh.calls WHERE worker_id = %(id)s AND claim_id IS NOT NULL
 UNION ALL SELECT 'nobody', NULL, NULL, NULL, NULL, NULL WHERE NOT EXISTS (SELECT 1 FROM b)) named
"""

DECLARE_DEAD = """
UPDATE mesh.workers SET state = 'dead' WHERE id = %(id)s AND state = 'alive' AND beat_at = %(beat_at)s
  AND (%(gone)s OR beat_at < mesh.mesh_asof() - make_interval(secs => lease_s))
"""

SILENT = """
SELECT id, name, host, boot_id, pid_ns, pid, pid_started, beat_at, extract(epoch FROM mesh.mesh_asof())::float8 AS now_s,
  beat_at < mesh.mesh_asof() - make_interval(secs => lease_s) AS expired
 FROM mesh.workers WHERE state = 'alive' AND beat_at < mesh.mesh_asof() - make_interval(secs => %(after_s)s) LIMIT 200
"""

# While another leads nothing is written, not even the lock of its row.
LEAD = """
INSERT INTO mesh.leaders AS l (name, worker_id, until)
SELECT 'rescuer', %(id)s, mesh.mesh_now() + make_interval(secs => %(lease_s)s)
 WHERE NOT EXISTS (SELECT 1 FROM mesh.leaders o WHERE o.name = 'rescuer' AND o.worker_id <> %(id)s
  AND o.until >= mesh.mesh_asof())
ON CONFLICT (name) DO UPDATE SET worker_id = excluded.worker_id, until = excluded.until,
  term = l.term + (l.worker_id <> excluded.worker_id)::int
 WHERE l.worker_id = excluded.worker_id OR l.until < mesh.mesh_asof()
RETURNING term
"""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process as the others see it. `boot_id`, `pid_ns` and `pid_started` make its pid provable on its own host."""

    id: UUID
    name: str
    host: str
    boot_id: str
    pid_ns: str
    pid: int
    pid_started: int
    queues: tuple[str, ...]
    agents: tuple[str, ...]
    tools: tuple[str, ...]
    version: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class Named:
    """A row that names this worker: which, under which claim, and in which child."""

    kind: Literal["trace", "call"]
    id: UUID
    claim_id: UUID
    epoch: int
    child: int | None
    tenant_id: str


class Beaten(NamedTuple):
    """The database's time, in seconds since 1970, and what names the worker; None: it is dead and must drop everything."""

    now_s: float
    named: list[Named] | None


def register(db: Database, worker: Worker) -> None:
    """Afterwards the worker is alive and may hold rows."""
    names = Worker.__dataclass_fields__
    row = {name: getattr(worker, name) for name in names}
    db.once(REGISTER, {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()})


@transition("beat")
def beat(db: Database, worker_id: UUID, *, stuck: int = 0, counts: Mapping[str, int] | None = None) -> Beaten:
    """This worker has beaten. `stuck`: so many of its threads run what is nobody's any more; `counts`: what it has counted."""
    rows = db.once(BEAT, {"id": worker_id, "stuck": stuck, "counts": jsonb(counts or {})})
    now_s = {row.pop("now_s") for row in rows}.pop()
    named = [Named(**row) for row in rows if row["kind"] in {"trace", "call"}]
    return Beaten(now_s, named if any(row["kind"] == "alive" for row in rows) else None)


def leave(db: Database, worker_id: UUID) -> None:
    """The worker is gone by its own will; what still names it is given back by the next tick of the rescuer."""
    db.once("UPDATE mesh.workers SET state = 'gone' WHERE id = %(id)s AND state = 'alive'", {"id": worker_id})


def silent(db: Database, *, after_s: float) -> list[Row]:
    """Alive workers that have not beaten for `after_s`; `expired` tells whether their lease is over."""
    return db.once(SILENT, {"after_s": after_s})


def declare_dead(db: Database, row: Row, *, gone: bool) -> bool:
    """True when the silent worker is now dead; False when it has beaten since, or somebody else was first."""
    with db.checkout() as tx:
        return tx.count(DECLARE_DEAD, {"id": row["id"], "beat_at": row["beat_at"], "gone": gone}) == 1
