"""Running the gateway: uvicorn around it, on a socket of ours."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from agentmesh.console.gateway import ACPGateway
from agentmesh.console.threshold import PatientProtocol
from agentmesh.errors import Mistake

MAX_HEADERS_BYTES = 16 * 1024
GRACE_S = 5


class Server(uvicorn.Server):
    """The gateway on its socket. `ready` is told the URL once it answers. Raises Mistake where it cannot listen."""

    def __init__(self, gateway: ACPGateway, ready: Callable[[str], None]) -> None:
        section = gateway.parts.section
        self._gateway, self._ready = gateway, ready
        self._listener = _listening(section.address)
        super().__init__(uvicorn.Config(
            gateway, http=PatientProtocol, ws="none", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, h11_max_incomplete_event_size=MAX_HEADERS_BYTES,
            limit_concurrency=2 * section.connections, timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=_path(section.certificate), ssl_keyfile=_path(section.certificate_key),
        ))  # fmt: skip

    def serve_until_stopped(self) -> None:
        """It has served until a signal, or `should_exit`, ended it."""
        with self._listener:
            self.run([self._listener])

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        host, port = self._listener.getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        self._ready(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: Any = None) -> None:
        await self._gateway.watcher.close()  # live streams end as soon as it is told to stop
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        self.force_exit = self.should_exit  # told twice
        self.should_exit = True


def _listening(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        return socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except (OSError, OverflowError) as exc:
        raise Mistake(
            "the gateway cannot listen there", value=f"{address}: {exc}",
            expected="an address of this machine that nobody listens on", next="agentmesh gateway --address",
        ) from None  # fmt: skip


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
