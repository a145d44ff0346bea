"""What all schedules of one process share: a database, its connections and its clock, settings and keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg.rows import dict_row

from agentmesh.infrastructure.settings import load
from agentmesh.state.keys import KeyTable
from tests.simulation import history
from tests.simulation.database import CLOCK, SimDatabase
from tests.simulation.database import Faults as FaultsOf
from tests.simulation.history import History, Ran
from tests.simulation.stage import Stage
from tests.simulation.workload import Scripted

KEPT = {"mesh.alembic_version", "mesh.plans", "mesh.keys", "sim.clock"}


class Faults:
    """Asks the luck of the schedule that is played now."""

    luck: FaultsOf | None = None

    def lost(self, when: str) -> bool:
        """Whether the connection breaks now: `before` the server hears of it, or `after` it has done it."""
        return self.luck is not None and self.luck.lost(when)

    def held(self) -> Callable[[], bool] | None:
        """Whether this statement's commit takes its time: until this is true."""
        return None if self.luck is None else self.luck.held()


class Base:
    """What all schedules of a process share: a database of their own, its connections, settings and keys."""

    def __init__(self, url: str, root: Path) -> None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        self.url, self.root = url, root
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(CLOCK)
            for name in self.tables(connection):  # who waits for a vacuum waits at a moment of its own
                connection.execute(f"ALTER TABLE {name} SET (autovacuum_enabled = off)")
        self.stage, self.faults = Stage(url), Faults()
        self.db = SimDatabase(url, self.stage, self.faults)
        self.settings = load(flags={"database.url": url}, environ={}, cwd=root)
        self.script = Scripted()
        self.key_table = KeyTable(self.db, fresh_s=math.inf)
        self._admin = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self._time_s = -1.0
        self._emptied = 0
        with self.db.checkout(), self.db.lend():
            pass

    def close(self) -> None:
        self.stage.close()
        self._admin.close()
        self.db.engine.dispose()

    def rows(self, sql: str) -> list[dict[str, Any]]:
        cursor = self._admin.execute(sql)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def set_time(self, seconds: float) -> None:
        if seconds != self._time_s:
            self._time_s = seconds
            self._admin.execute(
                "UPDATE sim.clock SET at = timestamptz '2020-01-01 UTC' + make_interval(secs => %s)", (seconds,)
            )

    def empty(self) -> None:
        """No row is left of the schedule before; now and then dead rows are swept out."""
        names = self.tables(self._admin)
        deletes = ";".join(f"DELETE FROM {name}" for name in names if name not in KEPT)
        self.rows(
            f"SET session_replication_role = replica;{deletes};RESET session_replication_role"
        )  # past the audit's guard
        if self._emptied % 25 == 0:
            for name in names:
                self.rows(f"VACUUM ANALYZE {name}")
        self._emptied += 1
        self.set_time(0)

    @staticmethod
    def tables(connection: psycopg.Connection[Any]) -> list[str]:
        found = connection.execute(
            "SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname IN ('mesh', 'sim') AND c.relkind = 'r' ORDER BY 1"
        )
        return [row["name"] if isinstance(row, dict) else row[0] for row in found]

    def everything(self) -> list[str]:
        tables = ("traces", "steps", "calls", "attempts", "events", "effects", "memory", "contexts", "envelopes")
        return [
            row["row"] for name in tables for row in self.rows(f"SELECT t::text AS row FROM mesh.{name} t ORDER BY 1")
        ]

    def export(self, found: History) -> None:
        """The history as rows tell it, and what transactional tools wrote."""
        epoch = "extract(epoch FROM {} - timestamptz '2020-01-01 UTC')::float8"
        events = self.rows(f"SELECT trace_id, seq, name, step_id, call_id, body, {epoch.format('at')} AS at"
                           " FROM mesh.events ORDER BY trace_id, seq")  # fmt: skip
        attempts = self.rows(
            f"SELECT id, trace_id, step_id, call_id, kind, n, epoch, worker_id, idem_key, outcome,"
            f" {epoch.format('started_at')} AS started, {epoch.format('ended_at')} AS ended FROM mesh.attempts"
            " ORDER BY started_at, id"
        )
        found.events = [history.Event(**_text(row)) for row in events]
        found.attempts = [history.Attempt(**_text(row)) for row in attempts]
        found.ran += [
            Ran(0, "applied", row["trace"], "booked", row["key"], row["attempt"], row["epoch"], effect="tx")
            for row in self.rows("SELECT * FROM sim.booked")
        ]


def _text(row: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, UUID) else value for key, value in row.items()}
