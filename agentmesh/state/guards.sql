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
