"""/v1/traces: read what happened, and steer it. Whatever is not the caller's tenant's does not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request

from agentmesh.console.auth import Principal
from agentmesh.console.parts import (
    STEER,
    Body,
    Debugger,
    Door,
    Parts,
    Reader,
    Steerer,
    authenticated,
    media_of,
    read_cursor,
    read_json,
    takes,
    write_cursor,
)
from agentmesh.console.shapes import (
    FILTER,
    Attempt,
    Call,
    CountedPage,
    Dump,
    Event,
    Memory,
    Order,
    Page,
    Steered,
    Step,
    TraceFull,
    TraceRow,
)
from agentmesh.errors import TooLate
from agentmesh.infrastructure.database import Row
from agentmesh.observation import timeline
from agentmesh.state import retry, steering

COUNTED = 10_000
router = APIRouter(prefix="/v1/traces", tags=["traces"], dependencies=[Depends(authenticated)])

Limit = Annotated[int, Query(ge=1, le=timeline.MAX_PAGE, description="How many at most.")]
Cursor = Annotated[str | None, Query(max_length=500, description="Of a `next` link.")]
Filter = Annotated[
    str | None,
    Query(
        max_length=500, description="As `status:failed agent:mailer`.",
        json_schema_extra={"pattern": f"^({FILTER}( {FILTER})*)?$"},  # said here, and checked with a better answer
    ),
]  # fmt: skip
Part = Literal["steps", "calls", "attempts", "memory"]


@router.get("", response_model=CountedPage[TraceRow], summary="Traces, newest first")
def list_traces(
    door: Door, who: Reader, cursor: Cursor = None, limit: Limit = 50,
    filter: Filter = None,  # noqa: A002 - the parameter's name
) -> dict[str, Any]:  # fmt: skip
    where = timeline.parse_filter(filter)
    about = f"traces {filter or ''}"
    before = UUID(read_cursor(door, who, about, cursor)) if cursor else None
    rows = timeline.traces(door.db, who.tenant, where=where, limit=limit, before=before)
    known = timeline.count(door.db, who.tenant, where=where, cap=COUNTED)
    following = None
    if len(rows) == limit:
        said = {"cursor": write_cursor(door, who, about, str(rows[-1]["id"])), "limit": limit}
        following = "/v1/traces?" + urlencode(said | ({"filter": filter} if filter else {}))
    return {"items": rows, "next": following, "count": min(known, COUNTED), "more": known > COUNTED}


@router.get("/{trace_id}", response_model=TraceFull, summary="One trace: status, payload, result")
def show_trace(door: Door, who: Reader, trace_id: UUID) -> Row:
    row = timeline.header(door.db, who.tenant, trace_id)
    return row | {name: door.blobs.expand(who.tenant, row[name]) for name in ("payload", "result")}


@router.get(
    "/{trace_id}/dump", response_model=Dump, summary="Everything about one trace, to find out why it stands there"
)
def dump_trace(door: Door, who: Debugger, trace_id: UUID) -> dict[str, Any]:
    """Without secrets. What each open step will come to, what holds the trace up, and all that is recorded of it."""
    return door.dumps_of(who.tenant).dump(trace_id)


@router.get("/{trace_id}/events", response_model=Page[Event], summary="What happened, in order")
def show_events(
    door: Door, who: Reader, trace_id: UUID, after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0, limit: Limit = 50
) -> dict[str, Any]:
    timeline.header(door.db, who.tenant, trace_id)
    rows = timeline.events(door.db, who.tenant, trace_id, after=after, limit=limit)
    following = f"/v1/traces/{trace_id}/events?after={rows[-1]['seq']}&limit={limit}" if len(rows) == limit else None
    return {"items": rows, "next": following}


def _lists(name: Part, page: type[Page[Any]], summary: str) -> None:
    """The route of one list under a trace."""

    def show(door: Door, who: Reader, trace_id: UUID, cursor: Cursor = None, limit: Limit = 50) -> dict[str, Any]:
        about = f"{name} {trace_id}"
        skip = int(read_cursor(door, who, about, cursor)) if cursor else 0
        timeline.header(door.db, who.tenant, trace_id)
        rows = timeline.part(door.db, who.tenant, trace_id, name, skip=skip, limit=limit)
        following = None
        if len(rows) == limit:
            said = {"cursor": write_cursor(door, who, about, skip + limit), "limit": limit}
            following = f"/v1/traces/{trace_id}/{name}?{urlencode(said)}"
        return {"items": rows, "next": following}

    show.__name__ = f"show_{name}"
    router.get(f"/{{trace_id}}/{name}", response_model=page, summary=summary)(show)


_lists("steps", Page[Step], "Visits to nodes of the plan")
_lists("calls", Page[Call], "Tool calls")
_lists("attempts", Page[Attempt], "Starts of calls, reasoners and callbacks, those that run now among them")
_lists("memory", Page[Memory], "What the trace remembers, and its context")


# --- orders -----------------------------------------------------------------------------------------------------------


def _order(verb: str, summary: str, give: Callable[[Parts, Principal, UUID, Order], steering.Steered]) -> None:
    """The route of one order. An order without effect because it was so already is no error; one too late is."""

    def steer(request: Request, door: Door, who: Steerer, trace_id: UUID, raw: Body) -> dict[str, Any]:
        said = read_json(Order, raw, media_of(request)) if raw else Order()
        done = give(door, who, trace_id, said)
        door.ring(done.rings)
        if not done.changed and done.status in timeline.ENDED and (verb, done.status) != ("cancel", "cancelled"):
            raise TooLate("the trace has ended", value=done.status, next=f"agentmesh trace show {trace_id}")
        return {"id": trace_id, "changed": done.changed, "status": done.status, "paused": done.paused}

    steer.__name__ = f"{verb}_trace"
    schema = {"$ref": "#/components/schemas/Order"}
    router.post(
        f"/{{trace_id}}/{verb}", response_model=Steered, summary=summary,
        openapi_extra=takes(("application/json", schema), required=False),
    )(steer)  # fmt: skip


def _retry(door: Parts, who: Principal, trace_id: UUID, _said: Order) -> steering.Steered:
    timeline.header(door.db, who.tenant, trace_id)
    rings = retry.retry(door.db, tenant=who.tenant, trace_id=trace_id, by=who.under(STEER))
    return steering.Steered(changed=True, status="running", paused=False, rings=tuple(rings))


_order("pause", "Start no further step", lambda door, who, trace_id, said: steering.pause(
    door.db, tenant=who.tenant, trace_id=trace_id, by=who.under(STEER), reason=said.reason))  # fmt: skip
_order("resume", "Go on where it was paused", lambda door, who, trace_id, said: steering.resume(
    door.db, tenant=who.tenant, trace_id=trace_id, by=who.under(STEER), reason=said.reason))  # fmt: skip
_order("cancel", "End it now", lambda door, who, trace_id, said: steering.cancel(
    door.db, tenant=who.tenant, trace_id=trace_id, by=who.under(STEER), reason=said.reason, tree=said.tree))  # fmt: skip
_order("retry", "Run the failed part again", _retry)
