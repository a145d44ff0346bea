"""What people and systems tell traces over HTTP: signals, decisions, a way back, a fork; and one order for many.

A decision is bound to what was seen: it names the digest that the list of approvals shows, is given once, and never by
whoever asked for the trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from agentmesh.console.auth import Principal
from agentmesh.console.parts import (
    APPROVE,
    FEEDBACK,
    SIGNAL,
    STEER,
    Approver,
    Body,
    Door,
    Parts,
    Reader,
    Rewarder,
    Signaller,
    Steerer,
    authenticated,
    media_of,
    page,
    place,
    read_json,
    takes,
)
from agentmesh.console.shapes import (
    Accepted,
    Approval,
    Bulk,
    BulkDone,
    Decided,
    Decision,
    Fork,
    NewFeedback,
    NewSignal,
    Page,
    Rewarded,
    Rewind,
    Rewound,
    Signalled,
)
from agentmesh.console.traces import Cursor, Limit
from agentmesh.errors import MeshError
from agentmesh.observation import timeline
from agentmesh.state import retry, rewards, rewind, steering

BULK_S = 3.0
BATCH = 50
ORDERS: dict[str, Callable[..., steering.Steered]] = {
    "pause": steering.pause, "resume": steering.resume, "cancel": steering.cancel,
}  # fmt: skip
router = APIRouter(tags=["orders"], dependencies=[Depends(authenticated)])


def _body(name: str) -> dict[str, Any]:
    return takes(("application/json", {"$ref": f"#/components/schemas/{name}"}))


@router.post("/v1/traces/{trace_id}/signals", response_model=Signalled, openapi_extra=_body("NewSignal"),
             summary="Tell a trace what it waits for, or will wait for")  # fmt: skip
def signal(request: Request, door: Door, who: Signaller, trace_id: UUID, raw: Body) -> dict[str, Any]:
    timeline.header(door.db, who.tenant, trace_id)
    said = read_json(NewSignal, raw, media_of(request))
    people = door.people_of(who.tenant)
    sent = people.signal(trace_id, said.name, said.payload, by=who.under(SIGNAL), key=said.key)
    return {"id": trace_id, "heard": sent.heard, "repeated": sent.repeated}


@router.get("/v1/approvals", response_model=Page[Approval], summary="What waits for a person, oldest first")
def list_approvals(door: Door, who: Reader, cursor: Cursor = None, limit: Limit = 50) -> dict[str, Any]:
    """Decided ones leave the list."""
    after = place(door, who, "/v1/approvals", cursor)
    rows = door.people_of(who.tenant).asked(after=after and UUID(after), limit=limit)
    return page(door, who, "/v1/approvals", rows, limit=limit, key="step_id")


@router.post("/v1/traces/{trace_id}/approvals", response_model=Decided, openapi_extra=_body("Decision"),
             summary="Approve or reject what a trace asks")  # fmt: skip
def decide(request: Request, door: Door, who: Approver, trace_id: UUID, raw: Body) -> dict[str, Any]:
    timeline.header(door.db, who.tenant, trace_id)
    said = read_json(Decision, raw, media_of(request))
    made = door.people_of(who.tenant).decide(
        trace_id, said.choice, refuse=said.reject, by=who.under(APPROVE), reason=said.reason or None, seen=said.digest,
    )  # fmt: skip
    return {"id": trace_id, **made}


@router.post("/v1/traces/{trace_id}/feedback", response_model=Rewarded, openapi_extra=_body("NewFeedback"),
             summary="Tell how well a decision turned out")  # fmt: skip
def give_feedback(request: Request, door: Door, who: Rewarder, trace_id: UUID, raw: Body) -> dict[str, Any]:
    timeline.header(door.db, who.tenant, trace_id)
    said = read_json(NewFeedback, raw, media_of(request))
    told = rewards.reward(
        door.db, said.reward, tenant_id=who.tenant, trace_id=trace_id, step=said.step, key=said.key,
        about={"by": who.under(FEEDBACK), "note": said.note},
    )  # fmt: skip
    return {"id": trace_id, "step": told.ordinal, "repeated": told.repeated}


@router.post("/v1/traces/{trace_id}/rewind", response_model=Rewound, openapi_extra=_body("Rewind"),
             summary="Go back to an earlier step")  # fmt: skip
def go_back(request: Request, door: Door, who: Steerer, trace_id: UUID, raw: Body) -> dict[str, Any]:
    timeline.header(door.db, who.tenant, trace_id)
    said = read_json(Rewind, raw, media_of(request))
    done = rewind.rewind(
        door.db, tenant=who.tenant, trace_id=trace_id, ordinal=said.step, by=who.under(STEER), reason=said.reason
    )
    door.ring(done.rings)
    return {"id": trace_id, "node": done.node, "restored": done.restored, "parked": done.parked}


@router.post("/v1/traces/{trace_id}/fork", status_code=201, response_model=Accepted, openapi_extra=_body("Fork"),
             summary="A new trace from a step of this one, with changed input")  # fmt: skip
def fork(
    request: Request, response: Response, door: Door, who: Steerer, trace_id: UUID, raw: Body
) -> dict[str, Any]:  # fmt: skip
    """It may do what the first one may, as far as the caller's grants go."""
    timeline.header(door.db, who.tenant, trace_id)
    said = read_json(Fork, raw, media_of(request))
    made = door.forks_of(who.tenant).fork(
        trace_id, said.step, changes=said.changes, plan_hash=said.plan, by=who.under(STEER), grants=who.grants
    )
    url = f"/v1/traces/{made.id}"
    response.headers["Location"] = url
    return {"id": made.id, "status": made.status(), "url": url}


@router.post("/v1/bulk", response_model=BulkDone, openapi_extra=_body("Bulk"),
             summary="One order for all traces that a filter matches")  # fmt: skip
def bulk(request: Request, door: Door, who: Steerer, raw: Body) -> dict[str, Any]:
    """Newest first, for a few seconds; with `next` the same order goes on there. Refused ones are passed over."""
    said = read_json(Bulk, raw, media_of(request))
    where = timeline.parse_filter(said.filter)
    books = {"changed": 0, "late": 0, "refused": 0}
    until, before, left = time.monotonic() + BULK_S, said.before, said.limit
    while left > 0 and time.monotonic() < until:
        rows = timeline.traces(
            door.db, who.tenant, where=where, limit=min(left, BATCH), before=before, verb=said.action
        )  # fmt: skip
        if not rows:
            return books | {"next": None}
        for row in rows:
            books[_one(door, who, said, row["id"])] += 1
        before, left = rows[-1]["id"], left - len(rows)
    return books | {"next": before}


def _one(door: Parts, who: Principal, said: Bulk, trace_id: UUID) -> str:
    by = who.under(STEER)
    try:
        if said.action == "retry":
            door.ring(retry.retry(door.db, tenant=who.tenant, trace_id=trace_id, by=by))
            return "changed"
        done = ORDERS[said.action](door.db, tenant=who.tenant, trace_id=trace_id, by=by, reason=said.reason)
    except MeshError:
        return "refused"
    door.ring(done.rings)
    return "changed" if done.changed else "late"
