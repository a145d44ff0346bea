"""ACPGateway: intents of producers that hold no database password come in here, over HTTP.

A producer posts a compact JWS that its registered key has signed for `mesh/gateway`, or plain JSON with a bearer token,
for which the gateway signs. Accepted is what the database has committed when the answer is sent.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

import agentmesh
from agentmesh.behavior.router import make_intent
from agentmesh.communication.client import Evidence, Trace
from agentmesh.communication.envelope import Envelope, audience, verify
from agentmesh.console import desk, metrics, orders, problems, stream, traces
from agentmesh.console.auth import Principal
from agentmesh.console.parts import (
    Bearer,
    Body,
    Caller,
    Door,
    Measurer,
    Parts,
    authenticated,
    counted,
    media_of,
    read_json,
    takes,
)
from agentmesh.console.shapes import BODIES, Accepted, CallAnswer, Finished, Health, NewIntent, Problem
from agentmesh.console.threshold import Threshold
from agentmesh.errors import BadRequest, MeshError, SecretMissing, Unauthenticated, UnknownCall
from agentmesh.records import Intent, Name

JOSE = "application/jose"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
KEY = r"^[\x21-\x7e]{1,255}$"

Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern=KEY, description="The same key is the same trace.")]
CallbackToken = Annotated[str, Path(max_length=256, description="What stands at the end of a callback URL.")]
AgentName = Annotated[Name, Path(description="The agent.")]


@dataclass
class Hints:
    """What may be said of an envelope beside it."""

    key: Key = None
    delay: Annotated[float | None, Query(gt=0, le=366 * 86_400, description="Seconds before it may begin.")] = None
    priority: Annotated[int, Query(ge=0, le=9, description="9 first.")] = 5


open_router = APIRouter(tags=["gateway"])
router = APIRouter(tags=["intents"], dependencies=[Depends(authenticated)])


class ACPGateway:
    """The ASGI application of one mesh: `gateway` itself is what a server runs."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.metrics, self.watcher = parts, metrics.Metrics(), stream.Watcher()
        describe()  # which makes every route ready now, not at its first request
        section = parts.section
        app: ASGIApp = _api()
        if section.origins:
            app = CORSMiddleware(
                app, allow_origins=list(section.origins), allow_methods=["GET", "POST", "PUT"],
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            )  # fmt: skip
        host = section.address.rpartition(":")[0]
        own = (host, *LOOPBACK) if host in LOOPBACK else ()
        self._app = Threshold(
            app, hosts=section.hosts or own, body_bytes=section.body, at_once=section.connections,
            timeout_s=section.timeout, seen=self.metrics.seen,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. The routes, which all gateways of a process share, find theirs in the scope."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            scope["gateway"] = self
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """From the start to the end of the server, somebody looks for news."""
        await receive()
        look = asyncio.ensure_future(self.watcher.run(self.parts.db))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        look.cancel()
        await send({"type": "lifespan.shutdown.complete"})


# --- intents ----------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/intents", status_code=201, response_model=Accepted, summary="Hand an intent to an agent",
    responses={200: {"model": Accepted, "description": "The key was known: the first trace"}},
    openapi_extra=takes(("application/json", {"$ref": "#/components/schemas/NewIntent"})),
)  # fmt: skip
def submit(request: Request, response: Response, door: Door, who: Caller, raw: Body, key: Key = None) -> dict[str, Any]:
    said = read_json(NewIntent, raw, media_of(request))
    intent = make_intent(
        said.intent, said.from_, said.to, said.context_id, said.payload, permissions=said.permissions,
        idempotency_key=key, policy=said.policy, delay=said.delay, priority=said.priority, locale=said.locale,
    )  # fmt: skip
    client = door.client_of(who.tenant)
    return _told(request, response, said.to, *client.admit(intent, grants=who.grants, by=who.under()))


@open_router.post(
    "/agent/{to_id}", status_code=201, response_model=Accepted, summary="Post an ACP envelope to an agent",
    responses={200: {"model": Accepted, "description": "It came before: the first trace"}},
    openapi_extra=takes(
        ("application/json", {"$ref": "#/components/schemas/Envelope"}),
        (JOSE, {"type": "string", "description": "A compact JWS (Ed25519) of a registered producer."}),
    ),
)  # fmt: skip
def receive(
    request: Request, response: Response, door: Door, bearer: Bearer, raw: Body, to_id: AgentName,
    hints: Annotated[Hints, Depends()],
) -> dict[str, Any]:  # fmt: skip
    """Signed: `aud` is "mesh/gateway". Plain: with a bearer token. Without a key, its `trace_id` is its idempotency key."""
    evidence = None
    if media_of(request) == JOSE:
        who, envelope, evidence = _signed(request, door, raw)
    else:
        who = authenticated(request, door, bearer)
        envelope = read_json(Envelope, raw, media_of(request))
    if envelope.meta.to != to_id:
        raise BadRequest("the envelope is for another agent", status=409, value=envelope.meta.to, expected=to_id,
                         faults=(("/meta/to", "not the agent of the path"),))  # fmt: skip
    intent = _intent(envelope, hints)
    client = door.client_of(who.tenant)
    return _told(
        request,
        response,
        to_id,
        *client.admit(intent, grants=who.grants, trace_id=envelope.meta.trace_id, evidence=evidence, by=who.under()),
    )


def _signed(request: Request, door: Parts, raw: bytes) -> tuple[Principal, Envelope, Evidence]:
    """Who signed the body, and what. Raises Unauthenticated, RateLimited."""
    found: list[Any] = []

    def believe() -> Principal:
        token = raw.decode("ascii", "replace").strip()
        seen = verify(token, keys=door.keys.get, aud=audience(door.mesh, "gateway"), now_s=door.now_s())
        found.extend((seen.envelope, Evidence(seen.kid, token)))
        return Principal(seen.tenant, seen.owner, seen.grants, key=seen.kid)

    who = counted(request, door, believe)
    envelope, evidence = found
    return who, envelope, evidence


def _intent(envelope: Envelope, hints: Hints) -> Intent:
    context, command = envelope.context, envelope.command
    return make_intent(
        command.intent, envelope.meta.from_, envelope.meta.to, context.context_id, command.payload,
        permissions=context.permissions, idempotency_key=hints.key, policy=command.policy, delay=hints.delay,
        priority=hints.priority, locale=context.locale,
    )  # fmt: skip


def _told(request: Request, response: Response, agent: str, trace: Trace, new: bool) -> dict[str, Any]:  # noqa: FBT001
    url = f"/v1/traces/{trace.id}"
    response.headers["Location"] = url
    response.status_code = 201 if new else 200
    if new:
        request.scope["gateway"].metrics.accepted(agent)
    return {"id": trace.id, "status": trace.status(), "url": url}


@open_router.post(
    "/v1/callbacks/{token}", response_model=Finished, summary="Answer a tool call that waits",
    openapi_extra=takes(("application/json", {"$ref": "#/components/schemas/CallAnswer"})),
)  # fmt: skip
def answer(request: Request, door: Door, raw: Body, token: CallbackToken) -> dict[str, Any]:
    """The path is the credential: whoever was given it may answer this one call, once."""
    found: list[UUID] = []

    def believe() -> Principal:
        try:
            call_id = door.answers.named(token)
            found.append(call_id)
            return Principal(door.answers.tenant_of(call_id), f"call:{call_id}", ())
        except (UnknownCall, SecretMissing):
            raise Unauthenticated("no call is answered here") from None

    counted(request, door, believe)
    said = read_json(CallAnswer, raw, media_of(request))
    if "failed" in said.model_fields_set:
        door.answers.fail(found[0], said.failed)
        return {"id": found[0], "status": "failed"}
    door.answers.finish(found[0], said.result)
    return {"id": found[0], "status": "done"}


# --- its own health ---------------------------------------------------------------------------------------------------


@open_router.get("/livez", response_model=Health, summary="This process runs")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@open_router.get("/readyz", response_model=Health, summary="Its database answers")
def readyz(door: Door) -> dict[str, str]:
    door.db.ping()
    return {"status": "ready"}


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})  # fmt: skip
def show_metrics(request: Request, door: Door, _who: Measurer) -> Response:
    return Response(request.scope["gateway"].metrics.page(door.db), media_type=metrics.MEDIA)


@open_router.get("/openapi.json", include_in_schema=False)
async def openapi() -> Any:
    return describe()


# --- the app ----------------------------------------------------------------------------------------------------------


@cache
def _api() -> FastAPI:
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for one in (open_router, router, traces.router, orders.router, desk.router, stream.router):
        api.include_router(one)
    for kind in (Exception, MeshError, RequestValidationError, HTTPException):
        api.add_exception_handler(kind, _problem)
    return api


async def _problem(request: Request, exc: Exception) -> Response:
    path = request.url.path
    if isinstance(exc, HTTPException):
        error: MeshError = problems.no_page(path)
        if exc.status_code != 404:
            error = BadRequest(str(exc.detail), status=exc.status_code, value=request.method)
    elif isinstance(exc, RequestValidationError):
        error = _misfit(exc)
    else:
        error = problems.as_mesh_error(exc)
    request.scope["gateway"].metrics.refused(error.code)
    answer = problems.response(error, path)
    if isinstance(exc, HTTPException) and exc.headers:
        answer.headers.update(exc.headers)
    return answer


def _misfit(exc: RequestValidationError) -> MeshError:
    """A path, query or header that its schema refuses. A path that cannot name anything names nothing."""
    faults = exc.errors()
    if all(one["loc"][0] == "path" for one in faults):
        return problems.no_page(str(faults[0]["input"]))
    listed = tuple(("/" + "/".join(str(part) for part in one["loc"]), one["msg"]) for one in faults)
    return BadRequest("the request is not as its schema says", value=listed[0][0], expected=listed[0][1], faults=listed)


@cache
def describe() -> dict[str, Any]:
    """The OpenAPI document of every release of this version: no setting changes it."""
    made = get_openapi(
        title="agentmesh", version=agentmesh.__version__, routes=_api().routes,
        description="Hand intents to agents, read what happened, steer it. Errors are RFC 9457 problems.",
    )  # fmt: skip
    schemas = made["components"]["schemas"]
    for model in (*BODIES, Envelope, Problem):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}", by_alias=True)
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = {"content": {problems.MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for path in made["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["4XX"] = problem | {"description": "Refused"}
            operation["responses"]["5XX"] = problem | {"description": "Not now"}
    return made
