"""A server that speaks the chat-completions protocol over real sockets, and can break it in every way there is.

It answers each question by the next step of its script (the last one again and again) and keeps what it was asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[["Answering"], None]
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body["messages"]
        return found


class ModelServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *script: Step) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.script, self.asked, self.over = list(script), [], threading.Event()
        self.asked: list[Asked]
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next(self, asked: Asked) -> Step:
        with self._lock:
            self.asked.append(asked)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class Answering(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with suppress(ConnectionError):  # whoever asked has heard enough
            self.server.next(Asked(self.path, headers, body))(self)

    def head(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True

    def pause(self, seconds: float) -> None:
        self.server.over.wait(seconds)

    def chunks(self, chunks: Iterable[Any], *, done: bool = True) -> None:
        for one in chunks:
            self.wfile.write(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n".encode())
        if done:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def model_server(*script: Step) -> Iterator[ModelServer]:
    with ModelServer(*script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


# --- what it can answer


def delta(*, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "small-1.5", "system_fingerprint": "fp_7", "choices": [choice]}


def says(text: str, *, finish: str = "stop", width: int = 3) -> Step:
    """The text, `width` characters a chunk; at the end the usage."""

    def step(to: Answering) -> None:
        to.head()
        pieces = [delta(content=text[n : n + width]) for n in range(0, len(text), width)]
        last = {"choices": [], "model": "small-1.5", "usage": USAGE}
        to.chunks([delta(role="assistant", content=""), *pieces, delta(finish=finish), last])

    return step


def calls(*wanted: tuple[str, str], indexes: bool = True) -> Step:
    """Tool calls, their arguments in two pieces."""

    def step(to: Answering) -> None:
        to.head()
        pieces = []
        for n, (name, arguments) in enumerate(wanted):
            place, half = {"index": n if indexes else 0}, len(arguments) // 2
            first = place | {"id": f"call_{n}", "function": {"name": name, "arguments": arguments[:half]}}
            pieces += [
                delta(tool_calls=[first]),
                delta(tool_calls=[place | {"function": {"arguments": arguments[half:]}}]),
            ]
        to.chunks([*pieces, delta(finish="tool_calls"), {"choices": [], "usage": USAGE}])

    return step


def answers(status: int, body: str = "{}", kind: str = "application/json", **headers: str) -> Step:
    """A plain answer of this status."""

    def step(to: Answering) -> None:
        to.head(status, kind, Content_Length=str(len(body.encode())), **headers)
        to.wfile.write(body.encode())

    return step


def streams(*chunks: Any, done: bool = True) -> Step:
    """These chunks and nothing else."""

    def step(to: Answering) -> None:
        to.head()
        to.chunks(chunks, done=done)

    return step


def silent(to: Answering) -> None:
    """Takes the question and never says a word."""
    to.pause(60)


def dripping(to: Answering) -> None:
    """A comment line that goes on for ever, a byte at a time: no event ever ends, and no read ever waits long."""
    to.head()
    to.wfile.write(b":")
    while not to.server.over.is_set():
        to.wfile.write(b".")
        to.pause(0.02)


def stalling(to: Answering) -> None:
    """Begins after 1.4 s, and then says nothing more."""
    to.pause(1.4)
    to.head()
    to.pause(60)


def slow_headers(to: Answering) -> None:
    """Headers a byte at a time."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000:
        if to.server.over.is_set():
            return
        to.wfile.write(bytes([byte]))
        to.pause(0.02)


def endless(to: Answering) -> None:
    """One token after the other, for ever."""
    to.head()
    while not to.server.over.is_set():
        to.chunks([delta(content="more ")], done=False)


def flood(to: Answering) -> None:
    """One line that never ends."""
    to.head()
    to.wfile.write(b"data: ")
    while not to.server.over.is_set():
        to.wfile.write(b"x" * 65_536)


def torn(to: Answering) -> None:
    """A chunked body that ends in the middle of a chunk."""
    to.head(Transfer_Encoding="chunked")
    piece = f"data: {json.dumps(delta(content='half'))}\n\n".encode()
    to.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\nff\r\ndata: ")
