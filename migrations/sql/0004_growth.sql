-- Growth: events in partitions by week, what a prune needs to find all that hangs on a trace, and what it took out.
CREATE INDEX signals_trace ON mesh.signals (trace_id);
CREATE INDEX deliveries_trace ON mesh.deliveries (trace_id);
CREATE INDEX dead_letters_trace ON mesh.dead_letters (trace_id);
CREATE INDEX rewards_trace ON mesh.rewards (trace_id);

CREATE TABLE mesh.prunings (
    id UUID NOT NULL,
    tenant_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    first_id UUID NOT NULL,
    last_id UUID NOT NULL,
    ids UUID[] NOT NULL,
    counts JSONB DEFAULT '{}' NOT NULL,
    archive TEXT,
    digest BYTEA,
    by TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT kind_known CHECK (kind IN ('traces', 'memory', 'letters', 'blobs', 'workers'))
);
CREATE INDEX prunings_ids ON mesh.prunings (tenant_id, first_id, last_id) WHERE kind = 'traces';

-- What there is becomes the first partition, up to the end of next week; the default one stays empty from now on.
DO $$
DECLARE
  week constant bigint := 7 * 86400000;
  upto text := lpad(to_hex(((extract(epoch FROM clock_timestamp()) * 1000)::bigint / week + 2) * week), 12, '0') || repeat('0', 20);
BEGIN
  IF to_regclass('mesh.events_first') IS NOT NULL THEN
    RETURN;  -- a downgrade leaves partitions as they are
  END IF;
  ALTER TABLE mesh.events DETACH PARTITION mesh.events_default;
  ALTER TABLE mesh.events_default RENAME TO events_first;
  ALTER INDEX mesh.events_default_pkey RENAME TO events_first_pkey;
  ALTER INDEX mesh.events_default_xid_idx RENAME TO events_first_xid_idx;
  EXECUTE format('ALTER TABLE mesh.events ATTACH PARTITION mesh.events_first FOR VALUES FROM (MINVALUE) TO (%L)', upto::uuid);
  CREATE TABLE mesh.events_default PARTITION OF mesh.events DEFAULT;
END $$;
