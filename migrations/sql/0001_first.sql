-- What the tables need and SQLAlchemy does not declare: time, the default partition, the audit guard.
-- Tests may replace the two time functions; everything else asks them for the time.
CREATE SCHEMA IF NOT EXISTS mesh;

CREATE FUNCTION mesh.mesh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';
CREATE FUNCTION mesh.mesh_asof() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT statement_timestamp()';

CREATE TABLE mesh.agents (
	tenant_id TEXT NOT NULL,
	id TEXT NOT NULL,
	version TEXT NOT NULL,
	queue TEXT NOT NULL,
	plan_hash TEXT NOT NULL,
	intents TEXT[],
	accepts TEXT[] DEFAULT '{}' NOT NULL,
	spec JSONB DEFAULT '{}' NOT NULL,
	state TEXT DEFAULT 'idle' NOT NULL,
	announced_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (tenant_id, id)
);

CREATE TABLE mesh.attempts (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	step_id UUID NOT NULL,
	call_id UUID,
	kind TEXT NOT NULL,
	n INTEGER NOT NULL,
	epoch INTEGER NOT NULL,
	worker_id UUID,
	child INTEGER,
	idem_key TEXT,
	started_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	ended_at TIMESTAMP WITH TIME ZONE,
	outcome TEXT,
	error JSONB,
	progress JSONB,
	PRIMARY KEY (id),
	CONSTRAINT kind_known CHECK (kind IN ('tool', 'reason', 'callback', 'person')),
	CONSTRAINT outcome_known CHECK (outcome IN ('won', 'failed', 'timeout', 'lost', 'released', 'stale'))
)
 WITH (fillfactor = 70);

CREATE UNIQUE INDEX attempts_call ON mesh.attempts (call_id, n) WHERE call_id IS NOT NULL;

CREATE INDEX attempts_step ON mesh.attempts (step_id);

CREATE TABLE mesh.audit (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	body TEXT NOT NULL,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	seq BIGINT,
	prev BYTEA,
	hash BYTEA,
	PRIMARY KEY (id)
);

CREATE UNIQUE INDEX audit_chain ON mesh.audit (tenant_id, seq) WHERE seq IS NOT NULL;

CREATE INDEX audit_unsealed ON mesh.audit (id) WHERE seq IS NULL;

CREATE TABLE mesh.audit_heads (
	tenant_id TEXT NOT NULL,
	seq BIGINT NOT NULL,
	hash BYTEA NOT NULL,
	signature BYTEA,
	PRIMARY KEY (tenant_id, seq)
);

CREATE TABLE mesh.blobs (
	tenant_id TEXT NOT NULL,
	hash TEXT NOT NULL,
	body BYTEA NOT NULL,
	touched_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (tenant_id, hash)
);

CREATE TABLE mesh.calls (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	step_id UUID NOT NULL,
	group_id UUID,
	kind TEXT DEFAULT 'tool' NOT NULL,
	slot INTEGER DEFAULT '0' NOT NULL,
	idx INTEGER DEFAULT '0' NOT NULL,
	slot_size INTEGER DEFAULT '1' NOT NULL,
	slot_mode TEXT DEFAULT 'all' NOT NULL,
	tool TEXT NOT NULL,
	label TEXT NOT NULL,
	args JSONB DEFAULT '{}' NOT NULL,
	needs TEXT[] DEFAULT '{}' NOT NULL,
	effect TEXT DEFAULT 'repeatable' NOT NULL,
	inline BOOLEAN DEFAULT false NOT NULL,
	status TEXT NOT NULL,
	queue TEXT NOT NULL,
	task TEXT NOT NULL,
	priority SMALLINT DEFAULT '5' NOT NULL,
	idem_key TEXT NOT NULL,
	timeout_s FLOAT NOT NULL,
	max_attempts INTEGER DEFAULT '1' NOT NULL,
	backoff_s FLOAT DEFAULT '1' NOT NULL,
	backoff_cap_s FLOAT DEFAULT '300' NOT NULL,
	epoch INTEGER DEFAULT '1' NOT NULL,
	n INTEGER DEFAULT '0' NOT NULL,
	failures INTEGER DEFAULT '0' NOT NULL,
	losses INTEGER DEFAULT '0' NOT NULL,
	timeouts INTEGER DEFAULT '0' NOT NULL,
	max_losses INTEGER DEFAULT '3' NOT NULL,
	worker_id UUID,
	child INTEGER,
	claim_id UUID,
	result JSONB,
	error JSONB,
	cancel_owed BOOLEAN DEFAULT false NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	ended_at TIMESTAMP WITH TIME ZONE,
	deadline TIMESTAMP WITH TIME ZONE,
	rung_at TIMESTAMP WITH TIME ZONE,
	rings INTEGER DEFAULT '0' NOT NULL,
	wake_at TIMESTAMP WITH TIME ZONE,
	PRIMARY KEY (id),
	CONSTRAINT status_known CHECK (status IN ('held', 'ready', 'running', 'done', 'failed', 'cancelled')),
	CONSTRAINT slot_mode_known CHECK (slot_mode IN ('all', 'first')),
	CONSTRAINT effect_known CHECK (effect IN ('repeatable', 'keyed', 'once')),
	CONSTRAINT calls_place UNIQUE (step_id, slot, idx)
)
 WITH (fillfactor = 70);

CREATE INDEX calls_deadline ON mesh.calls (deadline) WHERE status = 'running';

CREATE INDEX calls_held_by ON mesh.calls (worker_id) WHERE worker_id IS NOT NULL;

CREATE INDEX calls_open ON mesh.calls (trace_id) WHERE status IN ('held','ready','running');

CREATE INDEX calls_ready ON mesh.calls (queue, rung_at) WHERE status = 'ready';

CREATE TABLE mesh.contexts (
	tenant_id TEXT NOT NULL,
	id TEXT NOT NULL,
	mem_seq BIGINT DEFAULT '0' NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (tenant_id, id)
)
 WITH (fillfactor = 70);

CREATE TABLE mesh.dead_letters (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID,
	step_id UUID,
	call_id UUID,
	code TEXT NOT NULL,
	fingerprint TEXT NOT NULL,
	evidence JSONB DEFAULT '{}' NOT NULL,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	settled_at TIMESTAMP WITH TIME ZONE,
	settled_as TEXT,
	settled_by TEXT,
	PRIMARY KEY (id),
	CONSTRAINT settled_as_known CHECK (settled_as IN ('retried', 'replaced', 'discarded'))
);

CREATE INDEX dead_letters_open ON mesh.dead_letters (tenant_id, id) WHERE settled_at IS NULL;

CREATE TABLE mesh.deliveries (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	step_id UUID,
	target TEXT NOT NULL,
	body JSONB DEFAULT '{}' NOT NULL,
	status TEXT DEFAULT 'ready' NOT NULL,
	tries INTEGER DEFAULT '0' NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	wake_at TIMESTAMP WITH TIME ZONE,
	error JSONB,
	PRIMARY KEY (id),
	CONSTRAINT status_known CHECK (status IN ('ready', 'running', 'done', 'failed'))
);

CREATE INDEX deliveries_due ON mesh.deliveries (wake_at) WHERE status = 'ready';

CREATE TABLE mesh.effects (
	step_id UUID NOT NULL,
	name TEXT NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (step_id, name)
);

CREATE TABLE mesh.envelopes (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	kid TEXT NOT NULL,
	jws TEXT NOT NULL,
	idem_key TEXT,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (id),
	UNIQUE (trace_id)
);

CREATE TABLE mesh.events (
	trace_id UUID NOT NULL,
	seq INTEGER NOT NULL,
	tenant_id TEXT NOT NULL,
	name TEXT NOT NULL,
	step_id UUID,
	call_id UUID,
	body JSONB DEFAULT '{}' NOT NULL,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (trace_id, seq)
)
 PARTITION BY RANGE (trace_id);

CREATE TABLE mesh.idempotency (
	tenant_id TEXT NOT NULL,
	operation TEXT NOT NULL,
	key TEXT NOT NULL,
	trace_id UUID NOT NULL,
	digest TEXT NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (tenant_id, operation, key)
);

CREATE TABLE mesh.keys (
	kid TEXT NOT NULL,
	tenant_id TEXT NOT NULL,
	owner TEXT NOT NULL,
	public BYTEA NOT NULL,
	grants TEXT[] DEFAULT '{}' NOT NULL,
	registered_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	revoked_at TIMESTAMP WITH TIME ZONE,
	PRIMARY KEY (kid)
);

CREATE TABLE mesh.leaders (
	name TEXT NOT NULL,
	worker_id UUID NOT NULL,
	term INTEGER DEFAULT '1' NOT NULL,
	until TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (name)
)
 WITH (fillfactor = 70);

CREATE TABLE mesh.ledger (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	kind TEXT NOT NULL,
	amount NUMERIC NOT NULL,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (id),
	CONSTRAINT kind_known CHECK (kind IN ('hold', 'release', 'spend'))
);

CREATE INDEX ledger_trace ON mesh.ledger (trace_id);

CREATE TABLE mesh.memory (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	context_id TEXT NOT NULL,
	type TEXT NOT NULL,
	scope TEXT DEFAULT '' NOT NULL,
	key TEXT NOT NULL,
	version INTEGER NOT NULL,
	value JSONB,
	deleted BOOLEAN DEFAULT false NOT NULL,
	trace_id UUID,
	step_id UUID,
	origin TEXT NOT NULL,
	trusted BOOLEAN DEFAULT false NOT NULL,
	mem_seq BIGINT,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	words TSVECTOR GENERATED ALWAYS AS (CASE WHEN type = 'long_term' THEN jsonb_to_tsvector('simple'::regconfig, value, '["string", "numeric"]'::jsonb) END) STORED,
	PRIMARY KEY (id),
	CONSTRAINT type_known CHECK (type IN ('short_term', 'long_term')),
	CONSTRAINT memory_version UNIQUE (tenant_id, context_id, type, scope, key, version)
);

CREATE INDEX memory_words ON mesh.memory USING gin (words) WHERE type = 'long_term';

CREATE TABLE mesh.plans (
	tenant_id TEXT NOT NULL,
	hash TEXT NOT NULL,
	chain TEXT NOT NULL,
	body JSONB DEFAULT '{}' NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (tenant_id, hash)
);

CREATE TABLE mesh.rewards (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	step_id UUID NOT NULL,
	reward FLOAT NOT NULL,
	body JSONB DEFAULT '{}' NOT NULL,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (id)
);

CREATE TABLE mesh.steps (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	trace_id UUID NOT NULL,
	after_step_id UUID,
	group_of UUID,
	ordinal INTEGER DEFAULT '0' NOT NULL,
	node TEXT NOT NULL,
	iteration INTEGER DEFAULT '1' NOT NULL,
	kind TEXT NOT NULL,
	phase TEXT DEFAULT 'run' NOT NULL,
	status TEXT NOT NULL,
	require TEXT,
	need INTEGER DEFAULT '0' NOT NULL,
	slots INTEGER DEFAULT '0' NOT NULL,
	pending INTEGER DEFAULT '0' NOT NULL,
	wins INTEGER DEFAULT '0' NOT NULL,
	queue TEXT NOT NULL,
	agent TEXT NOT NULL,
	priority SMALLINT DEFAULT '5' NOT NULL,
	epoch INTEGER DEFAULT '1' NOT NULL,
	failures INTEGER DEFAULT '0' NOT NULL,
	losses INTEGER DEFAULT '0' NOT NULL,
	callbacks TEXT[] DEFAULT '{}' NOT NULL,
	action JSONB,
	output JSONB,
	error JSONB,
	mem_seq BIGINT,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	started_at TIMESTAMP WITH TIME ZONE,
	ended_at TIMESTAMP WITH TIME ZONE,
	deadline TIMESTAMP WITH TIME ZONE,
	rung_at TIMESTAMP WITH TIME ZONE,
	rings INTEGER DEFAULT '0' NOT NULL,
	wake_at TIMESTAMP WITH TIME ZONE,
	waits_for TEXT,
	PRIMARY KEY (id),
	CONSTRAINT status_known CHECK (status IN ('ready', 'running', 'waiting', 'joined', 'done', 'failed', 'cancelled', 'superseded')),
	CONSTRAINT phase_known CHECK (phase IN ('run', 'callback')),
	CONSTRAINT countdown CHECK (pending >= 0 AND pending <= slots AND wins <= slots)
)
 WITH (fillfactor = 70);

CREATE INDEX steps_deadline ON mesh.steps (deadline) WHERE status = 'running';

CREATE INDEX steps_ready ON mesh.steps (queue, rung_at) WHERE status IN ('ready','joined');

CREATE UNIQUE INDEX steps_successor ON mesh.steps (trace_id, after_step_id, node, iteration) WHERE after_step_id IS NOT NULL AND status <> 'superseded';

CREATE INDEX steps_trace ON mesh.steps (trace_id, ordinal);

CREATE TABLE mesh.tools (
	tenant_id TEXT NOT NULL,
	id TEXT NOT NULL,
	version TEXT NOT NULL,
	queue TEXT NOT NULL,
	needs TEXT[] DEFAULT '{}' NOT NULL,
	effect TEXT NOT NULL,
	spec JSONB DEFAULT '{}' NOT NULL,
	announced_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (tenant_id, id)
);

CREATE TABLE mesh.traces (
	id UUID NOT NULL,
	tenant_id TEXT NOT NULL,
	context_id TEXT NOT NULL,
	parent_id UUID,
	root_id UUID NOT NULL,
	parent_call_id UUID,
	depth INTEGER DEFAULT '0' NOT NULL,
	agent TEXT NOT NULL,
	intent TEXT NOT NULL,
	from_id TEXT NOT NULL,
	locale TEXT,
	status TEXT NOT NULL,
	queue TEXT NOT NULL,
	priority SMALLINT DEFAULT '5' NOT NULL,
	permissions TEXT[] DEFAULT '{}' NOT NULL,
	plan_hash TEXT,
	agent_version TEXT,
	policy JSONB DEFAULT '{}' NOT NULL,
	payload JSONB,
	result JSONB,
	error JSONB,
	seq INTEGER DEFAULT '0' NOT NULL,
	steps INTEGER DEFAULT '0' NOT NULL,
	inbox INTEGER DEFAULT '0' NOT NULL,
	epoch INTEGER DEFAULT '1' NOT NULL,
	worker_id UUID,
	child INTEGER,
	claim_id UUID,
	commit_id UUID,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	started_at TIMESTAMP WITH TIME ZONE,
	ended_at TIMESTAMP WITH TIME ZONE,
	rung_at TIMESTAMP WITH TIME ZONE,
	rings INTEGER DEFAULT '0' NOT NULL,
	wake_at TIMESTAMP WITH TIME ZONE,
	deadline TIMESTAMP WITH TIME ZONE,
	waits_for TEXT,
	paused_at TIMESTAMP WITH TIME ZONE,
	cancelled_at TIMESTAMP WITH TIME ZONE,
	parent_owed BOOLEAN DEFAULT false NOT NULL,
	cancel_owed BOOLEAN DEFAULT false NOT NULL,
	budget_limit NUMERIC,
	budget_spent NUMERIC DEFAULT '0' NOT NULL,
	budget_held NUMERIC DEFAULT '0' NOT NULL,
	PRIMARY KEY (id),
	CONSTRAINT status_known CHECK (status IN ('held', 'queued', 'running', 'waiting', 'done', 'failed', 'cancelled'))
)
 WITH (fillfactor = 70);

CREATE INDEX traces_context ON mesh.traces (tenant_id, context_id);

CREATE INDEX traces_held_by ON mesh.traces (worker_id) WHERE worker_id IS NOT NULL;

CREATE INDEX traces_newest ON mesh.traces (tenant_id, id);

CREATE INDEX traces_owed ON mesh.traces (id) WHERE parent_owed OR cancel_owed;

CREATE INDEX traces_parent ON mesh.traces (parent_id) WHERE parent_id IS NOT NULL;

CREATE INDEX traces_ready ON mesh.traces (queue, rung_at) WHERE status = 'queued';

CREATE INDEX traces_wake ON mesh.traces (wake_at) WHERE wake_at IS NOT NULL AND status IN ('held','queued','running','waiting');

CREATE TABLE mesh.workers (
	id UUID NOT NULL,
	name TEXT NOT NULL,
	host TEXT NOT NULL,
	boot_id TEXT NOT NULL,
	pid_ns TEXT NOT NULL,
	pid INTEGER NOT NULL,
	pid_started BIGINT NOT NULL,
	state TEXT NOT NULL,
	queues TEXT[] DEFAULT '{}' NOT NULL,
	agents TEXT[] DEFAULT '{}' NOT NULL,
	tools TEXT[] DEFAULT '{}' NOT NULL,
	version TEXT NOT NULL,
	lease_s FLOAT NOT NULL,
	registered_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	beat_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (id),
	CONSTRAINT state_known CHECK (state IN ('alive', 'dead', 'gone'))
)
 WITH (fillfactor = 70);

CREATE INDEX workers_alive ON mesh.workers (beat_at) WHERE state = 'alive';

-- After the tables: the default partition of events, and an audit table that can only grow.
CREATE TABLE mesh.events_default PARTITION OF mesh.events DEFAULT;

CREATE FUNCTION mesh.audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND OLD.seq IS NULL AND NEW.seq IS NOT NULL
     AND (NEW.id, NEW.tenant_id, NEW.body, NEW.at) = (OLD.id, OLD.tenant_id, OLD.body, OLD.at) THEN
    RETURN NEW;  -- the sealer chains a row once
  END IF;
  RAISE EXCEPTION 'mesh.audit only grows: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER audit_rows BEFORE UPDATE OR DELETE ON mesh.audit FOR EACH ROW EXECUTE FUNCTION mesh.audit_only_grows();
CREATE TRIGGER audit_whole BEFORE TRUNCATE ON mesh.audit FOR EACH STATEMENT EXECUTE FUNCTION mesh.audit_only_grows();
REVOKE UPDATE, DELETE, TRUNCATE ON mesh.audit FROM PUBLIC;

-- Schema `inv`: our tables under the names that invariants.sql reads. A schema change edits these, never the checks.
CREATE SCHEMA inv;

CREATE VIEW inv.envelopes AS SELECT id::text, tenant_id, trace_id::text, idem_key FROM mesh.envelopes;

CREATE VIEW inv.traces AS SELECT id::text, tenant_id, context_id, parent_id::text, status, epoch, worker_id::text,
  permissions, created_at, rung_at, wake_at, waits_for, paused_at, budget_limit, budget_spent, budget_held
  FROM mesh.traces;

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
