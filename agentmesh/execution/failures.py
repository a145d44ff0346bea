"""An exception as it is recorded: a stable code, one line, and whether doing it again could help."""

from __future__ import annotations

from dataclasses import replace

from agentmesh.errors import BadJson, MeshError, Permanent, Retry
from agentmesh.infrastructure.logging import redact
from agentmesh.records import Failure

PERMANENT = frozenset({
    "E_TOOL_UNKNOWN", "E_FORBIDDEN", "E_ARGUMENTS", "E_RESULT", "E_ACTION", "E_JSON", "E_PAYLOAD_TOO_LARGE", "E_RULE",
    "E_TOOL_COMMITTED", "E_DEPTH", "E_AGENT_UNKNOWN", "E_INTENT_UNKNOWN", "E_CALLBACK",
})  # fmt: skip


def failure_of(exc: BaseException, *, code: str) -> Failure:
    """What is recorded of `exc`, without the secrets its text may hold; `code` is for exceptions that are not ours."""
    said = _said(exc, code)
    return replace(said, message=redact(said.message), detail=redact(said.detail))


def _said(exc: BaseException, code: str) -> Failure:
    match exc:
        case MeshError():
            detail = {"value": exc.value, "expected": exc.expected}
            return Failure(
                exc.code, exc.what, permanent=exc.code in PERMANENT or isinstance(exc, BadJson), detail=detail
            )
        case Permanent():
            return Failure(code, str(exc) or "permanent failure", permanent=True, detail={"type": "Permanent"})
        case Retry():
            return Failure(code, str(exc), after_s=exc.after, detail={"type": "Retry"})
        case _:
            return Failure(code, f"{type(exc).__name__}: {exc}", detail={"type": type(exc).__name__})
