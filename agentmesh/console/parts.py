"""What the endpoints stand on, and how each finds out who asks and what the request says.

The dependencies here are the only way in: a router that declares `authenticated` lets nobody through without it.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from agentmesh.communication.client import DirectClient
from agentmesh.communication.keys import PublicKeys
from agentmesh.console import problems
from agentmesh.console.auth import Authenticator, Principal
from agentmesh.console.rates import Proxies, Rates, Streams
from agentmesh.coordination.forks import Forks
from agentmesh.coordination.lifecycle import AgentLifecycle
from agentmesh.coordination.people import People
from agentmesh.coordination.timetable import Timetable
from agentmesh.errors import BadRequest, Forbidden, Unauthenticated, UnknownPage
from agentmesh.execution.answers import Answers
from agentmesh.infrastructure import jsontext
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.settings import GatewaySection
from agentmesh.observation.dumps import Dumps
from agentmesh.records import Json, Ring
from agentmesh.state.audit import AuditPipeline
from agentmesh.state.blobs import BlobStore

B = TypeVar("B", bound=BaseModel)
BODY_S = 10.0
"""How long a client may take to send a body."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What wiring hands over."""

    section: GatewaySection
    mesh: str
    db: Database
    blobs: BlobStore
    keys: PublicKeys
    client_of: Callable[[str], DirectClient]
    ring: Callable[[Sequence[Ring]], None]
    answers: Answers
    people_of: Callable[[str], People]
    forks_of: Callable[[str], Forks]
    lifecycle_of: Callable[[str], AgentLifecycle]
    audit_of: Callable[[str], AuditPipeline]
    dumps_of: Callable[[str], Dumps]
    timetable: Timetable
    now_s: Callable[[], int]
    authenticator: Authenticator
    rates: Rates
    streams: Streams
    proxies: Proxies
    cursor_key: bytes


# --- who asks ---------------------------------------------------------------------------------------------------------

_bearer = HTTPBearer(auto_error=False, description="An API key of this mesh, or a JWT of its issuer.")


async def parts_of(request: Request) -> Parts:
    parts: Parts = request.scope["gateway"].parts
    return parts


Door = Annotated[Parts, Depends(parts_of)]
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def address_of(request: Request, door: Parts) -> str:
    """Where a request comes from."""
    peer = request.client.host if request.client else ""
    return door.proxies.client(peer, request.headers.get("x-forwarded-for", ""))


def counted(request: Request, door: Parts, who: Callable[[], Principal]) -> Principal:
    """The principal, counted; a refusal is counted against the address it came from. Raises RateLimited."""
    address = address_of(request, door)
    door.rates.check_failures(address)
    try:
        found = who()
    except Exception as exc:
        if isinstance(problems.as_mesh_error(exc), Unauthenticated):
            door.rates.count_failure(address)
        raise
    door.rates.count(found)
    request.state.principal = found
    return found


def authenticated(request: Request, door: Door, bearer: Bearer) -> Principal:
    """Whoever shows a token that is believed. Raises Unauthenticated, RateLimited."""
    return counted(request, door, lambda: door.authenticator(bearer.credentials if bearer else None))


Caller = Annotated[Principal, Depends(authenticated)]


def _needs(permission: str) -> Callable[[Principal], Principal]:
    def check(who: Caller) -> Principal:
        if not who.may(permission):
            raise Forbidden("this principal may not do that", value=who.name, expected=f"a grant of {permission}",
                            next="agentmesh keys list")  # fmt: skip
        return who

    return check


READ, STEER, MEASURE, DEBUG = "traces:read", "traces:steer", "metrics:read", "traces:debug"
SIGNAL, APPROVE, AUDIT, FEEDBACK = "traces:signal", "traces:approve", "audit:read", "traces:feedback"
AGENTS, PLAN = "agents:steer", "schedules:write"
Reader = Annotated[Principal, Depends(_needs(READ))]
Steerer = Annotated[Principal, Depends(_needs(STEER))]
Measurer = Annotated[Principal, Depends(_needs(MEASURE))]
Debugger = Annotated[Principal, Depends(_needs(DEBUG))]
Signaller = Annotated[Principal, Depends(_needs(SIGNAL))]
Approver = Annotated[Principal, Depends(_needs(APPROVE))]
Rewarder = Annotated[Principal, Depends(_needs(FEEDBACK))]
Auditor = Annotated[Principal, Depends(_needs(AUDIT))]
AgentKeeper = Annotated[Principal, Depends(_needs(AGENTS))]
Planner = Annotated[Principal, Depends(_needs(PLAN))]


# --- what it says -----------------------------------------------------------------------------------------------------


async def body_of(request: Request) -> bytes:
    """The whole body. Raises PayloadTooLarge, or BadRequest when it does not come, or not in time."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.body()
    except ClientDisconnect:
        raise BadRequest("the body ended early", status=400, expected="a whole body") from None
    except TimeoutError:
        raise BadRequest("the body did not come in time", status=408, value=f"{BODY_S:g} s",
                         expected="a body without pauses") from None  # fmt: skip


Body = Annotated[bytes, Depends(body_of)]


def media_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def read_json(model: type[B], raw: bytes, media: str) -> B:
    """The strict JSON of a body, as `model` wants it. Raises BadRequest, BadJson."""
    if media != "application/json":
        raise BadRequest("the body is of another type", status=415, value=media or "none", expected="application/json")
    said = jsontext.loads(raw, what="the body")
    try:
        return model.model_validate(_whole(said), by_alias=True, by_name=False)
    except ValidationError as exc:
        raise problems.invalid(exc) from None


def _whole(value: Json) -> Json:
    """JSON does not tell 5.0 from 5, and neither do its schemas. Payloads and results stay as they came."""
    match value:
        case dict():
            return {name: one if name in {"payload", "result"} else _whole(one) for name, one in value.items()}
        case list():
            return [_whole(one) for one in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value


def takes(*content: tuple[str, dict[str, Any]], required: bool = True) -> dict[str, Any]:
    """What OpenAPI says of a body that is read by hand."""
    return {"requestBody": {"required": required, "content": {name: {"schema": schema} for name, schema in content}}}


# --- cursors ----------------------------------------------------------------------------------------------------------


def write_cursor(door: Parts, who: Principal, about: str, at: Json) -> str:
    """An opaque place in one list of one tenant, that only we can have made."""
    body = base64.urlsafe_b64encode(json.dumps(at).encode()).rstrip(b"=")
    return f"{body.decode()}.{_seal(door, who, about, body)}"


def read_cursor(door: Parts, who: Principal, about: str, cursor: str) -> Json:
    """The place. Raises UnknownPage for a cursor that was not made for this list."""
    body, _, seal = cursor.partition(".")
    if not (cursor.isascii() and hmac.compare_digest(_seal(door, who, about, body.encode()), seal)):
        raise UnknownPage("this cursor leads nowhere in this list", value=cursor[:40],
                          expected="the cursor of a `next` link of the same list")  # fmt: skip
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def place(door: Parts, who: Principal, path: str, cursor: str | None) -> Json:
    """The key behind which a page of the list at `path` begins; None: at its beginning. Raises UnknownPage."""
    return read_cursor(door, who, path, cursor) if cursor else None


def page(
    door: Parts, who: Principal, path: str, rows: Sequence[Row], *, limit: int, key: str = "id"
) -> dict[str, Any]:  # fmt: skip
    """These rows, and where it goes on: behind the `key` of the last one, whatever comes or goes meanwhile."""
    following = None
    if len(rows) == limit:
        said = {"cursor": write_cursor(door, who, path, str(rows[-1][key])), "limit": limit}
        following = f"{path}?{urlencode(said)}"
    return {"items": rows, "next": following}


def _seal(door: Parts, who: Principal, about: str, body: bytes) -> str:
    said = b"\0".join([who.tenant.encode(), about.encode(), body])
    return base64.urlsafe_b64encode(hmac.digest(door.cursor_key, said, sha256)[:18]).decode()
