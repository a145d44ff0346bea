"""Rings reach their queues in our order on every broker, refusals come back as values, and a chord is a real one."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from celery import Celery

from agentmesh.communication.broker import Broker, make_app
from agentmesh.communication.lines import Chord, argsrepr, body_of, headers_of, ring_args
from agentmesh.errors import BadSettings, BrokerUnreachable
from agentmesh.records import Ring, new_id
from tests.communication.conftest import CountingNothing, Site, Worker


def settled_depths(broker: Broker, expected: dict[str, int]) -> bool:
    """RabbitMQ counts what it has routed a moment later."""
    until = time.monotonic() + 5
    while broker.depths(list(expected)) != expected and time.monotonic() < until:
        threading.Event().wait(0.02)
    return broker.depths(list(expected)) == expected


def test_ring_runs_its_task_under_its_own_id_with_ids_only(site: Site, broker: Broker, worker: Worker) -> None:
    ring = site.ring(kind="step")
    assert broker.ring([ring]) == []
    line = worker.ran(ring)
    assert line["args"] == ["step", str(ring.id), 1]
    assert line["envelope"] is None


def test_first_ring_of_a_trace_carries_its_envelope(site: Site, broker: Broker, worker: Worker) -> None:
    ring = site.ring("agent", task="agent.echo", kind="trace", envelope="head.body.signature")
    assert broker.ring([ring]) == []
    assert worker.ran(ring)["envelope"] == "head.body.signature"


def test_many_rings_leave_together_and_wait_in_priority_order(site: Site, broker: Broker) -> None:
    rings = [site.ring("other", priority=n % 10) for n in range(30)]
    assert broker.ring(rings) == []
    assert settled_depths(broker, {site.queue("other"): 30, site.queue("nobody"): 0})
    with broker.app.connection_for_read() as connection:
        taken = [connection.SimpleQueue(broker.app.amqp.queues[site.queue("other")])]
        ids = []
        for _ in rings:
            message = taken[0].get(timeout=5)
            ids.append(message.headers["id"])
            message.ack()
        taken[0].close()
    by_id = {ring.task_id: ring.priority for ring in rings}
    assert [by_id[one] for one in ids] == sorted((ring.priority for ring in rings), reverse=True)


def test_message_is_celery_protocol_2_transient_and_shows_no_payload(site: Site, broker: Broker) -> None:
    ring = site.ring("other", envelope="secret-canary")
    broker.ring([ring])
    with broker.app.connection_for_read() as connection:
        inbox = connection.SimpleQueue(broker.app.amqp.queues[site.queue("other")])
        message = inbox.get(timeout=5)
        message.ack()
        inbox.close()
    expected = broker.app.amqp.as_task_v2(ring.task_id, ring.task, args=(), ignore_result=True)
    assert set(message.headers) == set(expected.headers)
    assert json.loads(message.body) == [["call", str(ring.id), 1], {"envelope": "secret-canary"}, expected.body[2]]
    assert message.properties.get("delivery_mode") == 1
    assert "canary" not in json.dumps(message.headers)
    assert str(ring.trace_id) in message.headers["argsrepr"]


@pytest.mark.parametrize("width", [1, 3])
def test_chord_is_celery_s_own_with_an_immutable_body_and_no_unlock_task(
    site: Site, broker: Broker, worker: Worker, width: int
) -> None:
    body = site.ring("agent", task="agent.echo", kind="step")
    header = [site.ring(body=body) for _ in range(width)]
    assert broker.dispatch_chord(header, body) == []
    parts = [worker.until(lambda line: line["what"] == "part") for _ in header]
    assert {part["id"] for part in parts} == {ring.task_id for ring in header}
    for part in parts:
        assert (part["body"]["task"], part["body"]["immutable"]) == ("agent.echo", True)
        assert part["body"]["args"] == ["step", str(body.id), 1]
        assert part["body"]["options"]["task_id"] == body.task_id
    assert broker.depths(["agentmesh"])["agentmesh"] == 0


def test_chord_s_messages_are_those_that_celery_s_canvas_publishes() -> None:
    body = Ring("step", new_id(), 3, "agent.echo", "agent.echo", new_id(), 6)
    header = [Ring("call", new_id(), 1, "tools", "tool.echo", new_id(), 6) for _ in range(2)]
    chord = Chord(header, body)
    ours = [{"headers": headers_of(one, "here", chord), "body": body_of(one, chord, "memory")} for one in header]
    assert ours == published_by_canvas(header, body)


def published_by_canvas(header: list[Ring], body: Ring) -> list[dict[str, Any]]:
    """What `celery.chord` puts on a queue for these rings, with our names for the group and the sender."""
    app = Celery("canvas", broker="memory://", backend=CountingNothing, set_as_current=False)

    def signature(ring: Ring) -> Any:
        return app.signature(
            ring.task, args=ring_args(ring), immutable=True, queue=ring.queue, task_id=ring.task_id,
            priority=ring.priority, argsrepr=argsrepr(ring), kwargsrepr="{}", ignore_result=True,
        )  # fmt: skip

    celery.chord([signature(one) for one in header], app=app).apply_async(
        kwargs={"body": signature(body)}, task_id=body.task_id
    )
    found = []
    with app.connection_for_read() as connection, connection.SimpleQueue(app.amqp.queues["tools"]) as inbox:
        for _ in header:
            message = inbox.get(timeout=5)
            group = message.headers["group"]
            message.headers["origin"] = "here"
            said = {"headers": message.headers, "body": json.loads(message.body)}
            said["body"][2]["chord"]["options"].pop("reply_to")  # results are not sent anywhere
            found.append(json.loads(json.dumps(said).replace(group, str(body.id))))
    app.close()
    return found


def test_asking_for_depths_makes_no_queue(site: Site, broker: Broker) -> None:
    name = site.queue(f"ghost-{new_id().hex}")
    assert broker.depths([name]) == {name: 0}
    assert broker.depths([name]) == {name: 0}
    broker.ping()


def test_threads_share_a_broker(site: Site, broker: Broker) -> None:
    start = threading.Barrier(8)
    refused = []

    def publish() -> None:
        start.wait(10)
        for _ in range(5):
            refused.extend(broker.ring([site.ring("silent")]))

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert refused == []
    assert settled_depths(broker, {site.queue("silent"): 40})


def test_fork_does_not_share_the_parents_connection(site: Site, broker: Broker) -> None:
    before = broker.depths([site.queue("silent")])[site.queue("silent")]
    broker.ring([site.ring("silent")])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = len(broker.ring([site.ring("silent")]))
            broker.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert broker.ring([site.ring("silent")]) == []
    assert settled_depths(broker, {site.queue("silent"): before + 3})


CLOSED = {
    "pgq": "pgq+postgresql://nobody@127.0.0.1:1/none",
    "redis": "redis://127.0.0.1:1/0",
    "amqp": "amqp://guest:secret-canary@127.0.0.1:1//",
}


@pytest.mark.parametrize("url", CLOSED.values(), ids=CLOSED)
def test_broker_that_is_away_gets_everything_back_at_once(url: str) -> None:
    broker = Broker(make_app(broker_url=url, backend=CountingNothing))
    nowhere = Site("none", url, "none")
    rings = [nowhere.ring() for _ in range(3)]
    began = time.monotonic()
    assert broker.ring(rings) == rings
    assert broker.dispatch_chord(rings, nowhere.ring("agent", task="agent.echo")) == rings
    assert time.monotonic() - began < 0.5
    with pytest.raises(BrokerUnreachable) as caught:
        broker.ping()
    assert "canary" not in str(caught.value)
    with pytest.raises(BrokerUnreachable):
        broker.depths(["tools"])


@pytest.fixture
def hole() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("url", CLOSED.values(), ids=CLOSED)
def test_broker_that_hangs_is_given_up_within_ten_seconds(url: str, hole: int) -> None:
    broker = Broker(make_app(broker_url=url.replace(":1/", f":{hole}/"), backend=CountingNothing))
    ring = Site("none", url, "none").ring()
    began = time.monotonic()
    assert broker.ring([ring]) == [ring]
    assert time.monotonic() - began < 10
    again = time.monotonic()
    assert broker.ring([ring]) == [ring]
    assert time.monotonic() - again < 0.1


def test_unknown_kind_of_broker_is_refused() -> None:
    with pytest.raises(BadSettings, match="kafka"):
        make_app(broker_url="kafka://somewhere", backend=CountingNothing)
