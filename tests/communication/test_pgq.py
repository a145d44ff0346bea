"""The PostgreSQL transport: order, fan-out, every pool, and consumption that goes on after the server dropped us."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from kombu import Connection, Exchange, Queue
from kombu.asynchronous import Hub
from psycopg.conninfo import conninfo_to_dict

from agentmesh.communication import pgq
from agentmesh.communication.broker import Broker
from agentmesh.infrastructure.pgq_store import Binding, Put, Session
from tests.communication.conftest import POSTGRES, Site, Worker, postgres_site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    yield from postgres_site(f"amtest_pgq_{os.getpid()}")


@pytest.fixture
def own_site() -> Iterator[Site]:
    yield from postgres_site(f"amtest_pgq_own_{os.getpid()}")


@pytest.fixture
def dsn(site: Site) -> str:
    return pgq.database_url(site.url)


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    made = Session(dsn)
    yield made
    made.close()


def drop_every_session(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as db:
        return db.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()[0][0]


def shut_out(dsn: str, *, admin: psycopg.Connection) -> None:
    """Nobody is connected to the database, or can be."""
    name = conninfo_to_dict(dsn)["dbname"]
    admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_worker_consumes_on_after_its_sessions_were_terminated(site: Site, dsn: str, pool: str) -> None:
    worker = Worker(site, pool=pool)
    app = site.app()
    broker = Broker(app)
    try:
        first = site.ring()
        assert broker.ring([first]) == []
        line = worker.ran(first)
        assert (line["pid"] != worker.pid) == (pool == "prefork")
        assert drop_every_session(dsn) >= 2
        began = time.monotonic()
        again = site.ring()
        assert broker.ring([again]) == []  # the held line is found dead and replaced
        worker.ran(again)
        assert time.monotonic() - began < 10
    finally:
        broker.close()
        app.close()
        worker.stop()


class Loop(Hub):
    """Says in which order it waited, ticked and was given messages; on each tick the pool comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.on_tick = PoolFirst([lambda: self.said.append("tick")])
        waits = self.poller.poll
        self.poller.poll = lambda timeout: self.said.append("wait") or waits(timeout)


class PoolFirst(list[object]):
    add = list.append
    discard = list.remove


def test_delivered_message_is_handed_on_before_the_loop_waits_again(site: Site) -> None:
    # a prefork pool hands on what it was given when the loop ticks: a delivery later in that tick waited for a look
    pgq.register()
    loop = Loop()
    with Connection(site.url) as connection, connection.Consumer(
        Queue("loop"), callbacks=[lambda *_: loop.said.append("given")], no_ack=True
    ):  # fmt: skip
        connection.transport.register_with_event_loop(connection.connection, loop)
        with Connection(site.url) as other:
            other.SimpleQueue("loop").put({"n": 1})
        turns = loop.create_loop()
        while "given" not in loop.said or loop.said[-1] == "given":
            next(turns)
    loop.close()
    assert loop.said[loop.said.index("given") + 1] == "tick"


def test_take_gives_the_highest_priority_first_and_the_oldest_within_it(session: Session) -> None:
    session.put([Put("a", priority, f"{priority}-{n}") for n in range(2) for priority in (0, 9, 5)])
    session.put([Put("b", 7, "7-b")])
    taken = session.take(["a", "b"], 4) + session.take(["a", "b"], 10)
    assert [body for _, body in taken] == ["9-0", "9-1", "7-b", "5-0", "5-1", "0-0", "0-1"]
    assert session.take(["a", "b"], 10) == []


def test_two_takers_never_get_the_same_message(session: Session, dsn: str) -> None:
    session.put([Put("race", 5, str(n)) for n in range(200)])
    start = threading.Barrier(4)
    taken: list[str] = []

    def take() -> None:
        own = Session(dsn)
        start.wait(10)
        while got := own.take(["race"], 7):
            taken.extend(body for _, body in got)
        own.close()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    taken.extend(body for _, body in session.take(["race"], 200))
    assert sorted(taken, key=int) == [str(n) for n in range(200)]


def test_listener_hears_which_queue_was_rung(session: Session, dsn: str) -> None:
    listener = Session(dsn, listen=True)
    try:
        session.put([Put("x", 5, "1"), Put("x", 5, "2"), Put("y", 5, "3")])
        listener.alive()
        assert listener.heard() == {"x", "y"}
        assert listener.heard() == set()
    finally:
        listener.close()
        session.purge("x")
        session.purge("y")


def test_queue_whose_consumer_is_gone_is_swept_and_others_stay(session: Session) -> None:
    dead, alive = Binding("fan", "", "", "dead.pidbox", True), Binding("fan", "", "", "alive.pidbox", True)
    session.bind([dead, alive, Binding("tools", "tools", "", "kept", False)])
    session.fan_out("fan", "hello")
    session.put([Put("kept", 5, "1"), Put("orphan.pidbox", 5, "2")])
    assert threading.Event().wait(0.3) is False
    session.bind([alive])
    assert session.sweep(0.25) == 2
    assert session.sizes(["dead.pidbox", "alive.pidbox", "kept", "orphan.pidbox"]) == {"alive.pidbox": 1, "kept": 1}
    assert [queue for *_, queue in session.table("fan")] == ["alive.pidbox"]
    for queue in ("alive.pidbox", "kept"):
        session.forget(queue)


def test_topic_exchange_reaches_the_queues_whose_pattern_fits(site: Site) -> None:
    pgq.register()
    with Connection(site.url) as connection:
        exchange = Exchange("news", type="topic", durable=True)
        channel = connection.channel()
        for name, key in (("all", "#"), ("tasks", "task.*"), ("workers", "worker.*")):
            Queue(f"news.{name}", exchange, routing_key=key)(channel).declare()
        connection.Producer(exchange=exchange).publish({"n": 1}, routing_key="task.sent", serializer="json")
        sizes = {name: channel._size(f"news.{name}") for name in ("all", "tasks", "workers")}
        for name in sizes:
            channel.queue_delete(f"news.{name}")
    assert sizes == {"all": 1, "tasks": 1, "workers": 0}


def test_broker_url_carries_the_socket_and_shows_no_password() -> None:
    url = pgq.broker_url("postgresql+psycopg://ada:sec,ret@/mesh?host=%2Ftmp%2Fa+dir%2Fsock")
    assert url.startswith("pgq+postgresql://")
    assert "," not in url
    pgq.register()
    connection = Connection(url)
    assert psycopg.conninfo.conninfo_to_dict(pgq.database_url(connection.hostname)) == {
        "user": "ada", "password": "sec,ret", "dbname": "mesh", "host": "/tmp/a dir/sock"}  # fmt: skip
    assert "ret" not in connection.as_uri()


def test_a_message_that_outlives_its_channel_is_acknowledged_in_peace(site: Site) -> None:
    pgq.register()
    with Connection(site.url) as connection:
        queue, got = Queue(site.queue("outlived"), channel=connection), []
        queue.declare()
        connection.Producer().publish({}, routing_key=queue.name)
        with connection.Consumer(queue, callbacks=[lambda _, message: got.append(message)]) as consumer:
            connection.drain_events(timeout=5)
            consumer.channel.close()  # as a lost connection does, while a thread still works
        [message] = got
        message.ack()
        message.channel.basic_reject(message.delivery_tag)


def test_messages_that_cannot_be_put_back_are_written_nowhere(
    own_site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pgq.register()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with psycopg.connect(POSTGRES, autocommit=True) as admin, Connection(own_site.url) as connection:
        queue, got = Queue(own_site.queue("unanswered"), channel=connection), []
        queue.declare()
        connection.Producer().publish({"secret": 1}, routing_key=queue.name)
        consumer = connection.Consumer(queue, callbacks=[lambda _, message: got.append(message)])
        consumer.consume()
        connection.drain_events(timeout=5)
        shut_out(pgq.database_url(own_site.url), admin=admin)
        consumer.channel.close()
    assert len(got) == 1
    assert list(tmp_path.iterdir()) == []
