"""What other systems are told of a trace: a row in the commit that it tells of, sent afterwards, at least once.

A webhook is part of the trace's policy. Its row is due at `wake_at`; who sends it pushes that away first, so that a
sender's death delays it and loses nothing. `tries` fences what a sender writes after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from agentmesh.records import Json, new_id
from agentmesh.state.changes import Change

INSERT_DELIVERIES = """d AS (INSERT INTO mesh.deliveries (id, tenant_id, trace_id, step_id, target, body, wake_at)
   SELECT x.id, t.tenant_id, t.id, x.step_id, x.target, x.body, mesh.mesh_now()
   FROM t, jsonb_to_recordset(%(deliveries)s::jsonb) AS x(id uuid, step_id uuid, target text, body jsonb))"""

# For a transition whose `t` returns policy and error and ends the trace itself.
INSERT_END = """wd AS (INSERT INTO mesh.deliveries (id, tenant_id, trace_id, target, body, wake_at)
   SELECT %(delivery)s, t.tenant_id, t.id, t.policy->'webhook'->>'url', jsonb_build_object(
     'secret', t.policy->'webhook'->>'secret', 'type', 'trace.' || t.status,
     'data', jsonb_build_object('trace', t.id, 'agent', t.agent, 'intent', t.intent, 'context', t.context_id,
       'status', t.status, 'result', NULL, 'error', t.error)), mesh.mesh_now()
   FROM t WHERE t.policy->'webhook'->'on' ? 'end')"""

END_COLUMNS = "policy, status, agent, intent, context_id, error"


def rows(held: Any, change: Change) -> list[dict[str, Json]]:
    """The deliveries that this change of a held trace means."""
    hook: Mapping[str, Any] = held.policy.get("webhook") or {}
    on: Sequence[str] = hook.get("on", ())
    about = {"trace": str(held.id), "agent": held.agent, "intent": held.intent, "context": held.context_id}
    made: list[tuple[UUID | None, str, dict[str, Json]]] = []
    if "callback" in on:
        made += [
            (one.step_id, "callback.result", {**one.body, "output": change.steps[0].output if change.steps else None})
            for one in change.events
            if one.name == "CALLBACK_RESULT"
        ]
    if "end" in on and change.end is not None:
        end = change.end
        made.append((None, f"trace.{end.status}", {"status": end.status, "result": end.result, "error": end.error}))
    return [
        {"id": str(new_id()), "step_id": str(step) if step else None, "target": hook["url"],
         "body": {"secret": hook["secret"], "type": kind, "data": {**about, **data}}}
        for step, kind, data in made
    ]  # fmt: skip
