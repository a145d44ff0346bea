"""The handle of a dispatched intent, wherever its rows are read from."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from agentmesh.errors import StillWorking, TraceFailed
from agentmesh.records import Json

ENDED = frozenset({"done", "failed", "cancelled"})


class Handle(ABC):
    """What a producer may ask of its trace. `str(trace)` is its id."""

    __slots__ = ()
    id: UUID

    @abstractmethod
    def _row(self) -> dict[str, Any]:
        """Its status, result and error now."""

    @abstractmethod
    def _events(self, after: int) -> list[dict[str, Any]]:
        """Its events behind number `after`, in order."""

    @abstractmethod
    def _whole(self, result: Json) -> Json:
        """A result as it was returned, wherever it is kept."""

    def __str__(self) -> str:
        return str(self.id)

    def status(self) -> str:
        """held, queued, running, waiting, done, failed or cancelled. Raises StillWorking while the dispatch is uncommitted."""
        return str(self._row()["status"])

    def result(self, timeout: float | None = None) -> Json:
        """What the trace ended with, within `timeout` seconds (None: for ever).

        Raises TraceFailed with the recorded error, or StillWorking when the time is over; the work goes on.
        """
        waited, pause = 0.0, 0.005
        while True:
            row = self._row()
            if row["status"] in ENDED:
                return self._ended(row)
            if timeout is not None and waited >= timeout:
                raise StillWorking(f"trace {self.id} has not ended", value=f"{row['status']} after {timeout:g} s")
            started = time.monotonic()
            threading.Event().wait(pause if timeout is None else min(pause, timeout - waited))
            waited += time.monotonic() - started
            pause = min(0.25, pause * 1.5)

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """The trace's events in order, as they are committed, until it has ended: seq, name, at, step_id, body."""
        seen = 0
        while True:
            status = await asyncio.to_thread(self.status)
            while events := await asyncio.to_thread(self._events, seen):
                for event in events:
                    seen = event["seq"]
                    yield event
            if status in ENDED:
                return
            await asyncio.sleep(0.1)

    def _ended(self, row: dict[str, Any]) -> Json:
        if row["status"] == "done":
            return self._whole(row["result"])
        error = row["error"] or {}
        raise TraceFailed(
            f"trace {self.id} {row['status']}: {error.get('message', 'no reason recorded')}", value=error.get("code"),
            next=f"agentmesh trace show {self.id}",
        )  # fmt: skip
