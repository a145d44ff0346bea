"""Bringing a database to this release's schema: `upgrade`, `status`, `check`.

Every revision is one SQL script, run by Alembic; a database that has nothing yet gets the scripts at once, and Alembic
is not even imported. One process upgrades at a time, the others wait. The limits every session of ours must have are
put on the database role here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from agentmesh.errors import DatabaseNotMigrated
from agentmesh.infrastructure.database import ROLE_SETTINGS, bare_engine, unreachable

LOCK = 7_270_001  # one number for "agentmesh is migrating this database"


def scripts() -> Path:
    """Where the revisions lie: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent.parent / "migrations"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "migrations"


def revisions() -> list[str]:
    """Every revision, oldest first; each has a script `sql/<revision>.sql`."""
    return sorted(path.stem for path in (scripts() / "sql").glob("*.sql"))


def upgrade(url: str) -> list[str]:
    """Bring the database to the newest revision and put our limits on the role; the revisions that were applied.

    Raises DatabaseUnreachable. A second process waits for the first and finds nothing to do.
    """
    with _connection(url) as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        at = _revision(connection)
        todo = [one for one in revisions() if at is None or one > at]
        if at is None:
            for one in todo:
                _run(connection, (scripts() / "sql" / f"{one}.sql").read_text())
            _run(connection, "CREATE TABLE mesh.alembic_version (version_num varchar(32) PRIMARY KEY)")
            connection.execute(sa.text("INSERT INTO mesh.alembic_version VALUES (:at)"), {"at": todo[-1]})
        elif todo:
            _alembic(connection)
        _limit_role(connection)
    return todo


def status(url: str) -> dict[str, Any]:
    """The revision the database is at (None: not migrated), the newest one, and what is missing."""
    with _connection(url) as connection:
        at = _revision(connection)
    return {"at": at, "newest": revisions()[-1], "missing": [one for one in revisions() if at is None or one > at]}


def require(url: str) -> None:
    """Raises DatabaseNotMigrated unless the database is at this release's revision, or a later one."""
    seen = status(url)
    if seen["missing"]:
        raise DatabaseNotMigrated("the database is not migrated", value=seen["at"] or "nothing",
                                  expected=f"revision {seen['newest']}")  # fmt: skip


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


def _alembic(connection: sa.Connection) -> None:
    from alembic import command  # noqa: PLC0415 - 1.3 s to import, and only an older database needs it
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(scripts()))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _limit_role(connection: sa.Connection) -> None:
    database = connection.scalar(sa.text("SELECT quote_ident(current_database())"))
    for name, value in ROLE_SETTINGS.items():
        _run(connection, f"ALTER ROLE CURRENT_USER IN DATABASE {database} SET {name} = '{value}'")
