"""Rewards: how well a decision turned out, told afterwards and bound to the step that decided.

Facts beside the trace: they are inserted, never changed, and alter nothing of it. A learner reads them with what the
decision could have chosen (observation/decisions); who told them is audited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from uuid import UUID, uuid5

from agentmesh.errors import Mistake, NoDecision
from agentmesh.infrastructure.database import Database, jsonb
from agentmesh.records import Json, new_id
from agentmesh.state.audit import said

# The decision that led to a step is the newest one up to it.
REWARD = """
WITH d AS (SELECT tenant_id, trace_id, id, ordinal FROM mesh.steps
   WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s AND kind = 'reason' AND action IS NOT NULL
     AND status <> 'superseded' AND ordinal <= coalesce(%(step)s::int, ordinal)
   ORDER BY ordinal DESC LIMIT 1),
 r AS (INSERT INTO mesh.rewards (id, tenant_id, trace_id, step_id, reward, body)
   SELECT %(id)s, tenant_id, trace_id, id, %(reward)s, %(body)s::jsonb FROM d ON CONFLICT (id) DO NOTHING
   RETURNING mesh.audit_note(tenant_id, 'REWARD', %(said)s::jsonb || jsonb_build_object('step_id', step_id)))
SELECT d.id, d.ordinal, EXISTS (SELECT 1 FROM r) AS new FROM d
"""


@dataclass(frozen=True, slots=True)
class Rewarded:
    """The decision a reward went to. `repeated`: the same reward had been told before."""

    step_id: UUID
    ordinal: int
    repeated: bool


def reward(
    db: Database, reward: float, *, tenant_id: str, trace_id: UUID, step: int | None = None, about: dict[str, Json],
    key: str | None = None,
) -> Rewarded:  # fmt: skip
    """Bind `reward` to the decision that led to step number `step` (None: to the last one). Told again under the same
    `key`, it counts once. `about` is kept with it: who said so, and why.

    Raises Mistake for what is no finite number, NoDecision where nothing had been decided.
    """
    if not math.isfinite(reward):
        raise Mistake("a reward is no finite number", value=reward, expected="such as 1, 0.5 or -1")
    told = said(about.get("by") or "api", trace_id=str(trace_id), reward=float(reward))
    rows = db.once(REWARD, {
        "id": new_id() if key is None else uuid5(trace_id, key), "tenant": tenant_id, "trace": trace_id, "step": step,
        "reward": float(reward), "body": jsonb(about), "said": told,
    })  # fmt: skip
    if not rows:
        raise NoDecision("nothing was decided there", value=f"{trace_id} step {step or 'any'}")
    return Rewarded(rows[0]["id"], rows[0]["ordinal"], not rows[0]["new"])
