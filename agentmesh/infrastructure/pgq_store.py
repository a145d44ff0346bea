"""The SQL of the doorbell queue in PostgreSQL: messages that wait, and who is bound to which exchange.

Both tables are unlogged and belong to the broker: a crash of the server empties them, and the rescuer rings again.
Taking a message deletes it (at most once). A session belongs to the process that opened it and answers within its
deadline or fails. Nothing here knows kombu; the transport in communication/pgq.py does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from agentmesh.infrastructure.database import Connection

CHANNEL = "mq"
PRIORITIES = 10
DEADLINE_S = 3.0
UNSEEN_S = 120.0
"""How long a transient queue (replies, control, events) may go without its consumer saying that it lives."""

_LOCK = 0x6D71  # advisory, only while the tables are made: two CREATE IF NOT EXISTS at once can still collide

_TABLES = """
CREATE SCHEMA IF NOT EXISTS mq;
CREATE UNLOGGED TABLE IF NOT EXISTS mq.message (
  id bigint GENERATED ALWAYS AS IDENTITY,
  queue text NOT NULL,
  rank smallint NOT NULL,
  body text NOT NULL,
  put_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (queue, rank, id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0);
CREATE UNLOGGED TABLE IF NOT EXISTS mq.binding (
  exchange text NOT NULL,
  routing_key text NOT NULL,
  pattern text NOT NULL,
  queue text NOT NULL,
  transient boolean NOT NULL,
  seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (exchange, queue, routing_key)
);
"""

_PUT = """
WITH put AS (
  INSERT INTO mq.message (queue, rank, body)
  SELECT * FROM unnest(%(queues)s::text[], %(ranks)s::smallint[], %(bodies)s::text[]) RETURNING queue)
SELECT pg_notify('mq', queue) FROM (SELECT DISTINCT queue FROM put) AS rung
"""

_FAN_OUT = """
WITH put AS (
  INSERT INTO mq.message (queue, rank, body)
  SELECT DISTINCT queue, 0::smallint, %(body)s FROM mq.binding WHERE exchange = %(exchange)s RETURNING queue)
SELECT pg_notify('mq', queue) FROM put
"""

# one index scan a queue, so that a backlog in one is never sorted to serve another
_TAKE = """
WITH first AS MATERIALIZED (
  SELECT m.queue, m.rank, m.id FROM unnest(%(queues)s::text[]) AS wanted (name)
  CROSS JOIN LATERAL (
    SELECT queue, rank, id FROM mq.message WHERE queue = wanted.name ORDER BY rank, id
    LIMIT %(room)s FOR UPDATE SKIP LOCKED) AS m
  ORDER BY m.rank, m.id LIMIT %(room)s),
taken AS (
  DELETE FROM mq.message AS m USING first AS f
  WHERE (m.queue, m.rank, m.id) = (f.queue, f.rank, f.id) RETURNING m.rank, m.id, m.queue, m.body)
SELECT queue, body FROM taken ORDER BY rank, id
"""

_BIND = """
INSERT INTO mq.binding (exchange, routing_key, pattern, queue, transient)
SELECT * FROM unnest(%(exchanges)s::text[], %(keys)s::text[], %(patterns)s::text[], %(queues)s::text[],
                     %(transients)s::boolean[])
ON CONFLICT (exchange, queue, routing_key) DO UPDATE SET seen_at = excluded.seen_at
"""

# a message put between the two statements of a queue's end stays behind without a binding: the last branch finds it
_SWEEP = """
WITH dead AS (
  DELETE FROM mq.binding WHERE transient AND seen_at < statement_timestamp() - make_interval(secs => %(unseen_s)s)
  RETURNING queue)
DELETE FROM mq.message AS m
WHERE m.queue IN (SELECT queue FROM dead)
   OR (m.put_at < statement_timestamp() - make_interval(secs => %(unseen_s)s)
       AND m.queue ~ '(\\.pidbox$|^celeryev\\.)'
       AND NOT EXISTS (SELECT FROM mq.binding AS b WHERE b.queue = m.queue))
"""


class Put(NamedTuple):
    """A message for a queue. `priority` is ours: 0 to 9, 9 first."""

    queue: str
    priority: int
    body: str


class Binding(NamedTuple):
    """A queue's place in an exchange. A transient one is swept when its consumer is gone."""

    exchange: str
    routing_key: str
    pattern: str
    queue: str
    transient: bool


_inherited: list[Connection] = []  # of our parent: closing one here would end it there


class Session:
    """One connection to the queue, in autocommit. Raises psycopg.OperationalError when it is lost."""

    def __init__(self, dsn: str, *, listen: bool = False, deadline_s: float = DEADLINE_S) -> None:
        self._pid = os.getpid()
        self._connection = Connection.connect(
            dsn, autocommit=True, prepare_threshold=1, connect_timeout=max(2, int(deadline_s)),
            application_name="agentmesh-broker", options="-c synchronous_commit=off",
        )  # fmt: skip
        self._connection.deadline_s = deadline_s
        self._rung: set[str] = set()
        # notes also come in behind the answer to a statement, and psycopg hands those to a handler only
        self._connection.add_notify_handler(lambda note: self._rung.add(note.payload))
        try:
            self._ensure_tables()
            if listen:
                self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """False when it is closed, or belongs to another process."""
        return self._pid == os.getpid() and not self._connection.closed

    def fileno(self) -> int:
        return self._connection.pgconn.socket

    def close(self) -> None:
        if self._pid == os.getpid():
            self._connection.close()
        else:
            _inherited.append(self._connection)

    def alive(self) -> None:
        """Raises psycopg.OperationalError unless the server answers."""
        self._connection.execute("SELECT 1")

    def put(self, messages: Sequence[Put]) -> None:
        """All of them wait in their queues, and whoever listens is told; one statement, one round trip."""
        columns: dict[str, list[Any]] = {
            "queues": [one.queue for one in messages],
            "ranks": [PRIORITIES - 1 - one.priority for one in messages],
            "bodies": [one.body for one in messages],
        }
        self._connection.execute(_PUT, columns)

    def fan_out(self, exchange: str, body: str) -> None:
        """A copy waits in every queue that is bound to the exchange."""
        self._connection.execute(_FAN_OUT, {"exchange": exchange, "body": body})

    def take(self, queues: Iterable[str], room: int) -> list[tuple[str, str]]:
        """At most `room` messages as (queue, body), the highest priority first; they wait no longer."""
        return self._connection.execute(_TAKE, {"queues": list(queues), "room": room}).fetchall()

    def sizes(self, queues: Iterable[str]) -> dict[str, int]:
        """How many messages wait; queues without any are missing."""
        counted = self._connection.execute(
            "SELECT queue, count(*) FROM mq.message WHERE queue = ANY(%s) GROUP BY queue", (list(queues),)
        )
        return dict(counted.fetchall())

    def purge(self, queue: str) -> int:
        return self._connection.execute("DELETE FROM mq.message WHERE queue = %s", (queue,)).rowcount

    def forget(self, queue: str) -> None:
        """The queue, its bindings and its messages are gone."""
        self._connection.execute("DELETE FROM mq.binding WHERE queue = %s", (queue,))
        self.purge(queue)

    def bind(self, bindings: Sequence[Binding]) -> None:
        """They stand, and were seen just now."""
        names = ("exchanges", "keys", "patterns", "queues", "transients")
        columns = dict(zip(names, map(list, zip(*bindings, strict=True)), strict=True))
        self._connection.execute(_BIND, columns)

    def unbind(self, exchange: str, routing_key: str, queue: str) -> None:
        self._connection.execute(
            "DELETE FROM mq.binding WHERE (exchange, routing_key, queue) = (%s, %s, %s)", (exchange, routing_key, queue)
        )

    def table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Routing key, pattern and queue of every binding of the exchange."""
        return self._connection.execute(
            "SELECT routing_key, pattern, queue FROM mq.binding WHERE exchange = %s", (exchange,)
        ).fetchall()

    def sweep(self, unseen_s: float = UNSEEN_S) -> int:
        """Transient queues whose consumers are gone are forgotten; how many messages went with them."""
        return self._connection.execute(_SWEEP, {"unseen_s": unseen_s}).rowcount

    def heard(self) -> set[str]:
        """Names of the queues that were rung since the last call, without waiting."""
        connection = self._connection.pgconn
        connection.consume_input()
        while (note := connection.notifies()) is not None:
            self._rung.add(note.extra.decode())
        names, self._rung = self._rung, set()
        return names

    def _ensure_tables(self) -> None:
        found = self._connection.execute("SELECT to_regclass('mq.message'), to_regclass('mq.binding')").fetchone()
        if found is not None and None not in found:
            return
        with contextlib.suppress(psycopg.errors.UniqueViolation), self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            self._connection.execute(_TABLES)
