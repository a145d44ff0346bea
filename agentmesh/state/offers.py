"""Which agents offer a capability, and how much each has to do: read where a delegation chooses among them.

What they have to do is what waits for their workers or is held by one, of this tenant; a trace whose tools are out, or
that waits for time or for people, is nobody's work. Counting ends at a thousand.
"""

from __future__ import annotations

from agentmesh.infrastructure.database import Database, Row

OFFERS = """
SELECT a.id, a.version, a.intents IS NULL OR %(intent)s = ANY(a.intents) AS knows, a.paused_at IS NULL AS open, w.workers,
  q.n + h.n + s.n + r.n AS load
 FROM mesh.agents a,
 LATERAL (SELECT count(*) AS workers, coalesce(array_agg(w.id), '{}') AS ids FROM mesh.workers w WHERE w.state = 'alive'
   AND a.id = ANY(w.agents) AND w.beat_at > mesh.mesh_asof() - make_interval(secs => w.lease_s)) w,
 LATERAL (SELECT count(*) AS n FROM (SELECT FROM mesh.traces t WHERE t.queue = a.queue AND t.status = 'queued'
   AND t.agent = a.id AND t.tenant_id = a.tenant_id LIMIT 1000) x) q,
 LATERAL (SELECT count(*) AS n FROM (SELECT FROM mesh.traces t WHERE t.tenant_id = a.tenant_id AND t.agent = a.id
   AND t.status = 'held' AND t.waits_for = 'limit' LIMIT 1000) x) h,
 LATERAL (SELECT count(*) AS n FROM (SELECT FROM mesh.steps s WHERE s.queue = a.queue AND s.status IN ('ready', 'joined')
   AND s.agent = a.id AND s.tenant_id = a.tenant_id LIMIT 1000) x) s,
 LATERAL (SELECT count(*) AS n FROM mesh.traces t WHERE t.worker_id = ANY(w.ids) AND t.agent = a.id
   AND t.tenant_id = a.tenant_id) r
 WHERE a.tenant_id = %(tenant)s AND a.id <> %(besides)s AND a.spec->'capabilities' ? %(capability)s ORDER BY a.id
"""

OFFERED = """
SELECT DISTINCT c.name FROM mesh.agents a, jsonb_array_elements_text(a.spec->'capabilities') AS c(name)
 WHERE a.tenant_id = %(tenant)s AND a.id <> %(besides)s ORDER BY c.name
"""


def of(db: Database, *, tenant: str, capability: str, intent: str, besides: str) -> list[Row]:
    """The other announced agents that offer it, whether they accept the intent and take new work, their workers and load."""
    return db.once(OFFERS, {"tenant": tenant, "capability": capability, "intent": intent, "besides": besides})


def all_of(db: Database, *, tenant: str, besides: str) -> list[str]:
    """Every capability that other announced agents offer."""
    return [row["name"] for row in db.once(OFFERED, {"tenant": tenant, "besides": besides})]
