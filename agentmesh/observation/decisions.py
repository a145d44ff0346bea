"""Decisions as they were taken: what a reasoner was shown, what it chose, and what that earned.

A point is rebuilt from rows, so that another reasoner can be asked the same; `vars` of a chain are those it has now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from agentmesh.behavior.agents import AgentSpec
from agentmesh.behavior.session import LazyList, Session
from agentmesh.behavior.strategies import SessionBuilder, SessionSpec
from agentmesh.errors import NoDecision
from agentmesh.infrastructure.database import Database, Row
from agentmesh.records import Action, Policy
from agentmesh.state.blobs import BlobStore
from agentmesh.state.contexts import SessionManager

POINT = """
SELECT s.id AS step_id, s.ordinal, s.node, s.iteration, s.action, coalesce(s.started_at, s.created_at) AS asked_at,
  t.context_id, t.agent, t.intent, t.from_id, t.payload, t.locale, t.permissions, t.policy, t.state
 FROM mesh.steps s JOIN mesh.traces t ON t.id = s.trace_id AND t.tenant_id = s.tenant_id
 WHERE s.trace_id = %(trace)s AND s.tenant_id = %(tenant)s AND s.kind = 'reason' AND s.action IS NOT NULL
   AND s.ordinal <= coalesce(%(step)s::int, s.ordinal)
 ORDER BY s.ordinal DESC LIMIT 1
"""

# Of its own trace what earlier steps wrote (a summary: its own step, too); of others what stood there when it was asked.
MEMORY = """
SELECT DISTINCT ON (m.type, m.key) m.type, m.key, m.value, m.deleted FROM mesh.memory m
  LEFT JOIN mesh.steps s ON s.id = m.step_id AND s.trace_id = %(trace)s AND s.tenant_id = m.tenant_id
 WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND (m.type = 'long_term' OR m.scope = %(trace)s::text)
   AND CASE WHEN s.id IS NULL THEN m.at <= %(asked_at)s ELSE s.ordinal < %(ordinal)s + (m.origin = 'summary')::int END
 ORDER BY m.type, m.key, m.version DESC
"""

REWARDED = """
SELECT s.trace_id, s.ordinal, s.node, t.agent, e.body->'candidates' AS candidates, e.body->'action' AS action,
  (e.body->>'propensity')::float8 AS propensity, e.body->>'policy_version' AS policy_version,
  r.reward, r.n AS rewards
 FROM (SELECT trace_id, step_id, sum(reward) AS reward, count(*) AS n FROM mesh.rewards
        WHERE tenant_id = %(tenant)s GROUP BY 1, 2) r
  JOIN mesh.steps s ON s.id = r.step_id AND s.tenant_id = %(tenant)s
  JOIN mesh.traces t ON t.id = s.trace_id AND t.tenant_id = s.tenant_id
  JOIN mesh.events e ON e.trace_id = s.trace_id AND e.step_id = s.id AND e.name = 'REASONER_ACTION'
 WHERE t.agent = %(agent)s ORDER BY s.trace_id DESC, s.ordinal LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Point:
    """A decision: its step, what its reasoner was shown, and the action it took."""

    step_id: UUID
    ordinal: int
    session: Session
    action: Action


def point(
    db: Database, tenant: str, trace_id: UUID, *, step: int | None, blobs: BlobStore,
    spec: AgentSpec | None = None,
) -> Point:  # fmt: skip
    """The decision that led to step number `step` (None: the last one), as an agent of this `spec` would be shown it.

    Raises NoDecision.
    """
    expand = blobs.expand
    at: dict[str, Any] = {"trace": trace_id, "tenant": tenant, "step": step}
    rows = db.read(POINT, at)
    if not rows:
        raise NoDecision("nothing was decided there", value=f"{trace_id} step {step or 'any'}")
    row = rows[0]
    at |= {"context": row["context_id"], "asked_at": row["asked_at"], "ordinal": row["ordinal"]}
    memory = {
        f"{one['type']}:{one['key']}": expand(tenant, one["value"]) for one in db.read(MEMORY, at) if not one["deleted"]
    }
    facts = SessionManager(db, blobs)
    results = facts.results(tenant, trace_id, before=row["ordinal"])
    steps = facts.steps(tenant, trace_id, before=row["ordinal"])
    view = SessionSpec() if spec is None else spec.session
    turns = LazyList(lambda: facts.turns(tenant, row["context_id"], trace_id, before=row["asked_at"]))
    session = SessionBuilder().view(
        view, trace_id=str(trace_id), context_id=row["context_id"], tenant=tenant, agent=row["agent"],
        intent=row["intent"], from_=row["from_id"], payload=expand(tenant, row["payload"]), memory=memory,
        results={key: expand(tenant, one) for key, one in results.items()},
        steps={key: expand(tenant, one) for key, one in steps.items()},
        vars=(row["state"] or {}).get("vars") or {}, step=row["ordinal"], iteration=row["iteration"] - 1, node=row["node"],
        locale=row["locale"], permissions=tuple(row["permissions"] or ()), tools=() if spec is None else spec.tools,
        policy=Policy.model_validate_json(json.dumps(row["policy"])), turns=turns,
    )  # fmt: skip
    action = Action.model_validate_json(json.dumps(expand(tenant, row["action"])))
    return Point(row["step_id"], row["ordinal"], session, action)


def rewarded(db: Database, tenant: str, agent: str, *, limit: int = 1000) -> list[Row]:
    """Decisions that earned rewards, newest traces first: what could be chosen (the choice first), what it came to as an
    action, how likely it was, by which policy, and the sum of the rewards.
    """
    return db.read(REWARDED, {"tenant": tenant, "agent": agent, "limit": limit})
