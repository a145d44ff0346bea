"""What went wrong, as RFC 9457 says it: application/problem+json with code, value, expected and next.

Every error of ours has one status. What is not ours becomes a number that stands in the log, never a stack.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import psycopg
import sqlalchemy as sa
import structlog
from pydantic import ValidationError
from starlette.responses import Response

from agentmesh.errors import (
    AlreadyDecided,
    Backlogged,
    BadJson,
    BadRequest,
    BadResult,
    BadRule,
    CallEnded,
    DatabaseUnreachable,
    DelegationTooDeep,
    EnvelopeRefused,
    Forbidden,
    KeyConflict,
    KeyContended,
    MeshError,
    NotRetryable,
    NotRewindable,
    PayloadTooLarge,
    RateLimited,
    ScheduleTaken,
    TooLate,
    TraceEnded,
    TraceTaken,
    Unauthenticated,
    UnknownPage,
)
from agentmesh.infrastructure.logging import redact
from agentmesh.records import Json, new_id

log = structlog.get_logger("agentmesh.gateway")

MEDIA = "application/problem+json"
RETRY_AFTER_S = 2
STATUS: dict[type[MeshError], int] = {
    PayloadTooLarge: 413, Unauthenticated: 401, EnvelopeRefused: 401, Forbidden: 403, RateLimited: 429, Backlogged: 429,
    KeyConflict: 409, KeyContended: 409, NotRetryable: 409, TooLate: 409, TraceTaken: 409, DelegationTooDeep: 409,
    BadResult: 422, CallEnded: 409, AlreadyDecided: 409, NotRewindable: 409, TraceEnded: 409, ScheduleTaken: 409,
    BadRule: 400,  # no schema can say what a rule of the clock is
}  # fmt: skip
BY_EXIT_CODE = {2: 422, 3: 404, 4: 403, 5: 503, 7: 504}
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, sa.exc.OperationalError, sa.exc.InterfaceError)


def status_of(error: MeshError) -> int:
    """The status of an error; 500 for what is ours to fix."""
    if isinstance(error, BadRequest):
        return error.status
    if isinstance(error, BadJson) and not isinstance(error, PayloadTooLarge):
        return 400  # no schema can say what strict JSON refuses
    if type(error) in STATUS:
        return STATUS[type(error)]
    return BY_EXIT_CODE.get(error.exit_code, 500)


def as_mesh_error(exc: BaseException) -> MeshError:
    """`exc` as one of our errors. One that is ours to fix is logged under the number it then names."""
    if isinstance(exc, EnvelopeRefused | Unauthenticated):
        return Unauthenticated("the credentials were refused")  # one answer, whatever was wrong
    if isinstance(exc, MeshError):
        return exc
    if isinstance(exc, AWAY):
        return DatabaseUnreachable("the database does not answer")
    number = str(new_id())
    log.error("request failed", number=number, exc_info=exc)
    return MeshError("something failed that is ours to fix", value=number, expected="no such error: it is in the log")


def invalid(exc: ValidationError, *, below: str = "") -> BadRequest:
    """A body that its schema refuses, fault by fault."""
    faults = tuple(
        (below + "".join(f"/{_escaped(part)}" for part in one["loc"]), one["msg"])
        for one in exc.errors(include_url=False, include_context=False, include_input=False)[:20]
    )
    return BadRequest(
        "the request is not as its schema says",
        value=faults[0][0] or "/",
        expected=faults[0][1],
        faults=faults,
    )


def response(error: MeshError, path: str) -> Response:
    """The answer that tells `error`, at `path`."""
    status = status_of(error)
    parts: dict[str, Json] = {name: value and redact(value) for name, value in error.parts().items()}
    body: dict[str, Any] = {
        "type": f"urn:agentmesh:{parts['code']}", "title": HTTPStatus(status).phrase, "status": status,
        "detail": parts.pop("what"), "instance": path, **parts,
    }  # fmt: skip
    if isinstance(error, BadRequest) and error.faults:
        body["errors"] = [{"pointer": f"#{pointer}", "detail": detail} for pointer, detail in error.faults]
    headers = {}
    if status == 429:
        headers["Retry-After"] = str(max(1, round(getattr(error, "after_s", 1.0) + 0.5)))
    elif status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(body), status, headers, MEDIA)


def no_page(path: str) -> UnknownPage:
    return UnknownPage("there is no such page", value=path)


def _escaped(part: str | int) -> str:
    """One reference token of a JSON pointer (RFC 6901)."""
    return str(part).replace("~", "~0").replace("/", "~1")
