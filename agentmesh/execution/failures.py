"""An exception as it is recorded: a stable code, one line, and whether doing it again could help.

Whose exception it is decides what it means: what code of the user's raised is its failure, whatever the class; our own
database being away is nobody's, and what was claimed is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import psycopg

from agentmesh.errors import BadJson, DatabaseUnreachable, MeshError, Permanent, PoolTimeout, Retry
from agentmesh.infrastructure.logging import heard, redact
from agentmesh.records import Failure

T = TypeVar("T")

PERMANENT = frozenset({
    "E_TOOL_UNKNOWN", "E_FORBIDDEN", "E_ARGUMENTS", "E_RESULT", "E_ACTION", "E_JSON", "E_PAYLOAD_TOO_LARGE", "E_RULE",
    "E_TOOL_COMMITTED", "E_DEPTH", "E_AGENT_UNKNOWN", "E_INTENT_UNKNOWN", "E_CALLBACK", "E_BLOB", "E_TARGET", "E_ANSWER",
    "E_MODEL_REFUSED", "E_MODEL_LIMIT", "E_MEMORY",
})  # fmt: skip


LONGEST_PAUSE_S = 366 * 86_400.0


class Raised(Exception):
    """What code of the user's raised: it must not be taken for an error of ours."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class OursAway(DatabaseUnreachable):
    """Our own database did not answer what code of the user's read through us."""


class Leaving(Exception):
    """This process is ending and starts nothing more: what it holds is for others."""


AWAY = (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnreachable, PoolTimeout, Leaving)
"""Not the fault of what ran: it is given back and runs again, uncounted."""


def theirs(run: Callable[[], T]) -> T:
    """What `run()`, code of the user's, returns; its log lines are kept. Raises Raised for all that it raises but OursAway."""
    try:
        with heard():
            return run()
    except OursAway:
        raise
    except (SystemExit, asyncio.CancelledError) as exc:  # it ends itself, never the worker it runs in
        raise Raised(RuntimeError(f"{type(exc).__name__} was raised: {exc}")) from exc
    except Exception as exc:
        raise Raised(exc) from exc


def ours(read: Callable[[], T]) -> T:
    """What `read()` returns, for code of the user's. Raises OursAway where our database is away."""
    try:
        return read()
    except AWAY as exc:
        raise OursAway(f"our own database is away: {exc}") from exc


def refused(exc: BaseException) -> bool:
    """Whether the server was there and said no for good: what was written is beyond its limits."""
    return (getattr(exc, "sqlstate", None) or "").startswith("54")


def failure_of(exc: BaseException, *, code: str) -> Failure:
    """What is recorded of `exc`, without the secrets its text may hold; `code` is for exceptions that are not ours."""
    said = _said(exc, code)
    return replace(said, message=redact(said.message), detail=redact(said.detail))


def _said(exc: BaseException, code: str) -> Failure:
    match exc:
        case Raised(cause=cause):
            return _said(cause, code)
        case MeshError():
            detail = {"value": exc.value, "expected": exc.expected, **exc.about}
            return Failure(
                exc.code, exc.what, permanent=exc.code in PERMANENT or isinstance(exc, BadJson),
                after_s=_pause_s(getattr(exc, "after", None)), detail=detail,
            )  # fmt: skip
        case Permanent():
            return Failure(code, str(exc) or "permanent failure", permanent=True, detail={"type": "Permanent"})
        case Retry():
            return Failure(code, str(exc), after_s=_pause_s(exc.after), detail={"type": "Retry"})
        case _:
            return Failure(code, f"{type(exc).__name__}: {exc}", detail={"type": type(exc).__name__})


def _pause_s(after: object) -> float | None:
    """Seconds that a row can wait; None (the usual back-off) for what is no such number."""
    return float(after) if isinstance(after, int | float) and 0 <= after <= LONGEST_PAUSE_S else None
