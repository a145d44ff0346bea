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
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Protocol

import psycopg
from amqp.exceptions import AMQPError, NotFound  # type: ignore[import-untyped]
from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from kombu.utils import json as kombu_json

from agentmesh.infrastructure.faults import point
from agentmesh.infrastructure.pgq_store import Put
from agentmesh.records import Ring

# kombu is annotated in part
kombu: Any = kombu_json
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


def argsrepr(ring: Ring) -> str:
    """What Flower and the logs show of the arguments."""
    return f"({ring.kind!r}, trace={ring.trace_id})"


class Chord:
    """What makes the messages of a step's calls a chord of Celery's: their group, and the body to apply at its end."""

    def __init__(self, header: Sequence[Ring], body: Ring) -> None:
        self.group = str(body.id)
        self.index = {ring.id: n for n, ring in enumerate(header)}
        self._body = body

    def signature(self, scheme: str) -> dict[str, Any]:
        body = self._body
        options = {
            "queue": body.queue, "task_id": body.task_id, "priority": wire_priority(scheme, body.priority),
            "argsrepr": argsrepr(body), "kwargsrepr": "{}", "ignore_result": True, "group_id": self.group,
        }  # fmt: skip
        return {
            "task": body.task, "args": ring_args(body), "kwargs": {}, "options": options, "subtask_type": None,
            "immutable": True,
        }  # fmt: skip


def headers_of(ring: Ring, origin: str, chord: Chord | None = None) -> dict[str, Any]:
    group, index = (None, None) if chord is None else (chord.group, chord.index[ring.id])
    return {
        "lang": "py", "task": ring.task, "id": ring.task_id, "shadow": None, "eta": None, "expires": None,
        "group": group, "group_index": index, "retries": 0, "timelimit": [None, None], "root_id": ring.task_id,
        "parent_id": None, "argsrepr": argsrepr(ring), "kwargsrepr": "{}", "origin": origin, "ignore_result": True,
        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip


def body_of(ring: Ring, chord: Chord | None, scheme: str) -> list[Any]:
    kwargs = {} if ring.envelope is None else {"envelope": ring.envelope}
    canvas = {"callbacks": None, "errbacks": None, "chain": None, "chord": chord and chord.signature(scheme)}
    return [ring_args(ring), kwargs, canvas]


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

    def message(self, ring: Ring, chord: Chord | None) -> Any:
        body = json.dumps(body_of(ring, chord, self.scheme), separators=(",", ":"))
        properties = {"correlation_id": ring.task_id, "reply_to": "", "delivery_mode": 1}
        return self.channel.prepare_message(
            body.encode() if self.scheme == "amqp" else body, wire_priority(self.scheme, ring.priority),
            "application/json", "utf-8", headers_of(ring, self._origin, chord), properties,
        )  # fmt: skip

    def envelope(self, ring: Ring, chord: Chord | None) -> str:
        """The message as the virtual transports keep it."""
        made = self.message(ring, chord)
        self.channel._inplace_augment_message(made, "", ring.queue)
        text: str = kombu.dumps(made)
        return text

    def close(self) -> None:
        with suppress(*lost()):
            self._connection.release()


class AmqpLine(HeldLine):
    scheme = "amqp"

    def __init__(self, app: Celery) -> None:
        super().__init__(app, {"read_timeout": ANSWER_S, "write_timeout": ANSWER_S, "connect_timeout": CONNECT_S})
        self._arguments = {"x-max-priority": app.conf.task_queue_max_priority}
        self._declared: set[str] = set()

    def publish(self, rings: list[Ring], chord: Chord | None) -> None:
        """What could be handed over is taken from `rings`, also when it raises."""
        self._look_for_farewell()
        while rings:
            ring = rings[0]
            if ring.queue not in self._declared:
                self.channel.queue_declare(queue=ring.queue, durable=True, auto_delete=False, arguments=self._arguments)
                self._declared.add(ring.queue)
            self.channel.basic_publish(self.message(ring, chord), exchange="", routing_key=ring.queue)
            rings.pop(0)
            if rings:
                point("tools.mid_ring")

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

    def _look_for_farewell(self) -> None:
        """A broker that went away has said so; a write would be taken by the kernel and lost."""
        wire = self._connection.connection
        while select.select([wire.sock], [], [], 0)[0]:
            wire.drain_events(timeout=ANSWER_S)


class PgqLine(HeldLine):
    scheme = "pgq"

    def __init__(self, app: Celery) -> None:
        super().__init__(app, {"deadline_s": ANSWER_S})

    def publish(self, rings: list[Ring], chord: Chord | None) -> None:
        self.channel.session.put([Put(one.queue, one.priority, self.envelope(one, chord)) for one in rings])

    def depths(self, queues: list[str]) -> dict[str, int]:
        sizes = self.channel.session.sizes(queues)
        return {queue: sizes.get(queue, 0) for queue in queues}

    def ping(self) -> None:
        self.channel.session.alive()


class Line(Protocol):
    """What the broker asks of a connection."""

    scheme: ClassVar[str]

    def publish(self, rings: list[Ring], chord: Chord | None) -> None: ...
    def depths(self, queues: list[str]) -> dict[str, int]: ...
    def ping(self) -> None: ...
    def close(self) -> None: ...
