"""F30: `db upgrade` under load, cut short, run by two at once, and from every schema that was ever released."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentmesh.infrastructure import migrate
from agentmesh.testing import until
from tests.faults.bench import Bench
from tests.faults.load import Load

SCHEMA = Path(__file__).parent.parent / "schema"
RELEASED = sorted(path.stem for path in SCHEMA.glob("v*.sql"))
GENERATED = {"words"}
TOMORROW = {
    "0900_wider": """
        ALTER TABLE mesh.traces ADD COLUMN of_tomorrow text;
        ALTER TABLE mesh.calls ADD COLUMN of_tomorrow jsonb DEFAULT '{}' NOT NULL;
        ALTER TABLE mesh.steps ADD COLUMN of_tomorrow int DEFAULT 0 NOT NULL;""",
    "0901_later": """
        CREATE TABLE mesh.tomorrow (id uuid PRIMARY KEY);
        ALTER TABLE mesh.attempts ADD COLUMN of_tomorrow text;
        ALTER TABLE mesh.workers ADD COLUMN of_tomorrow text;""",
}
REVISION = """
from pathlib import Path
from alembic import op
revision, down_revision = {name!r}, {before!r}
def upgrade():
    script = Path(__file__).parent.parent / "sql" / "{name}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())
"""
UPGRADE = """
import sys
from pathlib import Path
from agentmesh.infrastructure import migrate
print(migrate.upgrade(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.fixture
def tomorrow(tmp_path: Path) -> Path:
    """The migrations of a later release: two more revisions."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.scripts(), folder)
    before = migrate.revisions()[-1]
    for name, sql in TOMORROW.items():
        (folder / "sql" / f"{name}.sql").write_text(sql)
        (folder / "versions" / f"{name}.py").write_text(REVISION.format(name=name, before=before))
        before = name
    return folder


def upgrading(bench: Bench, folder: Path, faults: str = "") -> Any:
    """A process that upgrades the bench's database."""
    armed = {"AGENTMESH_TEST_FAULTS": faults} if faults else {}
    return bench.run(["-c", UPGRADE, bench.database_url, str(folder)], f"upgrade-{len(bench.processes)}", **armed)


class Waits:
    """The longest that anybody waited for a lock on a table, seen by looking every 50 ms."""

    def __init__(self, url: str) -> None:
        self.longest_s = 0.0
        self._url, self._over = url, threading.Event()

    def __enter__(self) -> Waits:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._over.wait(0.05):
                [(found,)] = connection.execute("""
                    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart)), 0)::float8 FROM pg_locks l
                     WHERE NOT l.granted AND l.locktype = 'relation'
                """).fetchall()  # fmt: skip
                self.longest_s = max(self.longest_s, found)


@contextmanager
def stranger(bench: Bench) -> Iterator[None]:
    """A report that reads the calls in one long transaction."""
    with psycopg.connect(bench.database_url) as connection:
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.execute("SELECT count(*) FROM mesh.calls")
        yield
        connection.rollback()


@pytest.mark.faults
def test_f30_an_upgrade_under_load_is_cut_short_and_completed_while_the_previous_release_works(
    make_bench: Any, tomorrow: Path
) -> None:
    bench: Bench = make_bench("redis")
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    with Load(bench) as load, Waits(bench.database_url) as waits:
        load.more()
        with stranger(bench):
            cut = upgrading(bench, tomorrow, "migrate.between=kill@1")
            until(lambda: waits.longest_s > 1, within=20, what="the upgrade waiting for the stranger")
            load.more(10)  # between two tries everybody passes
            assert cut.running
        assert cut.wait(60) == -9
        assert bench.value("SELECT version_num FROM mesh.alembic_version") == "0900_wider"
        load.more()
        both = [upgrading(bench, tomorrow) for _ in range(2)]
        assert [one.wait(60) for one in both] == [0, 0]
        load.more()
    assert sorted(one.text().splitlines()[-1] for one in both) == ["['0901_later']", "[]"]
    bench.settle()
    load.check()
    assert waits.longest_s < 2 + 1.5  # lock_timeout; a busy machine takes a little
    assert all(worker.running for worker in workers)
    migrate.require(bench.database_url)  # this release goes on, on the schema of the next


@pytest.mark.parametrize("released", RELEASED)
def test_f30_what_a_released_schema_had_open_is_finished_after_the_upgrade(make_bench: Any, released: str) -> None:
    bench: Bench = make_bench("redis")
    restore(bench, released)
    opened = bench.value("SELECT count(*) FROM mesh.traces WHERE status IN ('queued', 'running')")
    assert opened > 0
    migrate.upgrade(bench.database_url)
    bench.workers(("agents", "threads"), ("tools", "threads"))
    bench.settle()
    assert {status for _, status in bench.statuses()} == {"done", "cancelled"}


def restore(bench: Bench, released: str) -> None:
    """The bench's database is one of this release, as its workers left it when they were killed."""
    text = gzip.decompress((SCHEMA / f"{released}.rows.json.gz").read_bytes()).decode().replace("TAG", bench.tag)
    with psycopg.connect(bench.database_url) as connection:
        connection.execute("DROP SCHEMA mesh CASCADE; DROP SCHEMA inv CASCADE")
        connection.execute((SCHEMA / f"{released}.sql").read_text())
        at = migrate.revisions()[int(released[1:]) - 1]
        connection.execute("CREATE TABLE mesh.alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO mesh.alembic_version VALUES (%s)", (at,))
        for table, rows in json.loads(text):
            given = ", ".join(name for name in rows[0] if name not in GENERATED)
            connection.execute(
                f"INSERT INTO mesh.{table} ({given}) SELECT {given} FROM"
                f" jsonb_populate_recordset(NULL::mesh.{table}, %s::jsonb)", (json.dumps(rows),)
            )  # fmt: skip
        connection.execute(
            "INSERT INTO filed SELECT trace_id, idem_key FROM mesh.calls WHERE tool = 'filed' AND status = 'done'"
        )
        ran = connection.execute("""SELECT a.trace_id, c.tool, a.idem_key, a.n, a.epoch FROM mesh.attempts a
          JOIN mesh.calls c ON c.id = a.call_id WHERE a.kind = 'tool'""").fetchall()
    with psycopg.connect(bench.ledger_url, autocommit=True) as ledger:
        ledger.cursor().executemany(
            "INSERT INTO ran (kind, trace_id, name, idem_key, attempt, epoch) VALUES ('tool', %s, %s, %s, %s, %s)", ran
        )
