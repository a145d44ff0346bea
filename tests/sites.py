"""Real HTTP servers for what calls out: they note what they were asked, and answer as a test tells them."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Site:
    """A server on `host`; every method is answered by `answer`."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[Asked] = []
        self.answer: Answer = saying("hello")
        site = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                site.seen.append(Asked(self.command, self.path, headers, body))
                site.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def saying(text: str, *, status: int = 200, kind: str = "text/plain", **headers: str) -> Answer:
    """An answer that is always the same; `retry_after="3"` is the header Retry-After."""

    def say(to: BaseHTTPRequestHandler) -> None:
        body = text.encode()
        to.send_response(status)
        for name, value in ({"content_type": kind, "content_length": str(len(body))} | headers).items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(body)

    return say


def quietly(answer: Answer) -> Answer:
    """`answer`, for a client that goes away before its end."""

    def until_gone(to: BaseHTTPRequestHandler) -> None:
        try:
            answer(to)
        except OSError:
            to.close_connection = True

    return until_gone
