"""S59: Flower shows our tasks read-only on loopback, or behind a password, or not at all."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from agentmesh.communication.broker import Broker
from agentmesh.communication.flower import check_address, run_flower
from agentmesh.errors import Mistake, Unsafe
from tests.communication.conftest import REPOSITORY, Site, Worker, postgres_site


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "192.0.2.1", "example.org", "127.0.0.1.example.org"])
def test_s59_open_address_without_a_password_is_refused(address: str) -> None:
    with pytest.raises(Unsafe):
        run_flower("redis://127.0.0.1:1/0", address=address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_s59_loopback_needs_no_password(address: str) -> None:
    check_address(address, None)


@pytest.mark.parametrize("given", ["", "user", "user:", ":password", "a:b,c:d"])
def test_s59_password_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(Mistake):
        check_address("0.0.0.0", given)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Flower:
    """run_flower in a process of its own."""

    def __init__(self, site: Site, *, address: str = "127.0.0.1", basic_auth: str | None = None) -> None:
        self.port = free_port()
        call = f"run_flower({site.url!r}, address={address!r}, port={self.port}, basic_auth={basic_auth!r}, "
        script = f"from agentmesh.communication.flower import run_flower\n{call}key_prefix={site.tag + ':'!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=REPOSITORY, stderr=subprocess.DEVNULL,
            env=os.environ | {"FLOWER_UNAUTHENTICATED_API": "true", "FLOWER_ADDRESS": "0.0.0.0"},
        )  # fmt: skip
        until = time.monotonic() + 30
        while True:
            try:
                self.ask("/workers")
            except OSError:
                assert time.monotonic() < until, "Flower did not come up"
                assert self._process.poll() is None, "Flower ended"
                threading.Event().wait(0.1)
            else:
                return

    def ask(self, path: str, *, method: str = "GET", auth: str | None = None) -> tuple[int, str]:
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            headers = {} if auth is None else {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()}
            wire.request(method, path, headers=headers)
            answer = wire.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            wire.close()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


@pytest.fixture(scope="module")
def pgq() -> Iterator[Site]:
    yield from postgres_site(f"amtest_flower_{os.getpid()}")


def test_s59_loopback_flower_shows_tasks_with_trace_ids_and_takes_no_orders(pgq: Site) -> None:
    worker, flower = Worker(pgq), Flower(pgq)
    app = pgq.app()
    broker = Broker(app)
    try:
        until = time.monotonic() + 20
        shown = ""
        ring = pgq.ring()
        while str(ring.trace_id) not in shown and time.monotonic() < until:
            ring = pgq.ring(envelope="canary-envelope")
            broker.ring([ring])
            worker.ran(ring)
            threading.Event().wait(0.3)
            shown = flower.ask(f"/task/{ring.task_id}")[1]
        assert "tool.echo" in shown
        assert str(ring.trace_id) in shown
        assert "canary" not in shown
        for order in ("worker/shutdown/" + worker.name, "worker/pool/restart/" + worker.name, "task/revoke/x"):
            assert flower.ask(f"/api/{order}", method="POST")[0] in {401, 403}
        after = pgq.ring()
        broker.ring([after])
        worker.ran(after)
    finally:
        broker.close()
        app.close()
        flower.stop()
        worker.stop()


def test_s59_open_flower_asks_for_the_password_on_every_page(pgq: Site) -> None:
    flower = Flower(pgq, address="0.0.0.0", basic_auth="ada:long-secret")
    try:
        for page in ("/", "/workers", "/tasks", "/broker", "/api/workers"):
            assert flower.ask(page)[0] == 401, page
        for page in ("/metrics", "/healthcheck"):
            assert flower.ask(page)[0] in {401, 404}, page
        assert flower.ask("/workers", auth="ada:long-secret")[0] == 200
        assert flower.ask("/workers", auth="ada:wrong")[0] == 401
    finally:
        flower.stop()
