-- Chains: variables of a trace, signals, timers of steps, calls that are child traces; stuck threads; audit. Additive: workers of the release
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

-- Whoever looks for what a node last came to goes from node to node by this index.
DROP INDEX mesh.steps_successor;
CREATE UNIQUE INDEX steps_successor ON mesh.steps (trace_id, node, iteration, after_step_id) WHERE after_step_id IS NOT NULL AND status <> 'superseded';
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
	permissions TEXT[],
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

-- What a call has logged stands with its attempt.
ALTER TABLE mesh.attempts ADD COLUMN log JSONB;

-- How far other systems have read events: each carries the transaction that wrote it. Older ones have none, and are not told.
ALTER TABLE mesh.events ADD COLUMN xid BIGINT;
ALTER TABLE mesh.events ALTER COLUMN xid SET DEFAULT (pg_current_xact_id())::text::bigint;
CREATE INDEX events_written ON mesh.events USING brin (xid);
CREATE TABLE mesh.exports (
	name TEXT NOT NULL,
	xid BIGINT NOT NULL,
	trace_id UUID NOT NULL,
	seq INTEGER NOT NULL,
	at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	CONSTRAINT exports_pkey PRIMARY KEY (name)
);

-- Who dispatched, steered, decided and changed what: every order's event, and what other orders note, is an audit row of the
-- same transaction. Roles that only INSERT can write and seal; to change or take away a row nobody has a way.
CREATE FUNCTION mesh.audit_note(tenant text, action text, said jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  moment timestamptz := mesh.mesh_now();
  us bigint := (extract(epoch FROM moment) * 1000000)::bigint;
  id uuid := encode(overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(us / 1000) FROM 3)
    || substring(int4send(28672 + ((us % 1000) * 4096 / 1000)::int) FROM 3) FROM 1 FOR 8), 'hex')::uuid;  -- UUIDv7, in order within a ms
BEGIN
  INSERT INTO mesh.audit (id, tenant_id, at, body) VALUES (id, tenant, moment, (jsonb_strip_nulls(said) || jsonb_build_object(
    'id', id, 'tenant', tenant, 'action', action, 'at', to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))::text);
END $$;

CREATE FUNCTION mesh.audit_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM mesh.audit_note(NEW.tenant_id, NEW.name, jsonb_build_object('trace_id', NEW.trace_id, 'step_id', NEW.step_id,
    'by', coalesce(NEW.body->'by', NEW.body->'from'), 'key', NEW.body->'key', 'permission', NEW.body->'permission',
    'said', NEW.body - '{by,key,permission}'::text[]));
  RETURN NULL;
END $$;
CREATE TRIGGER events_audited AFTER INSERT ON mesh.events FOR EACH ROW
  WHEN (NEW.name = 'BIR_DISPATCH' OR NEW.name LIKE 'EXEC%' AND NEW.body ? 'by') EXECUTE FUNCTION mesh.audit_event();

-- The one way a row gets its number: in the order of their ids, each bound to the one before it. Returns how many were sealed.
CREATE FUNCTION mesh.audit_seal(most int) RETURNS int LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  one record; tenant text; n bigint; link bytea; sealed int := 0;
BEGIN
  IF NOT pg_try_advisory_xact_lock(7270002) THEN
    RETURN 0;  -- another is at it
  END IF;
  FOR one IN SELECT * FROM (SELECT a.id, a.tenant_id, a.body FROM mesh.audit a WHERE a.seq IS NULL ORDER BY a.id LIMIT most) x
      ORDER BY x.tenant_id, x.id LOOP
    IF tenant IS DISTINCT FROM one.tenant_id THEN
      tenant := one.tenant_id;
      SELECT a.seq, a.hash INTO n, link FROM mesh.audit a WHERE a.tenant_id = tenant AND a.seq IS NOT NULL ORDER BY a.seq DESC LIMIT 1;
      IF NOT FOUND THEN
        n := 0; link := sha256(convert_to(tenant, 'UTF8'));
      END IF;
    END IF;
    n := n + 1;
    UPDATE mesh.audit a SET seq = n, prev = link, hash = sha256(link || convert_to(one.body, 'UTF8'))
     WHERE a.id = one.id RETURNING a.hash INTO link;
    sealed := sealed + 1;
  END LOOP;
  RETURN sealed;
END $$;

CREATE FUNCTION mesh.anchors_only_grow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'mesh.audit_heads only grows: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER heads_whole BEFORE UPDATE OR DELETE OR TRUNCATE ON mesh.audit_heads FOR EACH STATEMENT EXECUTE FUNCTION mesh.anchors_only_grow();
REVOKE UPDATE, DELETE, TRUNCATE ON mesh.audit_heads FROM PUBLIC;
