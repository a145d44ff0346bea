-- After the tables: the default partition of events, and an audit table that can only grow: who writes it, and who seals it.
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
