"""/v1/stream: the events of one trace as they are committed, resuming exactly behind Last-Event-ID.

One look at the database for all streams of this process finds whose trace has moved; a stream without news costs a
coroutine. Whoever shows a token shows it for as long as the stream is open: it is looked at again and again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agentmesh.console.auth import Principal
from agentmesh.console.parts import READ, Bearer, Door, Parts, Reader, authenticated
from agentmesh.console.problems import AWAY
from agentmesh.console.shapes import Event
from agentmesh.errors import MeshError
from agentmesh.infrastructure.database import Database
from agentmesh.observation import timeline

log = structlog.get_logger("agentmesh.gateway")
router = APIRouter(tags=["traces"], dependencies=[Depends(authenticated)])

LOOK_S = 0.25
AGAIN_S = 10.0
"""How long a token is believed before it is looked at again."""
BATCH = 200


class Watcher:
    """Wakes the streams whose trace has new events."""

    def __init__(self) -> None:
        self._watched: Counter[tuple[str, UUID]] = Counter()
        self._seen: dict[UUID, int] = {}
        self._news = asyncio.Condition()
        self.closed = False

    async def run(self, db: Database) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            watched = list(self._watched)
            if not watched:
                continue
            try:
                found = await run_in_threadpool(timeline.heads, db, watched)
            except (MeshError, *AWAY):
                continue  # while the database is away there is no news
            async with self._news:
                self._seen = found
                self._news.notify_all()

    async def close(self) -> None:
        """Every stream ends; its client comes back, to us or to another gateway."""
        self.closed = True
        async with self._news:
            self._news.notify_all()

    async def beyond(self, tenant: str, trace_id: UUID, seq: int, *, within: float) -> None:
        """The trace has more than `seq` events, or the time is over, or the streams end."""
        key = (tenant, trace_id)
        self._watched[key] += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(within), self._news:
                    await self._news.wait_for(lambda: self.closed or self._seen.get(trace_id, 0) > seq)
        finally:
            self._watched[key] -= 1
            if not self._watched[key]:
                del self._watched[key]


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream that may begin."""

    who: Principal
    trace_id: UUID
    after: int
    token: str


def opened(
    door: Door, who: Reader, bearer: Bearer, trace: UUID,
    last: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=2**31 - 1)] = None,
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Iterator[Opened]:  # fmt: skip
    """Raises UnknownTrace, RateLimited, before anything is streamed."""
    timeline.header(door.db, who.tenant, trace)
    with door.streams.one(who):
        yield Opened(who, trace, after if last is None else last, bearer.credentials if bearer else "")


@router.get("/v1/stream", response_class=EventSourceResponse, summary="A trace's events as they are committed")
async def stream(
    request: Request, door: Door, asked: Annotated[Opened, Depends(opened)]
) -> AsyncIterator[ServerSentEvent]:
    """`id` is the event's number. `gap`: events are missing, read them where it says. `end`: nothing follows."""
    watcher: Watcher = request.scope["gateway"].watcher
    seen = asked.after
    while not watcher.closed:
        row = await run_in_threadpool(_status, door, asked)
        if row is None:
            return
        while rows := await run_in_threadpool(_events, door, asked, seen):
            if rows[0]["seq"] > seen + 1:
                yield ServerSentEvent(event="gap", data={"url": f"/v1/traces/{asked.trace_id}/events?after={seen}"})
            for one in rows:
                seen = one["seq"]
                said = Event.model_validate(one).model_dump(mode="json")
                yield ServerSentEvent(event=one["name"], id=str(seen), data=said)
        if row["status"] in timeline.ENDED:
            yield ServerSentEvent(event="end", data={"status": row["status"]})
            return
        await watcher.beyond(asked.who.tenant, asked.trace_id, seen, within=AGAIN_S)


def _status(door: Parts, asked: Opened) -> dict[str, Any] | None:
    """The trace as it is, read before its events; None when the caller may not see it any more."""
    try:
        who = door.authenticator(asked.token)
    except MeshError:
        return None
    if who.tenant != asked.who.tenant or not who.may(READ):
        return None
    return timeline.header(door.db, who.tenant, asked.trace_id)


def _events(door: Parts, asked: Opened, after: int) -> list[dict[str, Any]]:
    return timeline.events(door.db, asked.who.tenant, asked.trace_id, after=after, limit=BATCH)
