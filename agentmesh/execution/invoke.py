"""Running one tool function: sync or async, its arguments and its result checked."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import structlog

from agentmesh.execution.tools import Tool, ToolContext
from agentmesh.infrastructure.faults import point
from agentmesh.records import Json

log = structlog.get_logger("agentmesh.tool")


def context(
    row: Mapping[str, Any], *, payload: Json, results: Mapping[str, Json], attempt: int, **more: Any
) -> ToolContext:
    """The context of one call; `row` has the columns of the call and of its trace's intent."""
    call_id: UUID = row["id"]
    trace_id: UUID = row["trace_id"]
    return ToolContext(
        trace_id=trace_id, tenant=row["tenant_id"], context_id=row["context_id"], intent=row["intent"], tool=row["tool"],
        attempt=attempt, epoch=row["epoch"], idempotency_key=row["idem_key"], deadline=row.get("deadline"),
        payload=payload if isinstance(payload, dict) else {}, results=results,
        log=log.bind(trace_id=str(trace_id), call_id=str(call_id), attempt=attempt, tool=row["tool"]), **more,
    )  # fmt: skip


def invoke(tool: Tool, args: Mapping[str, Json], ctx: ToolContext) -> Json:
    """What the tool returned, as JSON. Raises BadArguments, BadResult, or what the tool raises."""
    checked = tool.check(args)
    point("call.before_effect")
    value = _run(tool.function, (ctx,) if tool.takes_ctx else (), checked)
    point("call.after_effect")
    return tool.output(value)


def _run(function: Callable[..., Any], first: tuple[ToolContext, ...], args: dict[str, Any]) -> Any:
    value = function(*first, **args)
    return asyncio.run(value) if inspect.iscoroutine(value) else value
