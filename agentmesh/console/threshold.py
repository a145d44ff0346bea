"""What every request passes first: whose name it calls, how large it is, how long it may take, what the answer forbids.

Plain ASGI around the app, and a protocol for uvicorn that lets nobody keep a connection by being slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentmesh.console import problems
from agentmesh.errors import BadRequest, MeshError, Overloaded, PayloadTooLarge

log = structlog.get_logger("agentmesh.gateway")

_PORT = re.compile(r":\d{1,5}\Z")
HEADERS_S = 10.0
"""How long a client may take to send the headers of a request."""
DRAIN_S = 30.0
"""How long a client may leave what we sent unread."""
LINGER_S = 1.0
"""How long what a refused client still sends is read."""
SAFE = {
    "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}  # fmt: skip


class Threshold:
    """Refuses foreign names, encodings and sizes; answers 503 for what takes longer than `timeout_s` to begin."""

    def __init__(
        self, app: ASGIApp, *, hosts: Sequence[str], body_bytes: int, at_once: int, timeout_s: float,
        seen: Callable[[Scope, int], None],
    ) -> None:  # fmt: skip
        self._app, self._hosts, self._body, self._at_once = app, frozenset(hosts), body_bytes, at_once
        self._timeout_s, self._seen = timeout_s, seen
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        incoming = _Incoming(receive)
        refused = self._refused(Headers(scope=scope))
        answer = _Answer(send, lambda status: self._seen(scope, status))
        if refused is not None:
            await incoming.drain(self._body)
            await answer.refuse(scope, refused)
        else:
            await self._answered(scope, incoming, answer)

    def _refused(self, headers: Headers) -> MeshError | None:
        host = _PORT.sub("", headers.get("host", "").lower())
        if self._hosts and host not in self._hosts:
            return BadRequest(
                "this gateway has another name", status=421, value=host, expected="a name of gateway.hosts"
            )
        if headers.get("content-encoding", "identity") != "identity":
            return BadRequest("the request is encoded", status=415, value=headers["content-encoding"],
                              expected="no Content-Encoding")  # fmt: skip
        length = headers.get("content-length", "0")
        if len(length) > 18 or int(length) > self._body:
            return self._too_large(length)
        if len(self._running) >= self._at_once:
            return Overloaded("too many requests at once", value=self._at_once)
        return None

    def _too_large(self, size: object) -> PayloadTooLarge:
        return PayloadTooLarge(
            "the request is too large", value=f"{size} bytes", expected=f"at most {self._body} bytes"
        )

    def _counted(self, receive: _Incoming) -> Receive:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._body:
                raise self._too_large(f"over {self._body}")
            return message

        return counted

    async def _answered(self, scope: Scope, incoming: _Incoming, answer: _Answer) -> None:
        """The app has answered, or was left behind: its thread ends by its own deadlines, and nobody waits for it."""
        task = asyncio.ensure_future(self._app(scope, self._counted(incoming), answer.send))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            begun = asyncio.ensure_future(answer.begun.wait())
            await asyncio.wait({task, begun}, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            begun.cancel()
            if not task.done() and not answer.begun.is_set():
                await answer.refuse(scope, Overloaded("no answer in time", value=f"{self._timeout_s:g} s"))
                return
            await asyncio.wait({task})
            if not answer.begun.is_set() and (exc := task.exception()) is not None:
                await incoming.drain(self._body)
                await answer.refuse(scope, problems.as_mesh_error(exc))
        except asyncio.CancelledError:
            task.cancel()
            raise

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.warning("a request ended badly", why=type(exc).__name__)


class _Incoming:
    """The request's body as it comes in."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._more = receive, True

    async def __call__(self) -> Message:
        message = await self._receive()
        self._more = bool(message.get("more_body"))
        return message

    async def drain(self, most: int) -> None:
        """What is still being sent is read, as far as that is little and quick: who sends into a closed connection gets a
        reset and may never see the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while self._more and most > 0:
                    most -= len((await self()).get("body", b""))


class _Answer:
    """One response on its way out. Once it was refused, what the app still says goes nowhere."""

    def __init__(self, send: Send, seen: Callable[[int], None]) -> None:
        self._send, self._seen = send, seen
        self.begun = asyncio.Event()
        self._left = False

    async def send(self, message: Message) -> None:
        if not self._left:
            await self._forward(message)

    async def refuse(self, scope: Scope, error: MeshError) -> None:
        self._left = True
        told = problems.response(error, scope["path"])
        told.headers["Connection"] = "close"  # whatever is still being sent to us
        await told(scope, _nothing, self._forward)

    async def _forward(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun.set()
            headers = MutableHeaders(scope=message)
            for name, value in SAFE.items():
                headers.setdefault(name, value)
            self._seen(message["status"])
        await self._send(message)


async def _nothing() -> MutableMapping[str, Any]:
    return {"type": "http.disconnect"}


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with an end to patience: for headers that do not come, and for answers that nobody reads."""

    def connection_made(self, transport: Any) -> None:
        self._headers_due: asyncio.TimerHandle | None = None
        self._drain_due: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers_due, self._drain_due):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._drain_due = self.loop.call_later(DRAIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._drain_due is not None:
            self._drain_due.cancel()

    def _watch(self) -> None:
        """While no request is being answered, one has to arrive within HEADERS_S."""
        waiting = self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]
        if waiting and self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADERS_S, self.transport.close)
        elif not waiting and self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
