-- Chains: variables of a trace, signals, timers of steps, calls that are child traces; stuck threads. Additive: workers of the release
-- before run on it.
ALTER TABLE mesh.traces ADD COLUMN state JSONB DEFAULT '{}' NOT NULL;

ALTER TABLE mesh.steps ADD COLUMN state JSONB;
ALTER TABLE mesh.calls ADD COLUMN limited BOOLEAN DEFAULT false NOT NULL, ADD COLUMN child_trace_id UUID,
  ADD COLUMN compensate TEXT;
ALTER TABLE mesh.calls DROP CONSTRAINT slot_mode_known;
ALTER TABLE mesh.calls ADD CONSTRAINT slot_mode_known CHECK (slot_mode IN ('all', 'first', 'each')) NOT VALID;
ALTER TABLE mesh.calls VALIDATE CONSTRAINT slot_mode_known;

CREATE TABLE mesh.signals (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	name TEXT NOT NULL,
	key TEXT,
	payload JSONB,
	sent_by TEXT NOT NULL,
	step_id UUID,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	CONSTRAINT signals_pkey PRIMARY KEY (id)
);
CREATE UNIQUE INDEX signals_key ON mesh.signals (trace_id, key) WHERE key IS NOT NULL;
CREATE INDEX signals_unread ON mesh.signals (trace_id, name, id) WHERE step_id IS NULL;

ALTER TABLE mesh.workers ADD COLUMN stuck INTEGER DEFAULT 0 NOT NULL;

CREATE INDEX steps_wake ON mesh.steps (wake_at) WHERE status = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX calls_owed ON mesh.calls (id) WHERE cancel_owed;
CREATE INDEX traces_held ON mesh.traces (id) WHERE status = 'held' AND waits_for = 'parent';
CREATE INDEX calls_next ON mesh.calls (step_id, slot) WHERE status = 'held' AND idx = 0 AND limited;

-- Limits of agents: the lane of a trace, and when it was given a place.
ALTER TABLE mesh.traces ADD COLUMN lane TEXT, ADD COLUMN admitted_at TIMESTAMP WITH TIME ZONE;
CREATE INDEX traces_next ON mesh.traces (tenant_id, agent, lane, priority DESC, id) WHERE status = 'held' AND waits_for = 'limit';
CREATE INDEX traces_lane ON mesh.traces (tenant_id, agent, lane) WHERE lane IS NOT NULL AND status IN ('queued', 'running', 'waiting');
CREATE INDEX traces_admitted ON mesh.traces (tenant_id, agent, lane, admitted_at DESC) WHERE admitted_at IS NOT NULL;
CREATE TABLE mesh.lanes (
	tenant_id TEXT NOT NULL,
	agent TEXT NOT NULL,
	key TEXT NOT NULL,
	looked_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	CONSTRAINT lanes_pkey PRIMARY KEY (tenant_id, agent, key)
) WITH (fillfactor = 70);

-- What begins by the clock.
CREATE TABLE mesh.schedules (
	tenant_id TEXT NOT NULL,
	id TEXT NOT NULL,
	agent TEXT NOT NULL,
	intent TEXT NOT NULL,
	context_id TEXT NOT NULL,
	payload JSONB DEFAULT '{}' NOT NULL,
	priority SMALLINT DEFAULT '5' NOT NULL,
	cron TEXT NOT NULL,
	timezone TEXT NOT NULL,
	missed TEXT NOT NULL,
	declared BOOLEAN DEFAULT false NOT NULL,
	next_at TIMESTAMP WITH TIME ZONE,
	fired_at TIMESTAMP WITH TIME ZONE,
	fired INTEGER DEFAULT '0' NOT NULL,
	error JSONB,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	CONSTRAINT schedules_pkey PRIMARY KEY (tenant_id, id),
	CONSTRAINT missed_known CHECK (missed IN ('skip', 'once', 'all'))
);
CREATE INDEX schedules_due ON mesh.schedules (next_at);

-- Agents that take no new work.
ALTER TABLE mesh.agents ADD COLUMN paused_at TIMESTAMP WITH TIME ZONE, ADD COLUMN paused_by TEXT;
CREATE OR REPLACE VIEW inv.traces AS SELECT id::text, tenant_id, context_id, parent_id::text, status, epoch, worker_id::text,
  permissions, created_at, rung_at, wake_at, waits_for, coalesce(paused_at, CASE WHEN status = 'queued' THEN (SELECT a.paused_at
    FROM mesh.agents a WHERE a.tenant_id = t.tenant_id AND a.id = t.agent) END) AS paused_at, budget_limit, budget_spent, budget_held
  FROM mesh.traces t;
