"""For tests, ours and those of plugin authors: real servers, fresh databases, forced races, doorbells by hand.

A missing server skips a test at the desk and fails it in CI. Nothing here sleeps to win a race: `race` lets all
functions go at one barrier, `until` waits for a condition with a time limit.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa

from agentmesh.coordination.heartbeat import here
from agentmesh.infrastructure import migrate
from agentmesh.infrastructure.settings import load
from agentmesh.records import Ring
from agentmesh.state import leases
from agentmesh.state.invariants import broken
from agentmesh.wiring import Mesh, build

__all__ = ["Bells", "broken", "database", "hand_mesh", "missing", "need", "race", "shift", "until"]

T = TypeVar("T")

SERVERS = {
    "AGENTMESH_TEST_POSTGRES_URL": "postgresql://root@127.0.0.1:5432/test",
    "AGENTMESH_TEST_REDIS_URL": "redis://127.0.0.1:6379/9",
    "AGENTMESH_TEST_AMQP_URL": "amqp://guest:guest@127.0.0.1:5672//",
}


def missing(what: str) -> Any:
    """Skip this test at the desk, fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI needs it")
    pytest.skip(f"{what} is missing")


def need(name: str) -> str:
    """The URL of a server that answers: from the environment, or its usual place on this machine."""
    url = os.environ.get(name, SERVERS[name])
    made = sa.make_url(url)
    try:
        socket.create_connection((made.host or "127.0.0.1", made.port or 5432), timeout=2).close()
    except OSError:
        missing(f"{name} ({made.host}:{made.port})")
    return url


@contextmanager
def database(server: str, *, template: str | None = None) -> Iterator[str]:
    """A migrated database of its own on `server`, dropped afterwards."""
    name = f"amtest_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
    url = sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    try:
        migrate.upgrade(url)
        yield url
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def race(*functions: Callable[[], T]) -> list[T | BaseException]:
    """What each function returned or raised, all let go at one barrier; in the order given."""
    barrier = threading.Barrier(len(functions))
    outcomes: list[Any] = [None] * len(functions)

    def run(place: int) -> None:
        barrier.wait(timeout=10)
        try:
            outcomes[place] = functions[place]()
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            outcomes[place] = exc

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return outcomes


def until(condition: Callable[[], T], *, within: float = 20.0, what: str = "the condition") -> T:
    """The first true value of `condition`. Fails the test when there is none `within` seconds."""
    end = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come true within {within:g} s; last seen {value!r}")
        threading.Event().wait(0.02)


def shift(url: str, seconds: float) -> None:
    """Move a database's time: from now on it is this much later than its server's clock."""
    with psycopg.connect(url, autocommit=True) as connection:
        for name, volatility, clock in (
            ("mesh_now", "VOLATILE", "clock_timestamp()"), ("mesh_asof", "STABLE", "statement_timestamp()"),
        ):  # fmt: skip
            connection.execute(
                f"CREATE OR REPLACE FUNCTION mesh.{name}() RETURNS timestamptz LANGUAGE sql {volatility}"
                f" AS $$ SELECT {clock} + interval '{seconds} s' $$"
            )


class Bells:
    """Doorbells by hand: what was rung waits here until the test lets somebody answer."""

    def __init__(self) -> None:
        self.waiting: deque[Ring] = deque()

    def ring(self, rings: Sequence[Ring]) -> None:
        self.waiting.extend(rings)

    def chord(self, header: Sequence[Ring], body: Ring) -> None:  # noqa: ARG002 - the rows decide when it joins
        self.waiting.extend(header)

    def drain(self, mesh: Mesh, *, limit: int = 10_000) -> int:
        """Answer every doorbell in this thread until none is left; how many there were."""
        answered = 0
        while self.waiting:
            answered += 1
            if answered > limit:
                pytest.fail(f"more than {limit} doorbells")
            self.ring(mesh.controller.run_once(self.waiting.popleft()))
        return answered


def hand_mesh(url: str, *, root: Path, flags: dict[str, object] | None = None, **parts: Any) -> tuple[Mesh, Bells]:
    """A mesh in this process, registered as a live worker, whose doorbells are rung by hand."""
    mesh = build(load(flags={"database.url": url, **(flags or {})}, environ={}, cwd=root), root=root, **parts)
    bells = Bells()
    mesh.__dict__["doorbell"] = bells
    mesh.registry.announce(mesh.db, [mesh.tenant])
    worker = here(name="hand", queues=[], agents=[], tools=[], version="1", lease_s=10)
    leases.register(mesh.db, worker)
    mesh.notes.rename(worker.id)
    return mesh, bells
