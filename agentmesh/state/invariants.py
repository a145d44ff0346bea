"""The shipped checks I1 to I12, as `doctor --deep`, the demo and every test run them.

Each is a query over the views of schema `inv` that returns the ids which break it. Reads only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import psycopg

SCRIPT = Path(__file__).parent / "invariants.sql"
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
    """The ids that break each invariant, by its number; empty when all hold.

    `quiet` False leaves out what holds only at rest; `slack_s` is three leases. Raises psycopg.Error.
    """
    found: dict[str, list[str]] = {}
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("SET search_path = inv")
        for check in checks():
            if not quiet and check.number in AT_REST:
                continue
            query = check.query.replace(":slack", f"interval '{slack_s:g} s'")
            rows = connection.execute(query.encode()).fetchall()
            if rows:
                found[check.number] = [str(row[0]) for row in rows]
    return found
