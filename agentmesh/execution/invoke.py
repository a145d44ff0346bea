"""Running one tool function: sync or async, its arguments and its result checked."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import structlog

from agentmesh.errors import BadResult
from agentmesh.execution.tools import Tool, ToolContext
from agentmesh.infrastructure.faults import point
from agentmesh.records import Json, Later

log = structlog.get_logger("agentmesh.tool")


def context(
    row: Mapping[str, Any], *, payload: Json, results: Mapping[str, Json], attempt: int, **more: Any
) -> ToolContext:
    """The context of one call; `row` has the columns of the call and of its trace's intent."""
    call_id: UUID = row["id"]
    trace_id: UUID = row["trace_id"]
    return ToolContext(
        call_id=call_id, trace_id=trace_id, tenant=row["tenant_id"], context_id=row["context_id"], intent=row["intent"],
        step_id=row.get("step_id"), tool=row["tool"], attempt=attempt, epoch=row["epoch"],
        idempotency_key=row["idem_key"], deadline=row.get("deadline"),
        payload=payload if isinstance(payload, dict) else {}, results=results,
        log=log.bind(), **more,
    )  # fmt: skip


def invoke(tool: Tool, args: Mapping[str, Json], ctx: ToolContext, *, waits: bool = False) -> Json | Later:
    """What the tool returned, as JSON; a list in the order of the inputs where the call is `for` many.

    Later only where the call can wait. Raises BadArguments, BadResult, or what the tool raises.
    """
    checked = tool.check(args)
    point("call.before_effect")
    if isinstance(checked, dict):
        value = _one(tool, ctx, checked)
        value = value if waits and isinstance(value, Later) else _said(tool, value)
    else:
        value = [_said(tool, one) for one in _many(tool, ctx, checked)]
    point("call.after_effect")
    return value


def _said(tool: Tool, value: Any) -> Json:
    if isinstance(value, Later):
        raise BadResult(f"{tool.name} cannot answer later here", value="Later",
                        expected="a result: it is inline, transactional, called alone or for many inputs")  # fmt: skip
    return tool.output(value)


def _one(tool: Tool, ctx: ToolContext, args: dict[str, Any]) -> Any:
    return _run(tool.function, (ctx,) if tool.takes_ctx else (), args)


def _many(tool: Tool, ctx: ToolContext, inputs: list[dict[str, Any]]) -> list[Any]:
    """The results in order. Each input has a key of its own, stable over attempts."""
    if tool.many is None:
        keyed = [replace(ctx, idempotency_key=f"{ctx.idempotency_key}.{n}") for n in range(len(inputs))]
        return [_one(tool, its, one) for its, one in zip(keyed, inputs, strict=True)]
    values = _run(tool.many, (ctx, inputs), {})
    if not isinstance(values, list | tuple) or len(values) != len(inputs):
        raise BadResult(f"{tool.name} did not return one result an input", value=values,
                        expected=f"a list of {len(inputs)}")  # fmt: skip
    return list(values)


def _run(function: Callable[..., Any], first: tuple[Any, ...], args: dict[str, Any]) -> Any:
    value = function(*first, **args)
    return asyncio.run(value) if inspect.iscoroutine(value) else value
