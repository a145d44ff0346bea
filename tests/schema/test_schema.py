"""The migrated schema equals the declared one, line by line of the catalog, whichever way it came about."""

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from agentmesh.errors import ReleaseTooOld
from agentmesh.infrastructure import migrate
from agentmesh.state import catalog
from agentmesh.state.tables import metadata

STATE = Path(catalog.__file__).parent
SNAPSHOT = Path(__file__).with_name("v1.sql")
SCRIPT = migrate.scripts() / "sql" / "0001_first.sql"


@pytest.fixture
def make_database(postgres):
    """make_database() -> the URL of an empty database."""
    from uuid import uuid4

    made = []

    def make():
        name = f"amtest_{uuid4().hex[:12]}"
        with psycopg.connect(postgres, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        made.append(name)
        return sa.make_url(postgres).set(database=name).render_as_string(hide_password=False)

    yield make
    with psycopg.connect(postgres, autocommit=True) as admin:
        for name in made:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def lines(url):
    with psycopg.connect(url) as connection:
        return catalog.lines(connection)


def declare(url):
    """The schema as tables.py and the three scripts beside it declare it, without any migration."""
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        run = connection.connection.driver_connection.execute
        run((STATE / "functions.sql").read_text())
        metadata.create_all(connection)
        run((STATE / "guards.sql").read_text())
        run((STATE / "views.sql").read_text())
    engine.dispose()


def differences(one, other):
    return sorted(set(one) - set(other)), sorted(set(other) - set(one))


@pytest.fixture(scope="module")
def migrated(postgres, template):
    return lines(sa.make_url(postgres).set(database=template).render_as_string(hide_password=False))


def test_the_migrated_schema_is_the_declared_one_both_ways(make_database, migrated):
    url = make_database()
    declare(url)
    assert differences(lines(url), migrated) == ([], [])
    assert len(migrated) > 250


def test_alembic_on_an_empty_database_arrives_at_the_same(make_database, migrated):
    url = make_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA mesh")  # where alembic keeps its version
    made = sa.make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    code = (
        "from alembic import command; from alembic.config import Config; c = Config();"
        f"c.set_main_option('script_location', {str(migrate.scripts())!r}); command.upgrade(c, 'head')"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env=os.environ | {"AGENTMESH_DATABASE_URL": made}
    )
    assert differences(lines(url), migrated) == ([], [])
    assert migrate.status(url)["missing"] == []


def test_the_first_schema_stays_what_it_was_released_as(make_database, migrated):
    url = make_database()
    with psycopg.connect(url) as connection:
        connection.execute(SNAPSHOT.read_text())
        for later in migrate.revisions()[1:]:
            connection.execute((SCRIPT.parent / f"{later}.sql").read_text())
    assert differences(lines(url), migrated) == ([], [])
    assert SNAPSHOT.read_text() == SCRIPT.read_text()


# --- the release before on the newest schema

RELEASED = sorted(
    path.name.removesuffix(".statements.json.gz") for path in SNAPSHOT.parent.glob("*.statements.json.gz")
)


@pytest.mark.parametrize("released", RELEASED)
def test_f30_every_statement_that_a_release_was_seen_to_send_is_understood(own_database, released):
    """Recorded from its workers and producers: the statement as it was prepared, and the types of its parameters."""
    recorded = json.loads(gzip.decompress(SNAPSHOT.with_name(f"{released}.statements.json.gz").read_bytes()))
    refused = []
    with psycopg.connect(own_database, autocommit=True) as connection:
        types = dict(connection.execute("SELECT oid::int, oid::regtype::text FROM pg_type").fetchall())
        for n, (statement, oids) in enumerate(recorded):
            given = ", ".join(types.get(oid, "unknown") for oid in oids)
            try:
                connection.execute(f"PREPARE s{n}{f' ({given})' if given else ''} AS {statement}")
            except psycopg.Error as exc:
                refused.append((statement, str(exc)))
    assert refused == []
    assert len(recorded) > 50


def test_f30_what_a_later_revision_adds_to_a_table_needs_no_value_of_older_code(make_database, own_database):
    columns = """SELECT table_name, column_name, is_nullable = 'YES' OR column_default IS NOT NULL
      FROM information_schema.columns WHERE table_schema = 'mesh'"""
    url = make_database()
    with psycopg.connect(url) as first, psycopg.connect(own_database) as newest:
        first.execute(SNAPSHOT.read_text())
        before = {(table, column) for table, column, _ in first.execute(columns)}
        after = {(table, column): free for table, column, free in newest.execute(columns)}
    assert before - after.keys() == set()
    tables = {table for table, _ in before}
    assert [key for key, free in after.items() if key not in before and key[0] in tables and not free] == []


def test_f30_code_that_is_too_old_for_the_database_is_refused_and_told_what_it_needs(own_database):
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("COMMENT ON SCHEMA mesh IS 'needs revision 0001_first, agentmesh 0.1.0'")
        migrate.require(own_database)
        connection.execute("COMMENT ON SCHEMA mesh IS 'needs revision 9000_other, agentmesh 7.0.0'")
    with pytest.raises(ReleaseTooOld, match=r"agentmesh 7\.0\.0 or later"):
        migrate.require(own_database)


DRIFTS = [
    "ALTER TABLE mesh.calls DROP COLUMN progress_note",
    "ALTER TABLE mesh.calls ALTER COLUMN epoch DROP DEFAULT",
    "ALTER TABLE mesh.steps ALTER COLUMN pending DROP NOT NULL",
    "ALTER TABLE mesh.steps DROP CONSTRAINT countdown",
    "DROP INDEX mesh.steps_successor",
    "DROP INDEX mesh.calls_ready; CREATE INDEX calls_ready ON mesh.calls (queue, rung_at)",
    "ALTER TABLE mesh.traces ALTER COLUMN seq TYPE bigint",
    "CREATE OR REPLACE FUNCTION mesh.mesh_asof() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT now()'",
    "DROP TRIGGER audit_whole ON mesh.audit",
    "ALTER TABLE mesh.audit DISABLE TRIGGER audit_rows",
    "CREATE OR REPLACE VIEW inv.effects AS SELECT tenant_id, trace_id::text, step_id::text, name FROM mesh.effects WHERE false",
    "ALTER TABLE mesh.traces ADD COLUMN extra int",
    "ALTER TABLE mesh.calls RESET (fillfactor)",
    "ALTER TABLE mesh.envelopes DROP CONSTRAINT envelopes_trace_id_key",
]


def test_every_planted_drift_is_seen(own_database, migrated):
    unseen = []
    with psycopg.connect(own_database) as connection:
        connection.execute("ALTER TABLE mesh.calls ADD COLUMN progress_note text")
        before = set(catalog.lines(connection))
        connection.commit()
        for drift in DRIFTS:
            connection.execute(drift)
            if set(catalog.lines(connection)) == before:
                unseen.append(drift)
            connection.rollback()
    assert unseen == []
    assert len(DRIFTS) >= 8


def test_a_fresh_database_has_no_drift_and_a_changed_one_names_it(own_database):
    with psycopg.connect(own_database) as connection:
        assert catalog.drift(connection) == []
        connection.execute("DROP INDEX mesh.steps_successor")
        [missing] = catalog.drift(connection)
        assert "steps_successor" in missing
        connection.rollback()


# --- upgrading


def test_of_two_upgrades_at_once_one_runs_and_the_other_waits_and_finds_nothing_to_do(make_database):
    from agentmesh.testing import race

    url = make_database()
    applied = race(lambda: migrate.upgrade(url), lambda: migrate.upgrade(url))
    assert sorted(applied) == [[], migrate.revisions()]
    assert migrate.status(url)["missing"] == []


def test_an_upgrade_waits_for_the_one_that_holds_the_lock(make_database):
    from agentmesh.testing import until

    url = make_database()
    done = []
    with psycopg.connect(url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (migrate.LOCK,))
        thread = threading.Thread(target=lambda: done.append(migrate.upgrade(url)))
        thread.start()
        with psycopg.connect(url, autocommit=True) as other:
            until(
                lambda: other.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchall()
            )
        assert done == []
        holder.rollback()
    thread.join(timeout=20)
    assert done == [migrate.revisions()]


def test_a_second_upgrade_changes_nothing(own_database, migrated):
    assert migrate.upgrade(own_database) == []
    assert lines(own_database) == migrated


def test_an_upgrade_that_fails_leaves_nothing_behind(make_database, monkeypatch):
    url = make_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA inv")  # in the way of the last part of the script
    with pytest.raises(psycopg.errors.DuplicateSchema):
        migrate.upgrade(url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regclass('mesh.traces')").fetchone() == (None,)
    assert migrate.status(url)["at"] is None


def test_the_role_gets_its_limits_with_the_upgrade(own_database):
    from agentmesh.infrastructure.database import ROLE_SETTINGS

    with psycopg.connect(own_database) as connection:
        for name, value in ROLE_SETTINGS.items():
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == (value,)


# --- guards


@pytest.mark.parametrize("sql", [
    "UPDATE mesh.audit SET body = 'y'", "DELETE FROM mesh.audit", "TRUNCATE mesh.audit",
    "UPDATE mesh.audit SET seq = 2, body = 'y'",
])  # fmt: skip
def test_an_audit_row_cannot_be_changed_or_taken_away(own_database, sql):
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("INSERT INTO mesh.audit (id, tenant_id, body) VALUES (gen_random_uuid(), 'default', 'x')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(sql)


def test_an_audit_row_is_sealed_once(own_database):
    seal = "UPDATE mesh.audit SET seq = 1, prev = 'a', hash = 'b'"
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("INSERT INTO mesh.audit (id, tenant_id, body) VALUES (gen_random_uuid(), 'default', 'x')")
        connection.execute(seal)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(seal)
