"""The SQL by which a Change lands: one statement, made of the parts the change has.

Everything hangs on the guarded UPDATE of the trace row (`t`); where that loses, no part writes anything. A part that a
change does not have is left out: planning and starting an empty one costs a tenth of a millisecond.

The first change of a trace that begins with a chain also claims it: what its start comes to follows from the row, so
nothing runs before that commit.
"""

from __future__ import annotations

from functools import lru_cache

from agentmesh.state.deliveries import INSERT_DELIVERIES
from agentmesh.state.dispatch import INSERT_CHILDREN
from agentmesh.state.memory import INSERT_SHORT_TERM

FREE = """id = %(trace)s AND epoch = %(epoch)s AND status = 'queued' AND worker_id IS NULL AND paused_at IS NULL
     AND agent = %(agent)s AND (wake_at IS NULL OR wake_at <= mesh.mesh_asof())
     AND coalesce(plan_hash, '') <> ALL(%(unread)s::text[])
     AND NOT EXISTS (SELECT 1 FROM mesh.agents g WHERE g.tenant_id = traces.tenant_id AND g.id = traces.agent
       AND g.paused_at IS NOT NULL)
     AND (root_id = id OR NOT EXISTS (SELECT 1 FROM mesh.traces r WHERE r.id = traces.root_id AND r.cancel_owed))"""
"""Of a trace: it may be begun here."""

CHANGED = """commit_id = %(commit)s, waits_for = %(waits_for)s, state = coalesce(%(state)s::jsonb, state),
    result = coalesce(%(result)s::jsonb, result), error = coalesce(%(error)s::jsonb, error),
    ended_at = CASE WHEN %(end_status)s::text IS NOT NULL THEN mesh.mesh_now() END,
    parent_owed = %(end_status)s::text IS NOT NULL AND parent_call_id IS NOT NULL"""

RETURNED = """RETURNING id, tenant_id, context_id, root_id, depth, agent, queue, priority, seq - %(n_events)s AS base, epoch,
    worker_id, child, paused_at, state"""

TRACE = f"""
WITH t AS (
  UPDATE mesh.traces SET {CHANGED}, seq = seq + %(n_events)s, steps = steps + %(n_steps)s,
    status = coalesce(%(end_status)s, CASE WHEN %(waits_for)s::text IS NOT NULL THEN 'waiting' END, status),
    paused_at = CASE WHEN %(end_status)s::text IS NULL THEN paused_at END,
    worker_id = CASE WHEN %(keep)s AND paused_at IS NULL THEN worker_id END,
    child = CASE WHEN %(keep)s AND paused_at IS NULL THEN child END,
    claim_id = CASE WHEN %(keep)s AND paused_at IS NULL THEN claim_id END,
    epoch = epoch + CASE WHEN %(keep)s AND paused_at IS NULL THEN 0 ELSE 1 END
   WHERE id = %(trace)s AND tenant_id = %(tenant)s AND worker_id = %(worker)s AND epoch = %(epoch)s
     AND status = 'running' AND commit_id IS DISTINCT FROM %(commit)s
  {RETURNED})"""

BEGUN = f"""
WITH t AS (
  UPDATE mesh.traces SET {CHANGED}, seq = seq + %(n_events)s, steps = 1 + %(n_steps)s, plan_hash = %(plan)s,
    agent_version = %(version)s, policy = %(policy)s::jsonb, started_at = mesh.mesh_now(), wake_at = NULL,
    status = coalesce(%(end_status)s, CASE WHEN %(waits_for)s::text IS NOT NULL THEN 'waiting' END, 'running'),
    worker_id = CASE WHEN %(keep)s THEN %(worker)s::uuid END, child = CASE WHEN %(keep)s THEN %(child)s::int END,
    claim_id = CASE WHEN %(keep)s THEN %(claim)s::uuid END, epoch = epoch + CASE WHEN %(keep)s THEN 0 ELSE 1 END
   WHERE {FREE}
  {RETURNED}),
 cx AS (INSERT INTO mesh.contexts (tenant_id, id) SELECT tenant_id, context_id FROM t ON CONFLICT DO NOTHING),
 bs AS (INSERT INTO mesh.steps (id, tenant_id, trace_id, ordinal, node, kind, status, queue, agent, priority, error,
    started_at, ended_at, mem_seq)
   SELECT %(step)s, tenant_id, id, 1, 'start', 'start', %(step_status)s, queue, agent, priority, %(step_error)s::jsonb,
     mesh.mesh_now(), mesh.mesh_now(),
     coalesce((SELECT c.mem_seq FROM mesh.contexts c WHERE c.tenant_id = t.tenant_id AND c.id = t.context_id), 0) FROM t)"""

# The step's id stands there for the planner: with ids that come out of JSON alone, a plan made while the table was small
# reads all of it for ever after, and with the trace's all steps of a long trace.
PARTS = {
    "steps": """s AS (UPDATE mesh.steps st SET
    status = CASE WHEN x.status <> 'running' OR t.worker_id IS NOT NULL THEN x.status
      WHEN st.kind = 'tools' AND coalesce(x.phase, st.phase) = 'run' THEN 'waiting' ELSE 'ready' END,
    phase = coalesce(x.phase, st.phase), action = coalesce(x.action, st.action), output = coalesce(x.output, st.output),
    error = coalesce(x.error, st.error), pending = coalesce(x.pending, st.pending), wins = coalesce(x.wins, st.wins),
    failures = coalesce(x.failures, st.failures), callbacks = coalesce(x.callbacks, st.callbacks),
    deadline = CASE WHEN x.status = 'running' AND t.worker_id IS NOT NULL
      THEN mesh.mesh_now() + make_interval(secs => x.timeout_s) END,
    wake_at = mesh.mesh_now() + make_interval(secs => x.wake_s),
    epoch = st.epoch + (x.status = 'ready')::int,
    rung_at = CASE WHEN x.wake_s IS NOT NULL OR x.status = 'running' AND t.worker_id IS NULL THEN NULL
      WHEN x.status = 'ready' THEN mesh.mesh_now() ELSE st.rung_at END,
    rings = CASE WHEN x.status = 'ready' THEN 0 ELSE st.rings END,
    ended_at = CASE WHEN x.status IN ('done', 'failed', 'cancelled') THEN mesh.mesh_now() END
   FROM t, jsonb_to_recordset(%(steps)s::jsonb) AS x(id uuid, status text, phase text, action jsonb, output jsonb,
     error jsonb, pending int, wins int, failures int, callbacks text[], timeout_s float8, wake_s float8)
   WHERE st.id = %(step)s AND st.id = x.id AND st.trace_id = t.id AND st.tenant_id = t.tenant_id)""",
    "new_steps": """ns AS (INSERT INTO mesh.steps (id, tenant_id, trace_id, after_step_id, ordinal, node, iteration, kind,
     phase, status, require, need, slots, pending, queue, agent, priority, callbacks, action, group_of, waits_for,
     state, started_at, deadline, rung_at, wake_at, mem_seq)
   SELECT x.id, t.tenant_id, t.id, x.after_step_id, x.ordinal, x.node, x.iteration, x.kind, x.phase,
     CASE WHEN x.kind <> 'group' AND x.waits_for IS NULL AND t.paused_at IS NOT NULL THEN 'ready' ELSE x.status END,
     x.require, x.need, x.slots, x.pending, t.queue, t.agent, t.priority, x.callbacks, x.action, x.group_of, x.waits_for,
     nullif(t.state, '{}'),
     CASE WHEN x.status <> 'ready' AND t.worker_id IS NOT NULL THEN mesh.mesh_now() END,
     CASE WHEN x.status = 'running' AND t.worker_id IS NOT NULL
       THEN mesh.mesh_now() + make_interval(secs => x.timeout_s) END,
     CASE WHEN x.status = 'ready' THEN mesh.mesh_now() END,
     coalesce(x.wake_at::timestamptz, mesh.mesh_now() + make_interval(secs => x.wake_s)),
     coalesce((SELECT c.mem_seq FROM mesh.contexts c WHERE c.tenant_id = t.tenant_id AND c.id = t.context_id), 0)
   FROM t, jsonb_to_recordset(%(new_steps)s::jsonb) AS x(id uuid, node text, kind text, status text, iteration int,
     ordinal int, after_step_id uuid, phase text, require text, need int, slots int, pending int, callbacks text[],
     action jsonb, timeout_s float8, group_of uuid, wake_s float8, wake_at text, waits_for text))""",
    "calls": """c AS (UPDATE mesh.calls cl SET
    status = CASE WHEN x.status = 'running' AND t.worker_id IS NULL THEN 'ready' ELSE x.status END,
    result = coalesce(x.result, cl.result), error = coalesce(x.error, cl.error),
    failures = cl.failures + x.failed::int, n = cl.n + (x.status = 'running' AND t.worker_id IS NOT NULL)::int,
    epoch = cl.epoch + (x.status IN ('ready', 'cancelled'))::int,
    worker_id = CASE WHEN x.status = 'running' THEN t.worker_id END,
    child = CASE WHEN x.status = 'running' THEN t.child END,
    deadline = CASE WHEN x.status = 'running' AND t.worker_id IS NOT NULL
      THEN mesh.mesh_now() + make_interval(secs => cl.timeout_s) END,
    wake_at = CASE WHEN x.status = 'ready' THEN mesh.mesh_now() + make_interval(secs => x.wake_s) END,
    rung_at = CASE WHEN x.status = 'ready' AND x.wake_s IS NULL THEN mesh.mesh_now() END,
    ended_at = CASE WHEN x.status IN ('done', 'failed', 'cancelled') THEN mesh.mesh_now() END
   FROM t, jsonb_to_recordset(%(calls)s::jsonb) AS x(id uuid, epoch int, status text, result jsonb, error jsonb,
     failed boolean, wake_s float8)
   WHERE cl.id = x.id AND cl.step_id = %(step)s AND cl.tenant_id = t.tenant_id AND cl.epoch = x.epoch
     AND cl.status IN ('running', 'held', 'ready'))""",
    "new_calls": """nc AS (INSERT INTO mesh.calls (id, tenant_id, trace_id, step_id, group_id, slot, idx, slot_size, slot_mode,
     tool, label, args, needs, effect, inline, status, queue, task, priority, idem_key, timeout_s, max_attempts, max_losses,
     backoff_s, backoff_cap_s, limited, kind, child_trace_id, compensate, n,
     worker_id, child, deadline, rung_at)
   SELECT x.id, t.tenant_id, t.id, x.step_id, x.group_id, x.slot, x.idx, x.slot_size, x.slot_mode, x.tool, x.label, x.args,
     x.needs, x.effect, x.inline, CASE WHEN t.paused_at IS NOT NULL AND x.kind = 'tool' THEN 'held' ELSE x.status END,
     x.queue, x.task, x.priority, x.idem_key, x.timeout_s, x.max_attempts, x.max_losses, x.backoff_s,
     x.backoff_cap_s, x.limited, x.kind, x.child_trace_id, x.compensate,
     (x.status = 'running' AND t.worker_id IS NOT NULL)::int,
     CASE WHEN x.status = 'running' THEN t.worker_id END, CASE WHEN x.status = 'running' THEN t.child END,
     CASE WHEN x.status = 'running' AND t.worker_id IS NOT NULL
       THEN mesh.mesh_now() + make_interval(secs => x.timeout_s) END,
     CASE WHEN x.status = 'ready' AND t.paused_at IS NULL THEN mesh.mesh_now() END
   FROM t, jsonb_to_recordset(%(new_calls)s::jsonb) AS x(id uuid, step_id uuid, group_id uuid, slot int, idx int, slot_size int,
     slot_mode text, tool text, label text, args jsonb, needs text[], effect text, inline boolean, status text,
     queue text, task text, priority smallint, idem_key text, timeout_s float8, max_attempts int, max_losses int,
     backoff_s float8, backoff_cap_s float8, limited boolean, kind text, child_trace_id uuid, compensate text))""",
    "attempts": """a AS (UPDATE mesh.attempts at SET ended_at = mesh.mesh_now(), outcome = x.outcome, error = x.error,
     log = x.log
   FROM t, jsonb_to_recordset(%(attempts)s::jsonb) AS x(id uuid, outcome text, error jsonb, log jsonb)
   WHERE at.id = x.id AND at.step_id = %(step)s AND at.tenant_id = t.tenant_id AND at.outcome IS NULL)""",
    "new_attempts": """na AS (INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, kind, n, epoch, worker_id, child)
   SELECT x.id, t.tenant_id, t.id, x.step_id, x.kind, x.n, x.epoch, t.worker_id, t.child
   FROM t, jsonb_to_recordset(%(new_attempts)s::jsonb) AS x(id uuid, step_id uuid, kind text, n int, epoch int)
   WHERE t.worker_id IS NOT NULL)""",
    "ran": """ra AS (INSERT INTO mesh.attempts (id, tenant_id, trace_id, step_id, call_id, kind, n, epoch, worker_id, child,
     idem_key, started_at, ended_at, outcome, error, log)
   SELECT x.id, t.tenant_id, t.id, cl.step_id, cl.id, 'tool', cl.n, cl.epoch, cl.worker_id, cl.child, cl.idem_key,
     cl.deadline - make_interval(secs => cl.timeout_s), mesh.mesh_now(), x.outcome, x.error, x.log
   FROM t, jsonb_to_recordset(%(ran)s::jsonb) AS x(id uuid, call_id uuid, outcome text, error jsonb, log jsonb)
     JOIN mesh.calls cl ON cl.id = x.call_id
   WHERE cl.step_id = %(step)s AND cl.tenant_id = t.tenant_id AND cl.status = 'running')""",
    "events": """e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, step_id, call_id, body)
   SELECT t.id, t.base + x.n, t.tenant_id, x.name, x.step_id, x.call_id, coalesce(x.body, '{}')
   FROM t, jsonb_to_recordset(%(events)s::jsonb) AS x(n int, name text, step_id uuid, call_id uuid, body jsonb))""",
    "effects": """f AS (INSERT INTO mesh.effects (step_id, name, tenant_id, trace_id)
   SELECT x.step_id, x.name, t.tenant_id, t.id
   FROM t, jsonb_to_recordset(%(effects)s::jsonb) AS x(step_id uuid, name text))""",
    "letters": """dl AS (INSERT INTO mesh.dead_letters (id, tenant_id, trace_id, step_id, code, fingerprint, evidence)
   SELECT x.id, t.tenant_id, t.id, x.step_id, x.code, x.fingerprint, x.evidence
   FROM t, jsonb_to_recordset(%(letters)s::jsonb) AS x(id uuid, step_id uuid, code text, fingerprint text, evidence jsonb))""",
    "memory": INSERT_SHORT_TERM,
    "children": INSERT_CHILDREN,
    "deliveries": INSERT_DELIVERIES,
}
"""Each part reads `t`, and the parameter of its own name."""


@lru_cache(maxsize=64)
def statement(parts: tuple[str, ...], *, begins: bool = False) -> str:
    """The statement for a change that has these parts; it returns kept and epoch where it won."""
    head = BEGUN if begins else TRACE
    return ",\n".join([head, *(PARTS[part] for part in parts)]) + "\nSELECT worker_id IS NOT NULL AS kept, epoch FROM t"
