"""What workers announce: agents, tools and the plans agents follow, each with a version.

Announcing is idempotent; the newest announcement of a name stands, and is audited where it changes something. A plan is
kept for ever under its hash, because running traces are pinned to it.
"""

from __future__ import annotations

from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Json
from agentmesh.state.audit import said

AGENT = """
WITH was AS (SELECT * FROM mesh.agents WHERE tenant_id = %(tenant_id)s AND id = %(id)s),
 now AS (INSERT INTO mesh.agents (tenant_id, id, version, queue, plan_hash, intents, accepts, spec)
   VALUES (%(tenant_id)s, %(id)s, %(version)s, %(queue)s, %(plan_hash)s, %(intents)s, %(accepts)s, %(spec)s::jsonb)
   ON CONFLICT (tenant_id, id) DO UPDATE SET version = excluded.version, queue = excluded.queue,
     plan_hash = excluded.plan_hash, intents = excluded.intents, accepts = excluded.accepts, spec = excluded.spec,
     announced_at = mesh.mesh_now() RETURNING *)
SELECT mesh.audit_note(n.tenant_id, CASE WHEN w.id IS NULL THEN 'AGENT_NEW' ELSE 'AGENT_CHANGE' END, %(said)s::jsonb)
  FROM now n LEFT JOIN was w ON true
 WHERE (w.version, w.queue, w.plan_hash, w.intents, w.accepts, w.spec)
   IS DISTINCT FROM (n.version, n.queue, n.plan_hash, n.intents, n.accepts, n.spec)
"""

TOOL = """
WITH was AS (SELECT * FROM mesh.tools WHERE tenant_id = %(tenant_id)s AND id = %(id)s),
 now AS (INSERT INTO mesh.tools (tenant_id, id, version, queue, needs, effect, spec)
   VALUES (%(tenant_id)s, %(id)s, %(version)s, %(queue)s, %(needs)s, %(effect)s, %(spec)s::jsonb)
   ON CONFLICT (tenant_id, id) DO UPDATE SET version = excluded.version, queue = excluded.queue, needs = excluded.needs,
     effect = excluded.effect, spec = excluded.spec, announced_at = mesh.mesh_now() RETURNING *)
SELECT mesh.audit_note(n.tenant_id, CASE WHEN w.id IS NULL THEN 'TOOL_NEW' ELSE 'TOOL_CHANGE' END, %(said)s::jsonb)
  FROM now n LEFT JOIN was w ON true
 WHERE (w.version, w.queue, w.needs, w.effect, w.spec) IS DISTINCT FROM (n.version, n.queue, n.needs, n.effect, n.spec)
"""

PLAN = """
INSERT INTO mesh.plans (tenant_id, hash, chain, body) VALUES (%(tenant_id)s, %(hash)s, %(chain)s, %(body)s::jsonb)
ON CONFLICT DO NOTHING
"""

AGENTS = """
SELECT a.id, a.version, a.queue, a.plan_hash, a.intents, a.accepts, a.spec, a.announced_at, a.paused_at, a.paused_by,
  (SELECT count(*) FROM mesh.workers w WHERE w.state = 'alive' AND a.id = ANY(w.agents)
    AND w.beat_at > mesh.mesh_asof() - make_interval(secs => w.lease_s)) AS workers,
  (SELECT count(*) FROM mesh.traces t WHERE t.tenant_id = a.tenant_id AND t.agent = a.id AND t.status = 'queued') AS queued,
  (SELECT count(*) FROM mesh.traces t WHERE t.tenant_id = a.tenant_id AND t.agent = a.id AND t.status = 'running') AS running
 FROM mesh.agents a WHERE a.tenant_id = %(tenant)s AND a.id > %(after)s ORDER BY a.id LIMIT %(limit)s
"""

INSTANCES = """
SELECT w.id, w.name, w.host, w.pid, w.version, w.state AS worker_state, w.registered_at, w.beat_at, a.paused_at,
  (SELECT count(*) FROM mesh.traces t WHERE t.worker_id = w.id AND t.tenant_id = a.tenant_id AND t.agent = a.id) AS holds
 FROM mesh.agents a JOIN mesh.workers w ON a.id = ANY(w.agents)
 WHERE a.tenant_id = %(tenant)s AND a.id = %(agent)s AND w.beat_at > mesh.mesh_asof() - interval '1 day'
 ORDER BY w.registered_at DESC LIMIT 200
"""

# Two CTEs see one snapshot: `known` also where nothing is to be changed.
SET_PAUSED = """
WITH known AS (SELECT 1 AS one FROM mesh.agents WHERE tenant_id = %(tenant)s AND id = %(agent)s),
 now AS (UPDATE mesh.agents SET paused_at = CASE WHEN %(paused)s THEN mesh.mesh_now() END,
    paused_by = CASE WHEN %(paused)s THEN %(by)s::text END
   WHERE tenant_id = %(tenant)s AND id = %(agent)s AND (paused_at IS NULL) = %(paused)s RETURNING 1 AS one)
SELECT EXISTS (SELECT one FROM now) AS changed, (SELECT mesh.audit_note(%(tenant)s, %(action)s, %(said)s::jsonb) FROM now)
 FROM known
"""

TOOLS = """
SELECT t.id, t.version, t.queue, t.needs, t.effect, t.spec, t.announced_at,
  (SELECT count(*) FROM mesh.workers w WHERE w.state = 'alive' AND t.id = ANY(w.tools)
    AND w.beat_at > mesh.mesh_asof() - make_interval(secs => w.lease_s)) AS workers
 FROM mesh.tools t WHERE t.tenant_id = %(tenant)s ORDER BY t.id
"""


def announce_agent(db: Database, row: dict[str, Json], *, by: str = "mesh") -> None:
    told = {name: row[name] for name in ("version", "queue", "plan_hash", "intents", "accepts")}
    hook = row["spec"].get("webhook")
    db.once(AGENT, row | {"spec": jsonb(row["spec"]), "said": said(by, agent=row["id"], webhook=hook, **told)})


def announce_tool(db: Database, row: dict[str, Json], *, by: str = "mesh") -> None:
    told = {name: row[name] for name in ("version", "queue", "needs", "effect")}
    db.once(TOOL, row | {"spec": jsonb(row["spec"]), "said": said(by, tool=row["id"], **told)})


def keep_plan(db: Database, *, tenant_id: str, plan_hash: str, chain: str, body: Json) -> None:
    """Afterwards the plan can be read by its hash, for as long as the database lives."""
    db.once(PLAN, {"tenant_id": tenant_id, "hash": plan_hash, "chain": chain, "body": jsonb(body)})


def plan(db: Database, tenant_id: str, plan_hash: str) -> Json:
    """The canonical body of a plan; None when it was never announced."""
    rows = db.once(
        "SELECT body FROM mesh.plans WHERE tenant_id = %(tenant)s AND hash = %(hash)s",
        {"tenant": tenant_id, "hash": plan_hash},
    )
    return rows[0]["body"] if rows else None


def agents(db: Database, tenant_id: str, *, after: str = "", limit: int = 10_000) -> list[Row]:
    """Announced agents by name, behind `after`, with how many live workers host each, and its queued and running traces."""
    return db.once(AGENTS, {"tenant": tenant_id, "after": after, "limit": limit})


def instances(db: Database, tenant_id: str, agent: str) -> list[Row]:
    """The workers that host the agent or did so within a day, and how many of its traces each holds."""
    return db.once(INSTANCES, {"tenant": tenant_id, "agent": agent})


def set_paused(db: Database, tenant_id: str, agent: str, *, paused: bool, by: str) -> bool | None:
    """Paused, or not any more: whether this changed it; None where there is no such agent."""
    action = "AGENT_PAUSE" if paused else "AGENT_RESUME"
    at = {"tenant": tenant_id, "agent": agent, "paused": paused, "by": str(by)}
    rows = db.once(SET_PAUSED, at | {"action": action, "said": said(by, agent=agent)})
    return bool(rows[0]["changed"]) if rows else None


def tools(db: Database, tenant_id: str) -> list[Row]:
    """Announced tools with how many live workers run each."""
    return db.once(TOOLS, {"tenant": tenant_id})
