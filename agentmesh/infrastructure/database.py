"""Connections to PostgreSQL: one pool a process, short transactions, a deadline of ours on every round trip.

SQLAlchemy owns engine and pool; the transitions run as prepared SQL on its driver connection. Connections are in
autocommit, so one statement is one round trip and one commit. Time limits stand on the database role (migrate puts
them there); a new connection asserts them, and that the server takes writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import orjson
import psycopg
import sqlalchemy as sa
from psycopg.rows import dict_row
from sqlalchemy import event
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.pool import NullPool

from agentmesh.errors import DatabaseNotMigrated, DatabaseUnreachable, PoolTimeout
from agentmesh.infrastructure import faults
from agentmesh.infrastructure.counts import round_trip

Row = dict[str, Any]
_PARAMETER = re.compile(r"%\((\w+)\)s")
_NUL = re.compile(r"(?<!\\)((?:\\\\)*+)\\u0000")
T = TypeVar("T")
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)

GONE = (psycopg.OperationalError, psycopg.InterfaceError)
"""How psycopg says that the server ended a session, or is not there at all."""

ROLE_SETTINGS = {
    "statement_timeout": "8s",
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "5s",
    "default_transaction_isolation": "read committed",
    "synchronous_commit": "on",
}
"""What migrate puts on our database role, and every new connection asserts."""


class _Watchdog:
    """Shuts the socket of a round trip that is overdue: keepalives and server time limits do not see a silent hole."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: a child has neither the parent's thread nor its round trips."""
        self._lock = threading.Lock()
        self._pending: dict[int, tuple[float, int]] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def enter(self, fd: int, seconds: float) -> int:
        key = threading.get_ident()
        with self._lock:
            self._pending[key] = (time.monotonic() + seconds, fd)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="database-deadlines", daemon=True)
                self._thread.start()
        return key

    def leave(self, key: int) -> None:
        with self._lock:
            self._pending.pop(key, None)

    def _loop(self) -> None:
        while not self._wake.wait(0.25):
            now = time.monotonic()
            with self._lock:
                overdue = [(key, fd) for key, (at, fd) in self._pending.items() if at < now]
                for key, fd in overdue:
                    del self._pending[key]
                    _shut(fd)


def _shut(fd: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as twin:
        twin.shutdown(socket.SHUT_RDWR)


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.reset)


class Connection(psycopg.Connection[Any]):
    """A psycopg connection whose every round trip ends within `deadline_s`."""

    deadline_s: float = 10.0
    greeted: bool = False  # faults are for what comes after the greeting

    def wait(self, gen: Generator[Any, Any, T], interval: float = 0.1) -> T:  # type: ignore[override]
        if self.pgconn.status != psycopg.pq.ConnStatus.OK:
            return super().wait(gen, interval)
        round_trip()
        key = _watchdog.enter(self.pgconn.socket, self.deadline_s)
        try:
            if not (self.greeted and faults.armed()):
                return super().wait(gen, interval)
            faults.sending(self)
            answer = super().wait(gen, interval)
            faults.answered(self, committed=self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE)
            return answer
        finally:
            _watchdog.leave(key)

    def shut(self) -> None:
        """Nothing passes its socket any more, and only its next use tells."""
        _shut(self.pgconn.socket)


class Server(NamedTuple):
    """Which server this is: a rescuer's own silence counts only on the same one."""

    started_at: str
    timeline: int


def driver_options(url: str) -> tuple[sa.URL, dict[str, Any]]:
    made = sa.make_url(url)
    if made.drivername in {"postgresql", "postgres"}:
        made = made.set(drivername="postgresql+psycopg")
    return made, {"connect_timeout": 5, "prepare_threshold": 1, "application_name": "agentmesh"}


class Tx:
    """One open transaction (or one autocommit statement): SQL in, rows out, named parameters."""

    __slots__ = ("connection",)

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def all(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        with self._run(sql, params) as cursor:
            result = cursor.pgresult  # not cursor.description, which makes an object of every column
            return cursor.fetchall() if result is not None and result.nfields else []

    def one(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        rows = self.all(sql, params)
        return rows[0] if rows else None

    def count(self, sql: str, params: Mapping[str, Any] | None = None) -> int:
        with self._run(sql, params) as cursor:
            return cursor.rowcount

    def number(self) -> int:
        """The number of the transaction that is open; a new one's, where none was."""
        return int(self.all("SELECT pg_current_xact_id()::text AS number")[0]["number"])

    def _run(self, sql: str, params: Mapping[str, Any] | None) -> psycopg.RawCursor[Row]:
        cursor = psycopg.RawCursor(self.connection, row_factory=dict_row)
        if params is None:
            return cursor.execute(sql)
        numbered, names = _numbered(sql)
        return cursor.execute(numbered, [params[name] for name in names])


@lru_cache(maxsize=1024)
def _numbered(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """The statement with $1, $2 … for its named parameters, and their names.

    psycopg would do so anew at every execution of what is longer than 4 KiB, as a commit's statement is.
    """
    names = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
    places = {name: f"${n}" for n, name in enumerate(names, 1)}
    return _PARAMETER.sub(lambda found: places[found[1]], sql).replace("%%", "%").encode(), names


def jsonb(value: object) -> str | None:
    """`value` as the text of a jsonb parameter; None stays SQL NULL.

    What users gave was checked where it came in. What is left (messages of exceptions, notes) must never make a write
    fail: a NUL or half of a surrogate pair, which PostgreSQL cannot hold, becomes a replacement character.
    """
    if value is None:
        return None
    try:
        text = orjson.dumps(value, default=str, option=orjson.OPT_PASSTHROUGH_DATETIME).decode()
    except TypeError:  # half of a surrogate pair, an integer that is too long
        text = _encoder.encode(value)
    if text.isascii() and "\\u0000" not in text:
        return text
    if "\\u0000" in text:
        text = _NUL.sub(r"\1\\ufffd", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode()
    return text


class Database:
    """The pool of one process. `begin()` for a transaction, `once` for a single statement that is its own."""

    def __init__(
        self, url: str, *, pool_size: int = 5, max_overflow: int = 5, pool_timeout_s: float = 5.0,
        deadline_s: float = 10.0, check_role: bool = True,
    ) -> None:  # fmt: skip
        self.url = url
        self._deadline_s = deadline_s
        self._check_role = check_role
        made, options = driver_options(url)
        self.engine = sa.create_engine(
            made,
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=pool_timeout_s,
            pool_use_lifo=True,
            pool_reset_on_return=None,  # in autocommit nothing is left open, and whoever begins also ends
            connect_args=options,
        )
        event.listen(self.engine, "do_connect", self._connect)
        event.listen(self.engine, "connect", self._greet)

    def _connect(self, _dialect: object, _record: object, args: list[Any], options: dict[str, Any]) -> Connection:
        connection = Connection.connect(*args, **options)
        connection.deadline_s = self._deadline_s
        return connection

    def _greet(self, connection: Connection, _record: object) -> None:
        connection.autocommit = True
        if self._check_role:
            _assert_role(connection)
        connection.greeted = True

    @contextlib.contextmanager
    def checkout(self) -> Iterator[Tx]:
        """A connection in autocommit: every statement commits by itself."""
        pool = self.engine.pool
        pooled = self._free(self.engine.raw_connection)
        driver = pooled.driver_connection
        try:
            if driver is None:
                raise DatabaseUnreachable("the pool gave no connection")
            yield Tx(driver)
        except psycopg.DatabaseError as exc:
            if driver is None or not _of_the_connection(exc):
                raise
            driver.close()
            raise psycopg.OperationalError(f"this connection is of no use any more: {exc}") from exc
        finally:
            broken = driver is not None and driver.closed
            current = pool is self.engine.pool
            if broken or not current:  # a pool that was disposed of would drop what comes back without closing it
                pooled.invalidate()
            pooled.close()
            if broken and current:
                self.engine.dispose()  # what ended this connection has most likely ended the idle ones too

    @contextlib.contextmanager
    def lend(self) -> Iterator[sa.Connection]:
        """A SQLAlchemy connection at read committed, for code that brings its own SQL."""
        pool = self.engine.pool
        with self._free(self.engine.connect) as connection:
            try:
                yield connection.execution_options(isolation_level="READ COMMITTED")
            finally:
                if pool is not self.engine.pool and not connection.closed:
                    connection.invalidate()

    def _free(self, connect: Callable[[], T]) -> T:
        """A connection of the pool. Raises PoolTimeout, DatabaseUnreachable."""
        try:
            return connect()
        except PoolExhausted as exc:
            raise PoolTimeout("no database connection became free in time") from exc
        except (*GONE, sa.exc.OperationalError, sa.exc.InterfaceError) as exc:
            raise unreachable(self.url, exc) from exc

    @contextlib.contextmanager
    def begin(self) -> Iterator[Tx]:
        """One transaction: committed at the end of the block, rolled back when it raises.

        psycopg.Rollback ends the block without an error, also where the connection is lost with the answer to ROLLBACK.
        """
        with contextlib.suppress(psycopg.Rollback), self.checkout() as tx, tx.connection.transaction():
            yield tx

    def once(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        """One statement in a transaction of its own."""
        with self.checkout() as tx:
            return tx.all(sql, params)

    def read(self, sql: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        """`once` for a statement that may as well run twice: a held connection that had died costs one more try.

        Raises DatabaseUnreachable.
        """
        try:
            return self.once(sql, params)
        except GONE:
            pass
        try:
            return self.once(sql, params)
        except GONE as exc:
            raise unreachable(self.url, exc) from exc

    def alone(self, *, deadline_s: float) -> Database:
        """A second handle with one connection of its own (beats, leadership), never starved by the pool."""
        return Database(
            self.url, pool_size=1, max_overflow=0, pool_timeout_s=deadline_s, deadline_s=deadline_s,
            check_role=self._check_role,
        )  # fmt: skip

    def after_fork(self) -> None:
        """Forget the parent's connections without closing them."""
        self.engine.dispose(close=False)

    def in_use(self) -> int:
        """How many connections of the pool somebody has now."""
        pool: Any = self.engine.pool
        return int(pool.checkedout())

    def close(self) -> None:
        self.engine.dispose()

    def ping(self) -> None:
        """Returns when the server answered; raises as every read does."""
        self.read("SELECT 1")

    def server(self) -> Server:
        row = self.once(
            "SELECT pg_postmaster_start_time()::text AS started_at, timeline_id AS timeline FROM pg_control_checkpoint()"
        )[0]
        return Server(row["started_at"], row["timeline"])


def _of_the_connection(exc: psycopg.DatabaseError) -> bool:
    """Whether nothing is wrong with the statement: a migration changed what this connection's prepared statements
    return, or the answer was no answer of PostgreSQL's."""
    return exc.diag.source_function == "RevalidateCachedQuery" or (
        type(exc) is psycopg.DatabaseError and exc.sqlstate is None
    )


def unreachable(url: str, exc: BaseException) -> DatabaseUnreachable:
    cause = getattr(exc, "orig", None) or exc
    line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return DatabaseUnreachable(f"the database does not answer: {line}", value=sa.make_url(url).render_as_string())


# the control file names the new timeline only after the checkpoint that follows a promotion
TIMELINE = """CASE WHEN NOT pg_is_in_recovery()
  THEN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END"""

_timelines: dict[int, int] = {}  # the newest that this process has seen of each system


def _assert_role(connection: Connection) -> None:
    """Raises DatabaseUnreachable for a standby, and for a server that a failover has replaced; DatabaseNotMigrated
    unless this session has the limits migrate put on its role."""
    names: Sequence[str] = list(ROLE_SETTINGS)
    with connection.cursor() as cursor:
        columns = ", ".join(f"current_setting('{name}')" for name in names)
        cursor.execute(f"SELECT {TIMELINE}, (SELECT system_identifier FROM pg_control_system()), {columns}")  # noqa: S608
        row = cursor.fetchone()
    if row is None or row[0] is None:
        raise DatabaseUnreachable("this PostgreSQL is a standby and takes no writes", expected="the primary")
    newest = _timelines[row[1]] = max(row[0], _timelines.get(row[1], 0))
    if row[0] < newest:
        raise DatabaseUnreachable("this PostgreSQL is on an older timeline: a failover has replaced it", value=row[0],
                                  expected=f"timeline {newest}, which was seen before")  # fmt: skip
    for name, seen in zip(names, row[2:], strict=True):
        if seen != ROLE_SETTINGS[name]:
            raise DatabaseNotMigrated(
                f"the database role lacks our setting {name}", value=seen, expected=ROLE_SETTINGS[name]
            )


def retry_transient(run: Callable[[], T], *, tries: int = 4) -> T:
    """`run()` again, as a whole, after a deadlock, a serialization failure or a lock time-out; jitter between tries."""
    for n in range(1, tries + 1):
        try:
            return run()
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable):
            if n == tries:
                raise
            threading.Event().wait(int.from_bytes(os.urandom(1), "big") / 255 * 0.05 * 2**n)
    raise AssertionError("unreachable")


def bare_engine(url: str) -> sa.Engine:
    """An engine without pool, checks or autocommit: for migrations, before the role has its settings."""
    made, options = driver_options(url)
    return sa.create_engine(made, poolclass=NullPool, connect_args=options)
