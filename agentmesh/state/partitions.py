"""The partitions of events: a week of trace ids each, made ahead of their time, dropped when no trace is left in them.

The default partition takes what fits in no other, and is kept empty by making the others in time: a new one is checked
against it under a lock. Whoever alters the table waits a moment only, so that nobody waits long behind him.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
import structlog

from agentmesh.infrastructure.database import Database, Tx

log = structlog.get_logger("agentmesh.partitions")

WEEK_MS = 7 * 86_400_000
AHEAD = 2  # weeks
MOMENT = "SET LOCAL lock_timeout = '500ms'"
BOUNDS = re.compile(r"FROM \((?:MINVALUE|'(?P<low>[0-9a-f-]+)')\) TO \('(?P<high>[0-9a-f-]+)'\)")

NOT_NOW = (
    psycopg.errors.LockNotAvailable, psycopg.errors.CheckViolation, psycopg.errors.DuplicateTable,
    psycopg.errors.InsufficientPrivilege, psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected,
)  # fmt: skip

LISTED = """
SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
 WHERE i.inhparent = 'mesh.events'::regclass AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'
"""

LEFT = "SELECT 1 FROM mesh.traces WHERE id >= %(low)s AND id < %(high)s LIMIT 1"


@dataclass(frozen=True, slots=True)
class Partition:
    """Events of the traces with low <= id < high; `low` None: of all before."""

    name: str
    low: UUID | None
    high: UUID

    def holds(self, trace_id: UUID) -> bool:
        return (self.low is None or self.low <= trace_id) and trace_id < self.high


def first_id(milliseconds: int) -> UUID:
    """The lowest UUIDv7 of this time since 1970, and the highest before it."""
    return UUID(f"{milliseconds:012x}{'0' * 20}")


def first_id_at(moment: datetime) -> UUID:
    return first_id(int(moment.timestamp() * 1000))


def listed(db: Database) -> list[Partition]:
    """Every partition but the default one, oldest first."""
    found = []
    for row in db.once(LISTED):
        bounds = BOUNDS.search(row["bounds"])
        if bounds is not None:
            low = bounds["low"]
            found.append(Partition(row["name"], UUID(low) if low else None, UUID(bounds["high"])))
    return sorted(found, key=lambda one: one.high)


def make_ahead(db: Database) -> list[str]:
    """Afterwards there are partitions for the next two weeks; the names of those made now.

    Where the table is busy or not ours, or rows of the time to come are in the way, that is logged, and left to the next look.
    """
    now = int(db.once("SELECT mesh.mesh_asof() AS now")[0]["now"].timestamp() * 1000)
    known = listed(db)
    begin = known[-1].high.int >> 80 if known else (now // WEEK_MS + 1) * WEEK_MS
    made: list[str] = []
    try:
        while begin < now + AHEAD * WEEK_MS:
            end = (begin // WEEK_MS + 1) * WEEK_MS
            made.append(_make(db, begin, end))
            begin = end
    except NOT_NOW as exc:
        log.warning("a partition of events was not made", error=str(exc).splitlines()[0])
    return made


def _make(db: Database, begin: int, end: int) -> str:
    name = f"events_{begin // 1000}"
    with db.begin() as tx:
        tx.count(MOMENT)
        tx.count(f"CREATE TABLE mesh.{name} (LIKE mesh.events INCLUDING DEFAULTS)")
        tx.count(
            f"ALTER TABLE mesh.events ATTACH PARTITION mesh.{name} FOR VALUES FROM ('{first_id(begin)}')"
            f" TO ('{first_id(end)}')"
        )
    return name


def drop(db: Database, one: Partition) -> bool:
    """True when the partition is gone with what was left in it; False while a trace of any tenant is, or it is busy."""
    bounds = {"low": one.low or UUID(int=0), "high": one.high}
    if db.once(LEFT, bounds):
        return False
    try:
        with db.begin() as tx:
            tx.count(MOMENT)
            tx.count(
                "LOCK TABLE ONLY mesh.events IN ACCESS EXCLUSIVE MODE"
            )  # as inserts do: the whole before its parts
            return _drop(tx, one, bounds)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.UndefinedTable) as exc:
        log.warning("a partition of events was not dropped", name=one.name, error=str(exc).splitlines()[0])
    return False


def _drop(tx: Tx, one: Partition, bounds: dict[str, UUID]) -> bool:
    """Whoever inserts a trace inserts its first event, too: behind our lock, in a later statement, all of them are seen."""
    if tx.all(LEFT, bounds):
        raise psycopg.Rollback
    tx.count(f"DROP TABLE mesh.{one.name}")
    return True
