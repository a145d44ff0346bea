"""A kombu transport over PostgreSQL: `pgq+postgresql://user@host/db`, for Celery, its remote control and Flower.

Doorbells wait in a table, NOTIFY wakes who listens, and a look twice a second finds what a lost note left behind.
Delivery is at most once: rows elsewhere are the facts, and the rescuer rings again. The SQL is infrastructure's.
"""

# ruff: noqa: ARG002, FBT001, FBT002 - the signatures are kombu's

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

import psycopg
import sqlalchemy as sa
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import virtual as kombu_virtual
from kombu.utils import json as kombu_json

from agentmesh.infrastructure.pgq_store import DEADLINE_S, Binding, Put, Session

log = logging.getLogger(__name__)
virtual: Any = kombu_virtual  # kombu is annotated in part, and wrongly for subclasses
kombu: Any = kombu_json

SCHEME = "pgq"
LOOK_S = 0.5
PROVE_S = 4.0  # a listener behind a silent hole is found within this and the session's deadline
KEEP_S = 30.0  # how often a consumer says that its transient queues live
BATCH = 32
NO_MESSAGE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What reading something as a message raises when it is none. It must not end the worker that took it."""


def register() -> None:
    """kombu knows `pgq+postgresql://` in this process."""
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"


def broker_url(database_url: str) -> str:
    """The broker URL of a PostgreSQL that is named by a SQLAlchemy or libpq URL."""
    made = sa.make_url(database_url).set(drivername="postgresql")
    address, mark, query = made.render_as_string(hide_password=False).partition("?")
    # libpq reads a '+' as it stands; kombu splits at ',' and ';' into alternative brokers
    text = address + mark + query.replace("+", "%20")
    return f"{SCHEME}+{text}".replace(",", "%2C").replace(";", "%3B")


def database_url(url: str) -> str:
    """The libpq URL inside a broker URL of ours."""
    return url.removeprefix(f"{SCHEME}+")


class QoS(virtual.QoS):  # type: ignore[misc]
    """kombu's list of what is being worked on. What cannot be put back is a doorbell, which the database rings again: kombu
    would write it, payload and all, into a file."""

    def restore_unacked(self) -> None:
        if lost := super().restore_unacked():
            log.warning("what was fetched is not put back: %d messages, %s", len(lost), type(lost[0][0]).__name__)


class Channel(virtual.Channel):  # type: ignore[misc]
    """What kombu asks of a queue, answered by one session of the transport."""

    QoS = QoS
    supports_fanout = True
    default_priority = 5

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self.rung: set[str] = set()  # queues of ours that may hold messages

    @property
    def session(self) -> Session:
        session: Session = self.connection.session
        return session

    def _put(self, queue: str, message: dict[str, Any], _publish_batch: PublishBatch | None = None, **_: Any) -> None:
        put = Put(queue, self._get_message_priority(message), kombu.dumps(message))
        if _publish_batch is None:
            self.session.put([put])
        else:
            _publish_batch.waiting.append(put)

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        return PublishBatch(self)

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **_: Any) -> None:
        self.session.fan_out(exchange, kombu.dumps(message))

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        for _, body in self.session.take([queue], 1):
            return kombu.loads(body)
        raise Empty

    def _size(self, queue: str) -> int:
        return self.session.sizes([queue]).get(queue, 0)

    def _purge(self, queue: str) -> int:
        return self.session.purge(queue)

    def _delete(self, queue: str, *_: Any, **__: Any) -> None:
        self.connection.bindings = [one for one in self.connection.bindings if one.queue != queue]
        self.connection.transient.discard(queue)
        self.session.forget(queue)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any) -> None:
        if not (if_empty and self._size(queue)):
            self._delete(queue)
            self.state.queue_bindings_delete(queue)

    def _new_queue(self, queue: str, auto_delete: bool = False, exclusive: bool = False, **options: Any) -> None:
        if auto_delete or exclusive or "x-expires" in (options.get("arguments") or {}):
            self.connection.transient.add(queue)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: object, queue: str) -> None:
        # the pattern is a compiled expression: whoever reads the table makes it anew from the key
        bound = Binding(exchange, routing_key or "", "", queue, queue in self.connection.transient)
        self.connection.bindings.append(bound)
        self.session.bind([bound])

    def queue_unbind(
        self, queue: str, exchange: str = "", routing_key: str = "", arguments: object = None, **kwargs: Any
    ) -> None:
        super().queue_unbind(queue, exchange, routing_key, arguments, **kwargs)
        self.session.unbind(exchange, routing_key or "", queue)

    def get_table(self, exchange: str) -> list[tuple[str, Any, str]]:
        kind = self.typeof(exchange)
        found = self.connection.table(exchange, remember=kind.type == "topic")
        return [kind.prepare_bind(queue, exchange, key, {}) for key, _, queue in found]

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        answer = super().basic_consume(queue, *args, **kwargs)
        self.rung.add(queue)
        self._poke()
        return answer

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        super().basic_ack(delivery_tag, multiple)
        self._poke()  # one more may come

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        super().basic_reject(delivery_tag, requeue)
        self._poke()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._poke()

    def _poke(self) -> None:
        transport = self.connection
        if transport is not None:  # a message may outlive its channel, which a lost connection has closed
            transport.poke()

    def close(self) -> None:
        # a lost connection cannot take back what was prefetched; the rescuer rings for it
        with contextlib.suppress(psycopg.Error):
            super().close()

    def room(self) -> int:
        """How many messages may be delivered now."""
        if not self._active_queues or not self.qos.can_consume():
            return 0
        left = self.qos.can_consume_max_estimate()
        return BATCH if left is None else min(left, BATCH)


class PublishBatch:
    """Messages of one `Producer.batch()`, which go out in one statement when it ends."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.waiting: list[Put] = []

    def publish(self, message: dict[str, Any], **kwargs: Any) -> Any:
        return self.channel.basic_publish(message, _publish_batch=self, **kwargs)

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        if waiting:
            self.channel.session.put(waiting)

    def discard(self) -> None:
        self.waiting = []

    def close(self) -> None:
        self.discard()


class Transport(virtual.Transport):  # type: ignore[misc]
    """One session to put and take, and one to listen once something consumes."""

    Channel = Channel
    can_parse_url = True
    default_port: Any = 0
    driver_type = "postgresql"
    driver_name = "psycopg"
    implements = virtual.Transport.implements.extend(
        asynchronous=True, batch_publish=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )
    # a garbled stream is a plain DatabaseError; whatever it is, a new connection is the cure
    connection_errors = (*virtual.Transport.connection_errors, psycopg.Error)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.dsn = database_url(client.hostname)
        self._deadline_s = float(client.transport_options.get("deadline_s", DEADLINE_S))
        self.transient: set[str] = set()
        self.bindings: list[Binding] = []
        self._session: Session | None = None
        self._listener: Session | None = None
        self._opening = threading.RLock()
        self._tables: dict[str, tuple[float, list[tuple[str, str, str]]]] = {}
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        os.set_blocking(self._writes, False)
        self._looked = self._proved = self._kept = time.monotonic()
        self._unregister: Callable[[], None] | None = None

    def driver_version(self) -> str:
        return psycopg.__version__

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        made = sa.make_url(database_url(uri))
        return f"{SCHEME}+{made.render_as_string(hide_password=not include_password)}"

    @property
    def session(self) -> Session:
        with self._opening:
            if self._session is None or not self._session.usable:
                self._session = Session(self.dsn, deadline_s=self._deadline_s)
            return self._session

    @property
    def listener(self) -> Session:
        with self._opening:
            if self._listener is None or not self._listener.usable:
                self._listener = Session(self.dsn, listen=True, deadline_s=self._deadline_s)
                self._look_everywhere()
            return self._listener

    def establish_connection(self) -> Any:
        self.session.alive()
        return super().establish_connection()

    def verify_connection(self, connection: object) -> bool:
        try:
            self.session.alive()
        except psycopg.Error:
            return False
        return True

    def close_connection(self, connection: object) -> None:
        if self._unregister is not None:
            self._unregister()
            self._unregister = None
        super().close_connection(connection)
        for session in (self._listener, self._session):
            if session is not None:
                with contextlib.suppress(psycopg.Error):
                    session.close()
        self._listener = self._session = None
        for fd in (self._reads, self._writes):
            if fd >= 0:
                os.close(fd)
        self._reads = self._writes = -1

    def table(self, exchange: str, *, remember: bool) -> list[tuple[str, str, str]]:
        """The bindings of an exchange. Events are many and their listeners few: theirs may be a second old."""
        now = time.monotonic()
        kept_at, found = self._tables.get(exchange, (0.0, []))
        if not remember or now - kept_at > 1:
            found = self.session.table(exchange)
            self._tables[exchange] = (now, found)
        return found

    def poke(self) -> None:
        """Wake the loop: another thread made room, or a queue was added."""
        with contextlib.suppress(OSError):
            os.write(self._writes, b"x")

    def drain_events(self, connection: object, timeout: float | None = None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while not self._deliver_some():
            left = LOOK_S if end is None else min(LOOK_S, end - time.monotonic())
            if left <= 0:
                raise TimeoutError
            select.select([self.listener.fileno(), self._reads], [], [], left)
            self._hear()
            self._keep_up()

    def register_with_event_loop(self, connection: object, loop: Any) -> None:
        fds = (self.listener.fileno(), self._reads)
        for fd in fds:
            loop.add_reader(fd, self._turn)
        timer = loop.call_repeatedly(LOOK_S, self._keep_up)

        def unregister() -> None:
            timer.cancel()
            for fd in fds:
                loop.remove_reader(fd)

        self._unregister = unregister

    def on_readable(self, fileno: int) -> None:
        self._turn()

    def _turn(self, *_: object) -> None:
        # as a reader, not on the loop's tick: a prefork pool looks there for what it was given, perhaps before us
        self._hear()
        self._deliver_some()
        if any(channel.rung and channel.room() for channel in self.channels):
            self.poke()

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self._reads, 4096):
                pass
        names = self.listener.heard()
        for channel in self.channels:
            channel.rung.update(names.intersection(channel._active_queues))

    def _look_everywhere(self) -> None:
        for channel in self.channels:
            channel.rung.update(channel._active_queues)

    def _deliver_some(self) -> int:
        """Take what has room and hand it over; how many messages that were."""
        delivered = 0
        for channel in list(self.channels):
            room = channel.room() if channel.rung else 0
            if not room:
                continue
            names = channel.rung.intersection(channel._active_queues)
            taken = self.session.take(names, room) if names else []
            if len(taken) < room:
                channel.rung.clear()
            for queue, body in taken:
                self._hand_over(queue, body)
            delivered += len(taken)
        return delivered

    def _hand_over(self, queue: str, body: str) -> None:
        try:
            self._deliver(kombu.loads(body), queue)
        except NO_MESSAGE as exc:
            log.error("what came from %s was dropped: %s", queue, type(exc).__name__)  # noqa: TRY400 - not its content

    def _keep_up(self) -> None:
        """What has to happen now and then: look for what no note announced, prove the listener, keep and sweep."""
        now = time.monotonic()
        if now - self._looked >= LOOK_S * 0.9:
            self._looked = now
            self._look_everywhere()
            self.poke()
        if now - self._proved >= PROVE_S:
            self._proved = now
            self.listener.alive()
            self._hear()
        if now - self._kept >= KEEP_S:
            self._kept = now
            if self.bindings:
                self.session.bind(list(dict.fromkeys(self.bindings)))
            self.session.sweep()
