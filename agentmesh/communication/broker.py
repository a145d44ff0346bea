"""The Celery app, and the broker as a doorbell: `ring` publishes, and hands back what the broker refused.

A held connection per publishing thread, one pipelined publish for many rings, a connection never outlives a fork.
Nothing raises for a broker that is away except `ping` and `depths`; the rows are the outbox. The wires to Redis,
RabbitMQ and PostgreSQL are in lines.py, what a worker refuses in hardening.py.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from celery import Celery

from agentmesh.communication import pgq
from agentmesh.communication.lines import AmqpLine, Chord, Line, PgqLine, lost
from agentmesh.errors import BadSettings, BrokerUnreachable
from agentmesh.records import Ring

T = TypeVar("T")

MAX_PRIORITY = 9
BREAK_S = 1.0  # after a refusal nothing is tried for so long: a broker that hangs must not hold every dispatch
IDLE_LINES = 4

SETTINGS: dict[str, Any] = {
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "enable_utc": True,
    # rows are the results, the outbox and the retries
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    "task_ignore_result": True,
    "result_extended": False,
    "task_track_started": False,
    "task_store_errors_even_if_ignored": False,
    "task_publish_retry": False,
    "task_protocol": 2,
    "task_default_delivery_mode": "transient",
    "task_default_queue": "agentmesh",
    "task_default_priority": 5,
    "task_create_missing_queues": True,
    "task_queue_max_priority": MAX_PRIORITY,  # RabbitMQ wants it at the first declaration and for ever
    "task_send_sent_event": False,
    "worker_consumer": "agentmesh.communication.hardening:Door",
    "worker_prefetch_multiplier": 1,
    "worker_send_task_events": False,  # a seventh of a worker's time; Flower turns them on while it watches
    "worker_disable_rate_limits": True,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": 4,
    # two beats are missed before py-amqp gives up; the waits of closing what is dead come on top
    "broker_heartbeat": 3,
    "broker_heartbeat_checkrate": 2,
}

_REDIS: dict[str, Any] = {
    "visibility_timeout": 60,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "socket_timeout": 4,
    "socket_connect_timeout": 4,
    "socket_keepalive": True,
    "health_check_interval": 2,
    "priority_steps": list(range(MAX_PRIORITY + 1)),
    "queue_order_strategy": "round_robin",
}
_AMQP: dict[str, Any] = {"confirm_publish": False, "connect_timeout": 4, "read_timeout": 2, "write_timeout": 4}


def make_app(
    *,
    broker_url: str,
    backend: str | type,
    name: str = "agentmesh",
    key_prefix: str = "agentmesh:",
    prefetch: int = 1,
) -> Celery:
    """A Celery app of its own (never the current one) with the settings every part relies on, and no tasks.

    `backend`: the result backend's class or "module:Class". `key_prefix` stands before every Redis key.
    Raises BadSettings for a broker that is none of redis, amqp and PostgreSQL.
    """
    pgq.register()
    url = pgq.broker_url(broker_url) if broker_url.startswith("postgres") else broker_url
    path = backend if isinstance(backend, str) else f"{backend.__module__}:{backend.__qualname__}"
    app = Celery(name, broker=url, backend=path, set_as_current=False)
    options = _transport_options(url, key_prefix)
    app.conf.update(SETTINGS, worker_prefetch_multiplier=prefetch, broker_transport_options=options)
    return app


def _transport_options(url: str, key_prefix: str) -> dict[str, Any]:
    scheme = urlsplit(url).scheme
    if scheme in {"redis", "rediss"}:
        return {**_REDIS, "global_keyprefix": key_prefix}
    if scheme in {"amqp", "amqps", "pyamqp"}:
        return dict(_AMQP)
    if scheme == f"{pgq.SCHEME}+postgresql":
        return {}
    raise BadSettings(
        "the broker's URL names no broker we know", value=scheme,
        expected="redis://, rediss://, amqp://, amqps:// or postgresql://",
    )  # fmt: skip


class Broker:
    """Publishing, and asking how long the queues are. Safe to share between threads and over a fork."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._forget()

    def _forget(self) -> None:
        self._inherited = getattr(self, "_idle", None)  # kept, not closed: closing would end them in our parent
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._closed_until = 0.0

    def ring(self, rings: Sequence[Ring]) -> list[Ring]:
        """The doorbells are on their queues, but for those returned: the broker did not take them. Never raises
        for a broker that is away; after one that hung, all are returned at once for a second."""
        return self._publish(list(rings), None)

    def dispatch_chord(self, header: Sequence[Ring], body: Ring) -> list[Ring]:
        """The header is on its queues with the messages of a Celery chord whose body is `body`; what comes back was
        refused. A backend of ours counts the parts in the rows, so no task polls for their end."""
        return self._publish(list(header), Chord(header, body))

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """How many messages wait in each queue, 0 for one that does not exist; none is made by asking."""
        return self._ask(lambda line: line.depths(list(dict.fromkeys(queues))))

    def ping(self) -> None:
        """Raises BrokerUnreachable unless the broker answers."""
        self._ask(lambda line: line.ping())

    def close(self) -> None:
        """Held connections are closed; the next ring opens a new one."""
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    def _publish(self, rings: list[Ring], chord: Chord | None) -> list[Ring]:
        """A line may take from the list what it has sent; what is left when it fails is refused."""
        if not rings or time.monotonic() < self._closed_until:
            return rings
        try:
            self._use(lambda line: line.publish(rings, chord))
        except lost():
            self._closed_until = time.monotonic() + BREAK_S
            return rings
        return []

    def _ask(self, ask: Callable[[Line], T]) -> T:
        try:
            return self._use(ask)
        except lost() as exc:
            where = self.app.connection_for_write().as_uri()
            raise BrokerUnreachable(f"the broker does not answer: {type(exc).__name__}", value=where) from exc

    def _use(self, use: Callable[[Line], T]) -> T:
        """`use` on a held line; where that died while it was idle, once more on a new one."""
        if self._pid != os.getpid():
            self._forget()  # the lines are our parent's
        with self._lock:
            held = self._idle.pop() if self._idle else None
        if held is not None:
            try:
                return self._on(held, use)
            except lost():
                self.close()  # the others are no younger
        return self._on(line_to(self.app), use)

    def _on(self, line: Line, use: Callable[[Line], T]) -> T:
        try:
            answer = use(line)
        except BaseException:
            line.close()
            raise
        with self._lock:
            kept = len(self._idle) < IDLE_LINES
            if kept:
                self._idle.append(line)
        if not kept:
            line.close()
        return answer


def line_to(app: Celery) -> Line:
    """A new line to the app's broker. Raises one of LOST where it does not answer."""
    transport = app.connection_for_write().transport.driver_type
    if transport == "redis":
        from agentmesh.communication.redis_line import RedisLine  # noqa: PLC0415 - half a second, for Redis alone

        return RedisLine(app)
    return PgqLine(app) if transport == "postgresql" else AmqpLine(app)
