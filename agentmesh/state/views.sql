-- Schema `inv`: our tables under the names that invariants.sql reads. A schema change edits these, never the checks.
CREATE SCHEMA inv;

CREATE VIEW inv.envelopes AS SELECT id::text, tenant_id, trace_id::text, idem_key FROM mesh.envelopes;

CREATE VIEW inv.traces AS SELECT id::text, tenant_id, context_id, parent_id::text, status, epoch, worker_id::text,
  permissions, created_at, rung_at, wake_at, waits_for, coalesce(paused_at, CASE WHEN status = 'queued' THEN (SELECT a.paused_at
    FROM mesh.agents a WHERE a.tenant_id = t.tenant_id AND a.id = t.agent) END) AS paused_at, budget_limit, budget_spent, budget_held
  FROM mesh.traces t;

CREATE VIEW inv.contexts AS SELECT id, tenant_id FROM mesh.contexts;

CREATE VIEW inv.steps AS SELECT s.id::text, s.tenant_id, s.trace_id::text, s.after_step_id::text, s.node, s.iteration,
  CASE WHEN s.kind = 'group' AND s.status = 'waiting' THEN 'tools' ELSE s.kind END AS kind, s.status, s.require,
  s.pending - CASE WHEN s.kind = 'tools' AND s.status = 'waiting' THEN coalesce((SELECT sum(g.slots) FROM mesh.steps g
    WHERE g.trace_id = s.trace_id AND g.group_of = s.id AND g.status = 'waiting'), 0) ELSE 0 END AS pending, s.callbacks, s.epoch, NULL::text AS worker_id, s.created_at, s.rung_at,
  s.wake_at, t.paused_at
  FROM mesh.steps s LEFT JOIN mesh.traces t ON t.id = s.trace_id AND t.tenant_id = s.tenant_id;

CREATE VIEW inv.calls AS SELECT c.id::text, c.tenant_id, c.trace_id::text, coalesce(c.group_id, c.step_id)::text AS step_id, c.slot, c.tool, c.needs,
  c.effect, c.status, c.epoch, c.worker_id::text, c.max_attempts, c.created_at, c.rung_at, c.wake_at, t.paused_at
  FROM mesh.calls c LEFT JOIN mesh.traces t ON t.id = c.trace_id AND t.tenant_id = c.tenant_id WHERE c.kind = 'tool';

CREATE VIEW inv.attempts AS SELECT call_id::text, kind, n, epoch, worker_id::text, idem_key, started_at, ended_at, outcome
  FROM mesh.attempts WHERE kind IN ('tool', 'person');

CREATE VIEW inv.effects AS SELECT tenant_id, trace_id::text, step_id::text, name FROM mesh.effects;

CREATE VIEW inv.events AS SELECT trace_id::text, tenant_id, seq, name, step_id::text FROM mesh.events;

CREATE VIEW inv.memory AS SELECT tenant_id, context_id, type || ':' || CASE scope WHEN '' THEN key ELSE scope || '/' || key END
  AS key, version FROM mesh.memory;

CREATE VIEW inv.audit AS SELECT tenant_id, seq, prev, body, hash FROM mesh.audit WHERE seq IS NOT NULL;

CREATE VIEW inv.audit_heads AS SELECT tenant_id, seq, hash FROM mesh.audit_heads;

CREATE VIEW inv.ledger AS SELECT trace_id::text, kind, amount FROM mesh.ledger;

CREATE VIEW inv.workers AS SELECT id::text, beat_at FROM mesh.workers WHERE state = 'alive';
