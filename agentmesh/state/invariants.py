"""The shipped checks I1 to I12, as `doctor --deep`, the demo and every test run them.

Each is a query over the views of schema `inv` that returns the ids which break it. Reads only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

SCRIPT = Path(__file__).parent / "invariants.sql"
SMALL = 5_000  # events; with more, the checks read copies
AT_REST = frozenset({"I2", "I7"})  # what holds only while nobody works


class Check(NamedTuple):
    """One invariant: its number ("I4"), what it says, and the query for what breaks it."""

    number: str
    says: str
    query: str


def checks() -> list[Check]:
    """The twelve, in order."""
    found = re.findall(r"^-- (I\d+) ([^\n]*)\n(.*?)(?=^-- I\d|\Z)", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    return [Check(number, says, query.strip().rstrip(";")) for number, says, query in found]


def broken(url: str, *, quiet: bool = True, slack_s: float = 30.0) -> dict[str, list[str]]:
    """The ids that break each invariant, by its number; empty when all hold. One snapshot for all of them.

    `quiet` False leaves out what holds only at rest; `slack_s` is three leases. Raises psycopg.Error.
    """
    found: dict[str, list[str]] = {}
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("SET search_path = inv")
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.commit()
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        if connection.execute("SELECT 1 FROM events OFFSET %s LIMIT 1", (SMALL,)).fetchone():
            copy(connection)
        for check in checks():
            if not quiet and check.number in AT_REST:
                continue
            query = check.query.replace(":slack", f"interval '{slack_s:g} s'")
            rows = connection.execute(query.encode()).fetchall()
            if rows:
                found[check.number] = [str(row[0]) for row in rows]
        connection.rollback()
    return found


def copy(connection: psycopg.Connection[Any]) -> None:
    """Temporary tables in the place of the views: these show ids as text, which no index of ours can serve."""
    columns = connection.execute(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'inv'"
    ).fetchall()
    for view in sorted({view for view, _ in columns}):
        name = sql.Identifier(view)
        copied = sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT * FROM {}")
        connection.execute(copied.format(name, sql.Identifier("inv", view)))
        for column in (one for of, one in columns if of == view and (one == "id" or one.endswith("_id"))):
            connection.execute(sql.SQL("CREATE INDEX ON {} ({})").format(name, sql.Identifier(column)))
        connection.execute(sql.SQL("ANALYZE {}").format(name))
