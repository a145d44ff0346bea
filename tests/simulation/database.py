"""The real database under the simulator: every round trip is a step, time is a row, and answers get lost.

A statement that commits by itself is now and then held open until others have had their turn, as a commit is that
waits for its disk: what the others do meanwhile meets its locks and does not see its rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus

from agentmesh.infrastructure.database import Connection, Database, Row, Tx
from agentmesh.state import announced, calls, contexts, dispatch, landing, leases, memory, rescue, rings, traces
from tests.simulation.stage import Stage, Stuck, Task

CLOCK = """
CREATE SCHEMA IF NOT EXISTS sim;
CREATE UNLOGGED TABLE IF NOT EXISTS sim.clock (at timestamptz NOT NULL) WITH (fillfactor = 10);
CREATE TABLE IF NOT EXISTS sim.booked (trace text NOT NULL, key text NOT NULL, attempt int NOT NULL, epoch int NOT NULL);
INSERT INTO sim.clock SELECT '2020-01-01' WHERE NOT EXISTS (SELECT 1 FROM sim.clock);
CREATE OR REPLACE FUNCTION mesh.mesh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT at FROM sim.clock';
CREATE OR REPLACE FUNCTION mesh.mesh_asof() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM sim.clock';
"""
OPTIONS = "-c synchronous_commit=off -c statement_timeout=60s -c lock_timeout=0 -c plan_cache_mode=force_generic_plan"

NAMES = {
    value: f"{module.__name__.rpartition('.')[2]}.{name.lower()}"
    for module in (announced, calls, contexts, dispatch, landing, leases, memory, rescue, rings, traces)
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str)
}


class Faults(Protocol):
    """What may happen to a round trip."""

    def lost(self, when: str) -> bool: ...
    def held(self) -> Callable[[], bool] | None: ...


class SimConnection(Connection):
    """A connection whose every round trip is a step of the task that makes it."""

    stage: Stage
    faults: Faults
    deadline_s = 60.0

    def wait(self, gen: Any, interval: float = 0.1) -> Any:
        task = self.stage.current
        if task is None or task.quiet:
            return super().wait(gen, interval)
        was = self.pgconn.transaction_status
        if not task.doomed and self.faults.lost("before"):
            gen.close()
            raise self._cut()
        done = self.stage.in_server(task, self.info.backend_pid, lambda: super(SimConnection, self).wait(gen, interval))
        now = self.pgconn.transaction_status
        task.connection = self if now in {TransactionStatus.INTRANS, TransactionStatus.INERROR} else None
        if was == TransactionStatus.IDLE and now == TransactionStatus.INTRANS:
            return done  # BEGIN
        if not task.doomed and self.faults.lost("after"):
            raise self._cut()
        if now == TransactionStatus.IDLE:
            task.wrapped = False
        name = "commit" if was != now else task.sql or "sql"
        self.stage.step(f"{name} (held)" if task.wrapped else name)
        return done

    # What the pool does when a connection comes back to it must not be interrupted: other workers use the same pool.

    def rollback(self) -> None:
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            with self.stage.quietly():
                super().rollback()

    def set_autocommit(self, value: bool) -> None:
        with self.stage.quietly():
            super().set_autocommit(value)

    def set_isolation_level(self, value: Any) -> None:
        with self.stage.quietly():
            super().set_isolation_level(value)

    def _cut(self) -> psycopg.OperationalError:
        task, pid = self.stage.current, self.info.backend_pid
        self.close()
        if task is not None and task.connection is not None:
            task.connection = None
            self.stage.gone(pid)  # or its locks would end at a moment of their own
        return psycopg.OperationalError("the connection was cut by the simulation")


class SimTx(Tx):
    """Names its statements, and holds some of them open; rows that come in no order come in the same one always."""

    __slots__ = ("_db",)

    def __init__(self, connection: Any, db: SimDatabase) -> None:
        super().__init__(connection)
        self._db = db

    def all(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        found = self._play(sql, lambda: super(SimTx, self).all(sql, params))
        if len(found) > 1 and "ORDER BY" not in sql.rpartition(")")[2]:
            found.sort(key=lambda row: (str(row.get("kind", "")), str(row.get("id", ""))))
        return found

    def count(self, sql: str, params: Mapping[str, Any] | None = None) -> int:
        return self._play(sql, lambda: super(SimTx, self).count(sql, params))

    def _play(self, sql: str, run: Callable[[], Any]) -> Any:
        task = self._db.stage.current
        if task is None:
            return run()
        alone = self.connection.pgconn.transaction_status == TransactionStatus.IDLE
        while True:
            try:
                return self._once(task, sql, run)
            except psycopg.errors.QueryCanceled:
                before, task.behind = task.behind, None
                if before is None or not alone or task.doomed:
                    raise
                self._db.stage.wait_until(lambda before=before: before.blocked_at is None, f"{task.sql} (again)")

    def _once(self, task: Task, sql: str, run: Callable[[], Any]) -> Any:
        task.sql = NAMES.get(sql) or ("landing.commit" if "AS base" in sql else " ".join(sql.split()[:3]))
        alone = self.connection.pgconn.transaction_status == TransactionStatus.IDLE
        over = self._db.faults.held() if alone and not task.quiet and not task.doomed else None
        if over is None:
            return run()
        try:
            with self.connection.transaction():
                task.wrapped = True
                done = run()
                self._db.stage.wait_until(over, f"{task.sql} (commits)")
                return done
        finally:
            task.wrapped = False


class SimDatabase(Database):
    """The one pool of a simulation; every worker of it uses this object."""

    def __init__(self, url: str, stage: Stage, faults: Faults) -> None:
        made = sa.make_url(url).update_query_dict({"options": OPTIONS}).render_as_string(hide_password=False)
        super().__init__(made, pool_size=40, max_overflow=0, deadline_s=60, check_role=False)
        self.stage, self.faults = stage, faults
        self._class = type("Here", (SimConnection,), {"stage": stage, "faults": faults})

    def _connect(self, _dialect: object, _record: object, args: list[Any], options: dict[str, Any]) -> Connection:
        connection: Connection = self._class.connect(*args, **options)
        return connection

    def _free(self, connect: Callable[[], Any]) -> Any:
        with self.stage.quietly():
            return super()._free(connect)

    @contextlib.contextmanager
    def checkout(self) -> Iterator[Tx]:
        pooled = self._free(self.engine.raw_connection)
        driver = pooled.driver_connection
        if not driver.autocommit or driver.pgconn.transaction_status != TransactionStatus.IDLE:
            raise Stuck("a connection came back to the pool as it should not")
        try:
            yield SimTx(driver, self)
        finally:
            if driver.closed:
                pooled.invalidate()
            pooled.close()

    def alone(self, *, deadline_s: float) -> Database:
        return self

    def close(self) -> None:
        """Shared: closed with the simulation."""
