-- What the tables need and SQLAlchemy does not declare: time, the default partition, the audit guard.
-- Tests may replace the two time functions; everything else asks them for the time.
CREATE SCHEMA IF NOT EXISTS mesh;

CREATE FUNCTION mesh.mesh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';
CREATE FUNCTION mesh.mesh_asof() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT statement_timestamp()';
