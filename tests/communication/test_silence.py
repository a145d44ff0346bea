"""A worker behind a silent hole (open connections swallow everything, nobody says goodbye) notices by itself."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from agentmesh.communication.broker import Broker
from tests.communication.conftest import Site, Worker

pytestmark = pytest.mark.story
PORTS = {"redis": 6379, "amqp": 5672, "pgq": 5432}


class Proxy:
    """Passes bytes on, until `swallow`: from then on the connections that are open stay open and carry nothing."""

    def __init__(self, host: str, port: int) -> None:
        self._there = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._deaf: set[socket.socket] = set()
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self) -> None:
        self._deaf.update(self._open)

    def close(self) -> None:
        for one in (self._server, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._there)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source not in self._deaf:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(site: Site) -> Iterator[Proxy]:
    parts = urlsplit(site.url.removeprefix("pgq+"))
    made = Proxy(parts.hostname or "127.0.0.1", parts.port or PORTS[site.kind])
    yield made
    made.close()


def test_worker_consumes_again_soon_after_its_connections_went_silent(site: Site, broker: Broker, proxy: Proxy) -> None:
    parts = urlsplit(site.url.removeprefix("pgq+"))
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    url = site.url.replace(parts.netloc, f"{user}127.0.0.1:{proxy.port}", 1)
    worker = Worker(Site(site.kind, url, site.tag))
    try:
        ring = site.ring()
        broker.ring([ring])
        worker.ran(ring)
        proxy.swallow()
        began = time.monotonic()
        heard, rung = False, set()
        while not heard and time.monotonic() - began < 30:
            ring = site.ring()  # one that was already handed to the dead connection is lost; the rescuer would ring
            rung.add(ring.task_id)
            broker.ring([ring])
            with contextlib.suppress(AssertionError):
                heard = worker.until(lambda line: line.get("id") in rung, within_s=0.5)["what"] == "ran"
        assert heard, "not within 30 s"
        assert worker.running()
    finally:
        worker.stop()
