"""What an operator keeps in order over HTTP: agents, schedules, dead letters; and the audit, to be read."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from agentmesh.behavior.router import make_intent
from agentmesh.console.parts import (
    AGENTS,
    PLAN,
    STEER,
    AgentKeeper,
    Auditor,
    Body,
    Door,
    Planner,
    Reader,
    Steerer,
    authenticated,
    media_of,
    page,
    place,
    read_json,
    takes,
)
from agentmesh.console.shapes import Agent, AgentSteered, AuditRow, Letter, LetterSettled, NewSchedule, Page, Schedule
from agentmesh.console.traces import Cursor, Limit
from agentmesh.records import Name
from agentmesh.state import dead_letters, retry, schedules

router = APIRouter(prefix="/v1", tags=["desk"], dependencies=[Depends(authenticated)])
Named = Annotated[Name, Path(description="Its name.")]


# --- agents


@router.get("/agents", response_model=Page[Agent], summary="Agents that workers announced, and how they are")
def list_agents(door: Door, who: Reader, cursor: Cursor = None, limit: Limit = 50) -> dict[str, Any]:
    after = place(door, who, "/v1/agents", cursor) or ""
    return page(door, who, "/v1/agents", door.lifecycle_of(who.tenant).agents(after=after, limit=limit), limit=limit)


@router.post("/agents/{agent}/pause", response_model=AgentSteered, summary="Begin no further trace of it")
def pause_agent(door: Door, who: AgentKeeper, agent: Named) -> dict[str, Any]:
    changed = door.lifecycle_of(who.tenant).pause(agent, by=who.under(AGENTS))
    return {"id": agent, "changed": changed, "paused": True}


@router.post("/agents/{agent}/resume", response_model=AgentSteered, summary="Take new work again")
def resume_agent(door: Door, who: AgentKeeper, agent: Named) -> dict[str, Any]:
    changed = door.lifecycle_of(who.tenant).resume(agent, by=who.under(AGENTS))
    return {"id": agent, "changed": changed, "paused": False}


# --- schedules


@router.get("/schedules", response_model=Page[Schedule], summary="What agents are asked by the clock")
def list_schedules(door: Door, who: Reader, cursor: Cursor = None, limit: Limit = 50) -> dict[str, Any]:
    after = place(door, who, "/v1/schedules", cursor) or ""
    rows = schedules.listed(door.db, who.tenant, after=after, limit=limit)
    return page(door, who, "/v1/schedules", rows, limit=limit)


@router.put("/schedules/{name}", response_model=Schedule, summary="Ask this of an agent whenever the time comes",
            openapi_extra=takes(("application/json", {"$ref": "#/components/schemas/NewSchedule"})))  # fmt: skip
def put_schedule(request: Request, door: Door, who: Planner, name: Named, raw: Body) -> dict[str, Any]:
    """What it begins may do what the agent accepts, as far as the caller's grants go now."""
    said = read_json(NewSchedule, raw, media_of(request))
    context = said.context_id or f"schedule:{name}"
    asked = make_intent(said.intent, f"schedule:{name}", said.agent, context, said.payload)
    _, granted = door.client_of(who.tenant).check(asked, grants=who.grants)
    door.timetable.add(
        who.tenant, name, by=who.under(PLAN), agent=said.agent, intent=said.intent, payload=said.payload,
        context_id=context, cron=said.cron, timezone=said.timezone, missed=said.missed, priority=said.priority,
        permissions=list(granted),
    )  # fmt: skip
    return next(row for row in schedules.listed(door.db, who.tenant) if row["id"] == name)


@router.post("/schedules/{name}/remove", status_code=204, response_class=Response, summary="Forget a schedule")
def remove_schedule(door: Door, who: Planner, name: Named) -> Response:
    door.timetable.remove(who.tenant, name, by=who.under(PLAN))
    return Response(status_code=204)


# --- dead letters


@router.get("/dlq", response_model=Page[Letter], summary="What was parked for a person, oldest first")
def list_letters(door: Door, who: Reader, cursor: Cursor = None, limit: Limit = 50) -> dict[str, Any]:
    after = place(door, who, "/v1/dlq", cursor)
    rows = dead_letters.letters(door.db, who.tenant, after=after and UUID(after), limit=limit)
    return page(door, who, "/v1/dlq", rows, limit=limit)


@router.post("/dlq/{letter_id}/retry", response_model=LetterSettled, summary="Run its trace again")
def retry_letter(door: Door, who: Steerer, letter_id: UUID) -> dict[str, Any]:
    row = dead_letters.letter(door.db, who.tenant, letter_id)
    door.ring(retry.retry(door.db, tenant=who.tenant, trace_id=row["trace_id"], by=who.under(STEER)))
    return {"id": letter_id, "trace_id": row["trace_id"], "settled_as": "retried"}


@router.post("/dlq/{letter_id}/discard", response_model=LetterSettled, summary="Take it off the list")
def discard_letter(door: Door, who: Steerer, letter_id: UUID) -> dict[str, Any]:
    row = dead_letters.letter(door.db, who.tenant, letter_id)
    dead_letters.settle(door.db, who.tenant, letter_id, "discarded", by=who.under(STEER))
    return {"id": letter_id, "trace_id": row["trace_id"], "settled_as": "discarded"}


# --- the audit


@router.get("/audit", response_model=Page[AuditRow], summary="Who ordered what, as it was sealed, newest first")
def list_audit(
    door: Door, who: Auditor, limit: Limit = 50, trace_id: UUID | None = None,
    before: Annotated[int, Query(ge=1, le=2**62, description="Only rows with a lower number.")] = 2**62,
) -> dict[str, Any]:  # fmt: skip
    rows = door.audit_of(who.tenant).rows(limit=limit, before=before, trace_id=trace_id)
    following = None
    if len(rows) == limit:
        following = f"/v1/audit?before={rows[-1]['seq']}&limit={limit}" + (f"&trace_id={trace_id}" if trace_id else "")
    return {"items": rows, "next": following}
