"""Bringing a database to this release's schema: `upgrade`, `status`, `check`.

Every revision is one SQL script, run by Alembic in a transaction of its own; a database that has nothing yet gets the
scripts at once, and Alembic is not even imported. One process upgrades at a time, the others wait. Workers run meanwhile:
a script waits for a table a moment only, lets everybody pass, and tries again. The limits every session of ours must
have are put on the database role here.

A script whose schema code of an earlier revision cannot live with says so: `COMMENT ON SCHEMA mesh IS 'needs revision
<revision>, agentmesh <version>'`. Older code then refuses to start.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
import structlog

from agentmesh.errors import DatabaseBusy, DatabaseNotMigrated, ReleaseTooOld
from agentmesh.infrastructure.database import ROLE_SETTINGS, bare_engine, unreachable
from agentmesh.infrastructure.faults import point

log = structlog.get_logger("agentmesh.migrate")

LOCK = 7_270_001  # one number for "agentmesh is migrating this database"
LOCK_WAIT = "2s"  # everybody who comes later waits as long
BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
PATIENCE_S = 300.0
NEEDS = re.compile(r"needs revision (\S+), agentmesh (\S+)")


def scripts() -> Path:
    """Where the revisions lie: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent.parent / "migrations"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "migrations"


def revisions(folder: Path | None = None) -> list[str]:
    """Every revision, oldest first; each has a script `sql/<revision>.sql`."""
    return sorted(path.stem for path in ((folder or scripts()) / "sql").glob("*.sql"))


def upgrade(url: str, folder: Path | None = None) -> list[str]:
    """Bring the database to the newest revision and put our limits on the role; the revisions that were applied.

    A second process waits for the first and finds nothing to do; what was cut short goes on where it was. Raises
    DatabaseUnreachable, and DatabaseBusy where a table is never free.
    """
    applied: list[str] = []
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            done = _next(url, folder or scripts())
        except BUSY as exc:
            said = str(exc).splitlines()[0]
            if time.monotonic() > end:
                raise DatabaseBusy("a table that the migration alters stayed locked", value=said,
                                   expected="no transaction that holds it for minutes") from exc  # fmt: skip
            log.warning("a table is busy; trying again", error=said)
            threading.Event().wait(random.uniform(0.2, 1.0))  # noqa: S311 - lets others pass
            continue
        if not done:
            return applied
        applied += done
        point("migrate.between")


def _next(url: str, folder: Path) -> list[str]:
    """What was applied now: every revision to an empty database, else the next one, nothing where it is the newest."""
    with _connection(url) as connection:
        _run(connection, "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0")
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        _run(connection, f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
        at = _revision(connection)
        todo = [one for one in revisions(folder) if at is None or one > at]
        if at is None:
            for one in todo:
                _run(connection, (folder / "sql" / f"{one}.sql").read_text())
            _run(connection, "CREATE TABLE mesh.alembic_version (version_num varchar(32) PRIMARY KEY)")
            connection.execute(sa.text("INSERT INTO mesh.alembic_version VALUES (:at)"), {"at": todo[-1]})
        elif todo:
            todo = todo[:1]
            _alembic(connection, folder, todo[0])
        _limit_role(connection)
    return todo


def status(url: str) -> dict[str, Any]:
    """The revision the database is at (None: not migrated), the newest one, what is missing, and what the database
    `needs`: the oldest revision, and release, whose code may run on it (None: any)."""
    with _connection(url) as connection:
        at = _revision(connection)
        said = connection.scalar(sa.text("SELECT obj_description(to_regnamespace('mesh'), 'pg_namespace')"))
    needs = NEEDS.match(said or "")
    missing = [one for one in revisions() if at is None or one > at]
    return {"at": at, "newest": revisions()[-1], "missing": missing, "needs": list(needs.groups()) if needs else None}


def require(url: str) -> None:
    """Raises DatabaseNotMigrated unless the database is at this release's revision or a later one, and ReleaseTooOld
    where that later one needs newer code."""
    seen = status(url)
    if seen["missing"]:
        raise DatabaseNotMigrated("the database is not migrated", value=seen["at"] or "nothing",
                                  expected=f"revision {seen['newest']}")  # fmt: skip
    if seen["needs"] is not None and seen["needs"][0] > seen["newest"]:
        revision, release = seen["needs"]
        raise ReleaseTooOld("this release is too old for the database", value=seen["newest"],
                            expected=f"agentmesh {release} or later, whose code knows revision {revision}")  # fmt: skip


@contextmanager
def _connection(url: str) -> Iterator[sa.Connection]:
    engine = bare_engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    except sa.exc.OperationalError as exc:
        raise unreachable(url, exc) from exc
    finally:
        engine.dispose()


def _revision(connection: sa.Connection) -> str | None:
    if connection.scalar(sa.text("SELECT to_regclass('mesh.alembic_version')")) is None:
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM mesh.alembic_version"))
    return found


def _run(connection: sa.Connection, script: str) -> None:
    driver = connection.connection.driver_connection
    if driver is not None:
        driver.execute(script)


def _alembic(connection: sa.Connection, folder: Path, revision: str) -> None:
    from alembic import command  # noqa: PLC0415 - 1.3 s to import, and only an older database needs it
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _limit_role(connection: sa.Connection) -> None:
    database = connection.scalar(sa.text("SELECT quote_ident(current_database())"))
    for name, value in ROLE_SETTINGS.items():
        _run(connection, f"ALTER ROLE CURRENT_USER IN DATABASE {database} SET {name} = '{value}'")
