"""How the mesh is: who is alive, and what has been ready for longest without anybody taking it."""

from __future__ import annotations

from collections.abc import Sequence

from agentmesh.infrastructure.database import Database, Row

# Workers serve every tenant and belong to none.
WORKERS = """
SELECT count(*) FILTER (WHERE state = 'alive' AND beat_at > mesh.mesh_asof() - make_interval(secs => lease_s)) AS alive,
 count(*) FILTER (WHERE (state = 'dead' OR state = 'alive' AND beat_at <= mesh.mesh_asof() - make_interval(secs => lease_s))
  AND beat_at > mesh.mesh_asof() - interval '1 hour') AS dead,
 coalesce(sum(stuck) FILTER (WHERE state = 'alive'), 0)::int AS stuck FROM mesh.workers
"""

OLDEST = """
SELECT r.*, extract(epoch FROM mesh.mesh_asof() - r.since)::float8 AS seconds FROM (
 SELECT 'trace' AS kind, id AS trace_id, queue, greatest(created_at, wake_at) AS since FROM mesh.traces
  WHERE tenant_id = %(tenant)s AND status = 'queued' AND paused_at IS NULL
 UNION ALL SELECT 'step', s.trace_id, s.queue, greatest(s.created_at, s.wake_at) FROM mesh.steps s
  JOIN mesh.traces t ON t.id = s.trace_id AND t.tenant_id = s.tenant_id AND t.paused_at IS NULL
  WHERE s.tenant_id = %(tenant)s AND s.status IN ('ready', 'joined')
 UNION ALL SELECT 'call', trace_id, queue, greatest(created_at, wake_at) FROM mesh.calls
  WHERE tenant_id = %(tenant)s AND status = 'ready') r
 WHERE r.since < mesh.mesh_asof() ORDER BY r.since LIMIT 1
"""

SERVER = """
SELECT (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS tls, r.rolname AS role,
 array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
  CASE WHEN r.rolcreatedb THEN 'CREATEDB' END, CASE WHEN r.rolreplication THEN 'REPLICATION' END,
  CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END], NULL) AS powers,
 current_setting('fsync') AS fsync, current_setting('full_page_writes') AS pages, current_setting('archive_mode') AS archive,
 (SELECT count(*) FROM pg_stat_replication)::int AS standbys, (SELECT count(*) FROM mesh.exports)::int AS exports,
 (SELECT o.ended_at < mesh.mesh_asof() - interval '90 days' FROM mesh.traces o ORDER BY o.id LIMIT 1) AS old
 FROM pg_roles r WHERE r.rolname = current_user
"""


def workers(db: Database) -> Row:
    """How many are alive, how many died within the last hour, and how many threads are stuck."""
    return db.once(WORKERS)[0]


def oldest_ready(db: Database, tenant: str) -> Row | None:
    """What has waited longest to be taken: kind, trace_id, queue, seconds; None when nothing waits."""
    rows = db.once(OLDEST, {"tenant": tenant})
    return rows[0] if rows else None


def deliveries(db: Database, tenant: str) -> Row:
    """How many deliveries to webhooks wait, and how many were given up within a day."""
    return db.once(
        "SELECT count(*) FILTER (WHERE status = 'ready')::int AS waiting, count(*) FILTER (WHERE status = 'failed'"
        " AND created_at > mesh.mesh_asof() - interval '1 day')::int AS failed FROM mesh.deliveries"
        " WHERE tenant_id = %(tenant)s",
        {"tenant": tenant},
    )[0]


UNSERVED = """
SELECT c.tool, count(*)::int AS waiting FROM mesh.calls c
 WHERE c.tenant_id = %(tenant)s AND c.status = 'ready' AND c.task = 'tool.' || c.tool
   AND NOT EXISTS (SELECT 1 FROM mesh.workers w WHERE c.tool = ANY(w.tools) AND w.state = 'alive'
     AND w.beat_at > mesh.mesh_asof() - make_interval(secs => w.lease_s))
 GROUP BY c.tool ORDER BY c.tool
"""


def unserved(db: Database, tenant: str) -> dict[str, int]:
    """How many calls wait for each tool that no live worker has."""
    return {row["tool"]: row["waiting"] for row in db.once(UNSERVED, {"tenant": tenant})}


ALIVE = """
SELECT name FROM mesh.workers
 WHERE state = 'alive' AND beat_at > mesh.mesh_asof() - make_interval(secs => lease_s)
"""

HELD = """
SELECT (SELECT count(*) FROM mesh.traces t WHERE t.tenant_id = %(tenant)s AND t.worker_id = w.id)
     + (SELECT count(*) FROM mesh.calls c WHERE c.tenant_id = %(tenant)s AND c.worker_id = w.id) AS n
 FROM mesh.workers w WHERE w.name = %(name)s AND w.state = 'alive' ORDER BY w.registered_at DESC LIMIT 1
"""


def alive(db: Database) -> set[str]:
    """The names of the workers that beat."""
    return {row["name"] for row in db.once(ALIVE)}


def held_by(db: Database, tenant: str, name: str) -> int:
    """How many traces and calls name this worker right now."""
    rows = db.once(HELD, {"tenant": tenant, "name": name})
    return int(rows[0]["n"]) if rows else 0


# Each is a partial index of open rows; of all tenants together.
OPEN = """
SELECT (SELECT count(*) FROM mesh.dead_letters WHERE settled_at IS NULL) AS dead_letters,
 (SELECT count(*) FROM mesh.deliveries WHERE status = 'ready') AS deliveries,
 (SELECT count(*) FROM mesh.audit WHERE seq IS NULL) AS unsealed
"""

ENDED = """
SELECT agent, status, extract(epoch FROM ended_at - created_at)::float8 AS seconds FROM mesh.traces
 WHERE id = ANY(%(ids)s) AND tenant_id = ANY(%(tenants)s) AND ended_at IS NOT NULL
"""


def open_rows(db: Database) -> Row:
    """How many dead letters and deliveries wait, and how many audit rows nobody has sealed yet."""
    return db.read(OPEN)[0]


def ended(db: Database, found: Sequence[Row]) -> list[Row]:
    """Agent, status and length of the traces that ended with these events."""
    given = {"ids": [row["trace_id"] for row in found], "tenants": sorted({row["tenant_id"] for row in found})}
    return db.read(ENDED, given) if found else []


# Of all tenants: a queue belongs to none.
READY = """
SELECT queue, count(*) AS n, greatest(0, extract(epoch FROM mesh.mesh_asof() - min(since)))::float8 AS seconds FROM (
 SELECT queue, greatest(created_at, wake_at) AS since FROM mesh.traces WHERE status = 'queued' AND paused_at IS NULL
 UNION ALL SELECT queue, greatest(created_at, wake_at) FROM mesh.steps WHERE status IN ('ready', 'joined')
 UNION ALL SELECT queue, greatest(created_at, wake_at) FROM mesh.calls WHERE status = 'ready') r
 WHERE since < mesh.mesh_asof() GROUP BY queue ORDER BY queue
"""


def ready(db: Database) -> list[Row]:
    """What is ready and untaken, by queue: queue, n, seconds of the oldest."""
    return db.read(READY)


def server(db: Database) -> tuple[Row, bool]:
    """How its server and our role on it are set up, and whether we had to say a password."""
    with db.checkout() as tx:
        return tx.all(SERVER)[0], bool(tx.connection.pgconn.used_password)
