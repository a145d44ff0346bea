"""A broker of each kind under names of our own, and a real hardened worker on it, in a process of its own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kombu
import psycopg
import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from celery.backends.base import BaseBackend

from agentmesh.communication import pgq
from agentmesh.communication.broker import Broker, make_app
from agentmesh.records import Ring, new_id

REPOSITORY = Path(__file__).parents[2]
POSTGRES = os.environ.get("AGENTMESH_TEST_POSTGRES_URL", "postgresql://root@127.0.0.1:5432/test")
REDIS = os.environ.get("AGENTMESH_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
AMQP = os.environ.get("AGENTMESH_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")


class CountingNothing(BaseBackend):
    """The producer's side of a chord: the parts are counted elsewhere, as in our own backend."""

    def ensure_chords_allowed(self) -> None:
        pass

    def apply_chord(self, *_: Any, **__: Any) -> None:
        pass


@dataclass
class Site:
    """One broker, with queue names nobody else uses."""

    kind: str
    url: str
    tag: str

    def app(self) -> Celery:
        return make_app(broker_url=self.url, backend=CountingNothing, key_prefix=f"{self.tag}:")

    def queue(self, name: str = "tools") -> str:
        return f"{self.tag}.{name}"

    def ring(self, name: str = "tools", *, task: str = "tool.echo", **fields: Any) -> Ring:
        fields = {"kind": "call", "id": new_id(), "epoch": 1, "trace_id": new_id()} | fields
        return Ring(queue=self.queue(name), task=task, **fields)


def needed(what: str, reach: Callable[[], object]) -> None:
    """Skips at the desk where the service is missing; in CI that is a failure."""
    try:
        reach()
    except Exception as exc:  # noqa: BLE001 - each client has its own words for "not there"
        if os.environ.get("CI"):
            pytest.fail(f"{what} does not answer: {exc}")
        pytest.skip(f"{what} does not answer: {exc}")


def postgres_site(tag: str) -> Iterator[Site]:
    needed("PostgreSQL", lambda: psycopg.connect(POSTGRES, connect_timeout=3).close())
    with psycopg.connect(POSTGRES, autocommit=True) as db:
        db.execute(f'CREATE DATABASE "{tag}"')  # type: ignore[arg-type]
    made = sa.make_url(POSTGRES).set(database=tag).render_as_string(hide_password=False)
    yield Site("pgq", pgq.broker_url(made), tag)
    with psycopg.connect(POSTGRES, autocommit=True) as db:
        db.execute(f'DROP DATABASE "{tag}" WITH (FORCE)')  # type: ignore[arg-type]


def redis_site(tag: str) -> Iterator[Site]:
    with redis.Redis.from_url(REDIS) as client:
        needed("Redis", client.ping)
        yield Site("redis", REDIS, tag)
        for key in client.scan_iter(f"{tag}:*"):
            client.delete(key)


def amqp_site(tag: str) -> Iterator[Site]:
    with kombu.Connection(AMQP, connect_timeout=3) as connection:
        needed("RabbitMQ", connection.connect)
        yield Site("amqp", AMQP, tag)
        for name in ("tools", "agent", "other", "silent"):
            connection.default_channel.queue_delete(f"{tag}.{name}")
            connection.default_channel.exchange_delete(f"{tag}.{name}")


SITES = {"pgq": postgres_site, "redis": redis_site, "amqp": amqp_site}


@pytest.fixture(scope="module", params=sorted(SITES))
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from SITES[request.param](f"amtest_bell_{new_id().hex[-12:]}")


@pytest.fixture
def broker(site: Site) -> Iterator[Broker]:
    app = site.app()
    made = Broker(app)
    yield made
    made.close()
    app.close()


class Worker:
    """A worker process of bell_worker.py; what it says comes line by line."""

    def __init__(self, site: Site, *, pool: str = "threads", queues: tuple[str, ...] = ("tools", "agent")) -> None:
        self.name = f"w-{new_id().hex[-8:]}@test"
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("bell_worker.py")), site.url, f"{site.tag}:", self.name, pool,
             *map(site.queue, queues)],
            stdout=subprocess.PIPE, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.until(lambda line: line["what"] == "ready")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # Celery itself says goodbye in plain words
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def until(self, wanted: Callable[[dict[str, Any]], bool], *, within_s: float = 20) -> dict[str, Any]:
        """The first line from now on that is wanted; all lines are kept in `said`."""
        while True:
            try:
                line = self._lines.get(timeout=within_s)
            except queue.Empty:
                raise AssertionError(f"the worker said only {self.said[-20:]}") from None
            assert line is not None, f"the worker ended after {self.said[-20:]}"
            self.said.append(line)
            if wanted(line):
                return line

    def ran(self, ring: Ring, **options: Any) -> dict[str, Any]:
        return self.until(lambda line: line["what"] == "ran" and line["id"] == ring.task_id, **options)

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def worker(site: Site) -> Iterator[Worker]:
    made = Worker(site)
    yield made
    made.stop()
