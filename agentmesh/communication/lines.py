"""One connection to a broker, and the message that a doorbell is on it: Redis, RabbitMQ or PostgreSQL.

The message is Celery's protocol 2, built once here instead of through `send_task`, because it is the hot path.
Priorities are ours (0 to 9, 9 first) up to `wire_priority`. A line belongs to one thread at a time and to one process.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, ClassVar, Protocol

import psycopg
from amqp.exceptions import AMQPError, NotFound  # type: ignore[import-untyped]
from celery import Celery
from celery.app.amqp import AMQP
from kombu import messaging as kombu_messaging
from kombu.exceptions import KombuError, OperationalError
from kombu.utils import json as kombu_json

from agentmesh.infrastructure.pgq_store import Put
from agentmesh.records import Ring

# kombu is annotated in part
kombu: Any = kombu_json
messaging: Any = kombu_messaging
CONNECT_S = 1.0
ANSWER_S = 2.0

LOST = (
    OSError, AMQPError, psycopg.Error, OperationalError, KombuError,
)  # fmt: skip
"""What a broker that is away, or goes away, raises."""


def lost() -> tuple[type[BaseException], ...]:
    """LOST, with what redis-py raises where it is in use: importing it takes as long as all else here."""
    raised = getattr(sys.modules.get("redis.exceptions"), "RedisError", None)
    return LOST if raised is None else (*LOST, raised)


def wire_priority(scheme: str, priority: int) -> int:
    """Our priority as this broker counts: Redis takes 0 first."""
    return 9 - priority if scheme == "redis" else priority


def ring_args(ring: Ring) -> list[Any]:
    return [ring.kind, str(ring.id), ring.epoch]


def ring_kwargs(ring: Ring) -> dict[str, Any]:
    return {} if ring.envelope is None else {"envelope": ring.envelope}


def argsrepr(ring: Ring) -> str:
    """What Flower and the logs show of the arguments."""
    return f"({ring.kind!r}, trace={ring.trace_id})"


def headers_of(ring: Ring, origin: str) -> dict[str, Any]:
    return {
        "lang": "py", "task": ring.task, "id": ring.task_id, "shadow": None, "eta": None, "expires": None,
        "group": None, "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": ring.task_id,
        "parent_id": None, "argsrepr": argsrepr(ring), "kwargsrepr": "{}", "origin": origin, "ignore_result": True,
        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip


_NO_CANVAS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class HeldLine:
    """What the three have in common: a kombu connection that never waits longer than a moment."""

    scheme: ClassVar[str]

    def __init__(self, app: Celery, options: dict[str, Any]) -> None:
        self._origin = f"{os.getpid()}@{socket.gethostname()}"
        self._connection: Any = app.connection_for_write(
            heartbeat=0,  # nobody would send the beats of an idle line; a dead one is found at its next use
            connect_timeout=CONNECT_S,
            transport_options={**app.conf.broker_transport_options, **options},
        )
        try:
            self._connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            self.channel: Any = self._connection.channel()
        except BaseException:
            self.close()
            raise

    def message(self, ring: Ring) -> Any:
        body = json.dumps((ring_args(ring), ring_kwargs(ring), _NO_CANVAS), separators=(",", ":"))
        properties = {"correlation_id": ring.task_id, "reply_to": "", "delivery_mode": 1}
        return self.channel.prepare_message(
            body.encode() if self.scheme == "amqp" else body, wire_priority(self.scheme, ring.priority),
            "application/json", "utf-8", headers_of(ring, self._origin), properties,
        )  # fmt: skip

    def envelope(self, ring: Ring) -> str:
        """The message as the virtual transports keep it."""
        made = self.message(ring)
        self.channel._inplace_augment_message(made, "", ring.queue)
        text: str = kombu.dumps(made)
        return text

    @contextmanager
    def producer(self) -> Iterator[Any]:
        """A kombu producer whose messages leave together where the broker can do that."""
        made = messaging.Producer(self.channel, auto_declare=False)
        if not made.supports_batch_publish:
            yield made
            return
        with made.batch():
            yield made

    def close(self) -> None:
        with suppress(*lost()):
            self._connection.release()


class AmqpLine(HeldLine):
    scheme = "amqp"

    def __init__(self, app: Celery) -> None:
        super().__init__(app, {"read_timeout": ANSWER_S, "write_timeout": ANSWER_S, "connect_timeout": CONNECT_S})
        self._arguments = {"x-max-priority": app.conf.task_queue_max_priority}
        self._declared: set[str] = set()

    def publish(self, rings: list[Ring]) -> None:
        """What could be handed over is taken from `rings`, also when it raises."""
        self._look_for_farewell()
        while rings:
            ring = rings[0]
            if ring.queue not in self._declared:
                self.channel.queue_declare(queue=ring.queue, durable=True, auto_delete=False, arguments=self._arguments)
                self._declared.add(ring.queue)
            self.channel.basic_publish(self.message(ring), exchange="", routing_key=ring.queue)
            rings.pop(0)

    def depths(self, queues: list[str]) -> dict[str, int]:
        found = {}
        for queue in queues:
            try:
                found[queue] = self.channel.queue_declare(queue=queue, passive=True).message_count
            except NotFound:  # RabbitMQ closes the channel with it
                found[queue] = 0
                self._declared.discard(queue)
                self.channel = self._connection.channel()
        return found

    def ping(self) -> None:
        self._look_for_farewell()
        self._connection.channel().close()

    @contextmanager
    def producer(self) -> Iterator[Any]:
        self._look_for_farewell()
        with super().producer() as made:
            yield made

    def _look_for_farewell(self) -> None:
        """A broker that went away has said so; a write would be taken by the kernel and lost."""
        wire = self._connection.connection
        while select.select([wire.sock], [], [], 0)[0]:
            wire.drain_events(timeout=ANSWER_S)


class PgqLine(HeldLine):
    scheme = "pgq"

    def __init__(self, app: Celery) -> None:
        super().__init__(app, {"deadline_s": ANSWER_S})

    def publish(self, rings: list[Ring]) -> None:
        self.channel.session.put([Put(one.queue, one.priority, self.envelope(one)) for one in rings])

    def depths(self, queues: list[str]) -> dict[str, int]:
        sizes = self.channel.session.sizes(queues)
        return {queue: sizes.get(queue, 0) for queue in queues}

    def ping(self) -> None:
        self.channel.session.alive()


_lent = threading.local()


@contextmanager
def lending(producer: Any) -> Iterator[None]:
    """What Celery publishes in this thread meanwhile (a chord cannot be handed a producer) leaves through this one."""
    _lent.producer = producer
    try:
        yield
    finally:
        _lent.producer = None


class Lent(AMQP):  # type: ignore[misc]
    """Celery's publishing, which uses the line that is lent to this thread before it opens one of its own."""

    @property
    def producer_pool(self) -> Any:
        producer = getattr(_lent, "producer", None)
        return AMQP.producer_pool.fget(self) if producer is None else _Pool(producer)


class _Pool:
    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def acquire(self, **_: Any) -> Any:
        return nullcontext(self._producer)


LENT = f"{__name__}:{Lent.__name__}"


class Line(Protocol):
    """What the broker asks of a connection."""

    scheme: ClassVar[str]

    def publish(self, rings: list[Ring]) -> None: ...
    def depths(self, queues: list[str]) -> dict[str, int]: ...
    def ping(self) -> None: ...
    def producer(self) -> Any: ...
    def close(self) -> None: ...
