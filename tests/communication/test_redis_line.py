"""Redis as a worker listens to it: no end of a connection, however it comes, ends the worker."""

from __future__ import annotations

from typing import Any

from kombu import Connection, Queue

from agentmesh.communication.redis_line import be_sturdy
from agentmesh.records import new_id
from tests.communication.conftest import REDIS, needed


def test_a_channel_whose_transport_has_forgotten_its_address_closes_in_peace() -> None:
    """As after a cut during a reconnection: kombu clears the transport first, then the channel with its messages."""
    be_sturdy()
    name = f"amtest_sturdy_{new_id().hex[-8:]}"
    with Connection(REDIS) as connection:
        needed("Redis", connection.connect)
        got: list[Any] = []
        queue = Queue(name, channel=connection)
        queue.declare()
        connection.Producer().publish({}, routing_key=name)
        channel = connection.channel()
        with connection.Consumer(queue, channel=channel, callbacks=[lambda _, message: got.append(message)]):
            connection.drain_events(timeout=5)
        assert len(got) == 1
        transport = channel.connection
        client, transport.client = transport.client, None
        channel._pool = None
        channel.close()
        transport.client = client
        queue.delete()
