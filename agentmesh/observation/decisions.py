"""Decisions as they were taken: what a reasoner was shown, what it chose, and what that earned.

A point is rebuilt from rows, so that another reasoner can be asked the same; `vars` of a chain are those it has now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from agentmesh.behavior.agents import AgentSpec
from agentmesh.behavior.session import LazyList, Session
from agentmesh.behavior.strategies import Near, SessionBuilder
from agentmesh.errors import NoDecision
from agentmesh.infrastructure.database import Database, Row
from agentmesh.records import Action, Policy
from agentmesh.state.blobs import BlobStore
from agentmesh.state.contexts import SessionManager

POINT = """
SELECT s.id AS step_id, s.ordinal, s.node, s.iteration, s.action, coalesce(s.started_at, s.created_at) AS asked_at,
  t.context_id, t.agent, t.intent, t.from_id, t.payload, t.locale, t.permissions, t.policy, t.state,
  (SELECT e.body->'session'->'nearest' FROM mesh.events e WHERE e.trace_id = s.trace_id AND e.tenant_id = s.tenant_id
     AND e.step_id = s.id AND e.name = 'REASONER_ACTION' ORDER BY e.seq DESC LIMIT 1) AS nearest
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

SAID = """
SELECT s.ordinal, s.node, e.name, e.body FROM mesh.events e JOIN mesh.steps s ON s.id = e.step_id AND s.tenant_id = e.tenant_id
 WHERE e.trace_id = %(trace)s AND e.tenant_id = %(tenant)s AND e.name IN ('REASONER_PROMPT', 'REASONER_ACTION') ORDER BY e.seq
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
    """The decision that led to step number `step` (None: the last one), as an agent of this `spec` would be shown it
    (None: with everything there was, turns too).

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
    near = None if row["nearest"] is None else Near(tuple(key for key, _ in row["nearest"]["found"]), row["nearest"])
    build = (
        Session
        if spec is None
        else partial(SessionBuilder().view, spec.session, near if spec.session.nearest else None)
    )
    turns = LazyList(lambda: facts.turns(tenant, row["context_id"], trace_id, before=row["asked_at"]))
    session = build(
        trace_id=str(trace_id), context_id=row["context_id"], tenant=tenant, agent=row["agent"],
        intent=row["intent"], from_=row["from_id"], payload=expand(tenant, row["payload"]), memory=memory,
        results={key: expand(tenant, one) for key, one in results.items()},
        steps={key: expand(tenant, one) for key, one in steps.items()},
        vars=(row["state"] or {}).get("vars") or {}, step=row["ordinal"], iteration=row["iteration"] - 1, node=row["node"],
        locale=row["locale"], permissions=tuple(row["permissions"] or ()), tools=() if spec is None else spec.tools,
        policy=Policy.model_validate_json(json.dumps(row["policy"])), turns=turns,
    )  # fmt: skip
    action = Action.model_validate_json(json.dumps(expand(tenant, row["action"])))
    return Point(row["step_id"], row["ordinal"], session, action)


def shown(db: Database, tenant: str, trace_id: UUID, *, blobs: BlobStore) -> list[dict[str, Any]]:
    """What the reasoner saw at each decision of the trace, in order: `values` by name, as far as they were shown, the
    `account` of what was and was not (None: all was), the `prompts` a model was asked, and the `action` it chose.

    Raises NoDecision.
    """
    found: dict[int, dict[str, Any]] = {}
    for row in db.read(SAID, {"trace": trace_id, "tenant": tenant}):
        one = found.setdefault(row["ordinal"], {"step": row["ordinal"], "node": row["node"], "prompts": []})
        if row["name"] == "REASONER_PROMPT":
            one["prompts"].append(row["body"])
        else:
            one |= {"action": row["body"].get("action"), "account": row["body"].get("session")}
    decided = [one for one in found.values() if "action" in one]
    if not decided:
        raise NoDecision("nothing was decided in this trace", value=str(trace_id))
    for one in decided:
        at = point(db, tenant, trace_id, step=one["step"], blobs=blobs, spec=None).session
        one["values"] = _values(at, one["account"])
    return decided


def _values(session: Session, account: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of a session with everything what the account says was shown."""
    values: dict[str, Any] = {name: dict(getattr(session, name)) for name in ("payload", "memory", "results")}
    if account is None:
        return values
    kept = account["shown"]
    for name in ("memory", "results"):
        if "…" not in kept.get(name, {}):
            values[name] = {key: one for key, one in values[name].items() if key in kept.get(name, {})}
    return values | {"turns": [one for one in session.turns if one["trace"] in kept.get("turns", {})]}


def rewarded(db: Database, tenant: str, agent: str, *, limit: int = 1000) -> list[Row]:
    """Decisions that earned rewards, newest traces first: what could be chosen (the choice first), what it came to as an
    action, how likely it was, by which policy, and the sum of the rewards.
    """
    return db.read(REWARDED, {"tenant": tenant, "agent": agent, "limit": limit})
