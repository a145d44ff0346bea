"""A TCP proxy between two parts of a mesh, to do to their link what networks do.

`pass_` carries; `delay(s)` carries later; `cut` resets what is open and whatever comes; `hole` reads and drops in both
directions and says nothing; `one_way` drops the answers only; `slow(bytes/s)`; `garble` changes bytes of the answers.
A connection that has lost a byte stays silent for ever, whatever the mode is later: its stream cannot be mended.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Runs in a thread of its own from the start. `there` is a port of this machine or the path of a socket."""

    def __init__(self, there: int | Path) -> None:
        self.there = there
        self.mode = "pass"
        self._delay_s, self._rate = 0.0, 0.0
        self.opened: list[float] = []  # when a connection was asked for
        self.tap: Callable[[int, bytes], None] | None = None  # is told what clients say, by connection
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="proxy", daemon=True)
        self._thread.start()
        assert started.wait(5)

    # --- what a test does to the link -------------------------------------------------------------------------------

    def pass_(self) -> None:
        self._set("pass")

    def delay(self, seconds: float) -> None:
        self._delay_s = seconds
        self._set("delay")

    def cut(self) -> None:
        self._set("cut")
        self._call(lambda: [link.reset() for link in list(self._links)])

    def hole(self) -> None:
        self._set("hole")

    def one_way(self) -> None:
        self._set("one_way")

    def slow(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._set("slow")

    def garble(self) -> None:
        self._set("garble")

    def lead(self, there: int | Path) -> None:
        """New connections go there."""
        self.there = there

    def close(self) -> None:
        self._call(self._loop.stop)
        self._thread.join(5)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _set(self, mode: str) -> None:
        def change() -> None:
            self.mode = mode

        self._call(change)

    def _call(self, what: Callable[[], Any]) -> None:
        """Done in the proxy's thread when this returns."""
        done = threading.Event()

        def run() -> None:
            try:
                what()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(5)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        for link in list(self._links):
            link.reset()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened.append(time.monotonic())
        link = _Link(self, writer)
        self._links.add(link)
        try:
            if self.mode == "cut":
                link.reset()
                return
            with suppress(asyncio.CancelledError):  # at the proxy's end, which asyncio would report as an error
                await link.carry(reader)
        finally:
            self._links.discard(link)


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, near: asyncio.StreamWriter) -> None:
        self._proxy, self._near = proxy, near
        self._far: asyncio.StreamWriter | None = None
        self._deaf = {"up": False, "down": False}

    def reset(self) -> None:
        for writer in filter(None, (self._near, self._far)):
            found = writer.get_extra_info("socket")
            if found is not None and found.family != socket.AF_UNIX:
                with suppress(OSError):
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader) -> None:
        there = self._proxy.there
        try:
            opened = asyncio.open_unix_connection(there) if isinstance(there, Path) else (
                asyncio.open_connection("127.0.0.1", there)
            )  # fmt: skip
            back, self._far = await opened
        except OSError:
            self.reset()
            return
        ends = [
            asyncio.ensure_future(self._pump("up", reader, self._far)),
            asyncio.ensure_future(self._pump("down", back, self._near)),
        ]
        try:
            await asyncio.gather(*ends)
        finally:
            for one in ends:
                one.cancel()
            for writer in (self._near, self._far):
                writer.close()

    async def _pump(self, way: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if way == "up" and self._proxy.tap is not None:
                    self._proxy.tap(id(self), data)
                data = await self._through(way, data)
                if data:
                    sink.write(data)
                    await sink.drain()
        if self._proxy.mode != "hole" and not self._deaf[way]:
            with suppress(OSError):
                sink.write_eof()

    async def _through(self, way: str, data: bytes) -> bytes:
        """What of `data` arrives, when it is time for it."""
        mode = self._proxy.mode
        if mode == "delay":
            await asyncio.sleep(self._proxy._delay_s)
        elif mode == "slow":
            await asyncio.sleep(len(data) / self._proxy._rate)
        elif mode == "garble" and way == "down":
            data = bytes(byte ^ 0x55 for byte in data)
        if mode == "hole" or (mode == "one_way" and way == "down"):
            self._deaf[way] = True
        return b"" if self._deaf[way] else data
