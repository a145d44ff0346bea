"""Redis: the line doorbells leave by, and the channel a worker listens on. Imported only where Redis is the broker."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from kombu.transport import redis as kombu_redis
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse
from redis.retry import Retry

from agentmesh.communication.lines import ANSWER_S, CONNECT_S, Chord, HeldLine, wire_priority
from agentmesh.communication.pgq import NO_MESSAGE
from agentmesh.records import Ring

log = logging.getLogger(__name__)
transport: Any = kombu_redis  # kombu is annotated in part


class RedisLine(HeldLine):
    scheme = "redis"

    def __init__(self, app: Celery) -> None:
        super().__init__(app, {"socket_timeout": ANSWER_S, "socket_connect_timeout": CONNECT_S})
        # redis-py would repeat by itself for seconds
        self.channel.pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)

    def publish(self, rings: list[Ring], chord: Chord | None) -> None:
        with self.channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for ring in rings:
                key = self.channel._q_for_pri(ring.queue, wire_priority(self.scheme, ring.priority))
                pipe.lpush(key, self.envelope(ring, chord))
            pipe.execute()

    def depths(self, queues: list[str]) -> dict[str, int]:
        steps = self.channel.priority_steps
        with self.channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for queue in queues:
                for step in steps:
                    pipe.llen(self.channel._q_for_pri(queue, step))
            counts = pipe.execute()
        width = len(steps)
        return {queue: sum(counts[n * width : (n + 1) * width]) for n, queue in enumerate(queues)}

    def ping(self) -> None:
        with self.channel.conn_or_acquire() as client:
            client.ping()


class SturdyQoS(transport.QoS):  # type: ignore[misc]
    """kombu's list of what is being worked on; at the end of a lost connection it gives nothing back, and is content."""

    def restore_unacked(self, client: Any = None) -> Any:
        try:
            return super().restore_unacked(client)
        except (*self.channel.connection_errors, AttributeError) as exc:  # its transport may have forgotten its address
            log.warning("what was fetched is not put back: %s", type(exc).__name__)
            return None


class SturdyRedis(transport.Channel):  # type: ignore[misc]
    """kombu's channel, which something in a list that is no message does not end, nor its own end after a cut."""

    QoS = SturdyQoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except NO_MESSAGE as exc:
            log.error("what came from Redis was dropped: %s", type(exc).__name__)  # noqa: TRY400 - not its content
            return None


def be_sturdy() -> None:
    """In this process: a list entry that is no message is dropped, and a garbled answer costs its connection alone."""
    transport.Transport.Channel = SturdyRedis
    if InvalidResponse not in transport.Transport.connection_errors:  # else it would end the consumer for good
        transport.Transport.connection_errors += (InvalidResponse,)
