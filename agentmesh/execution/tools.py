"""Tools: plain functions that agents may call, with schemas from their type hints.

`@register_tool` puts a function into the process's registry; workers announce what is there. Nothing is ever imported
from data.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from pydantic import ConfigDict, TypeAdapter, create_model
from pydantic.errors import PydanticUserError

from agentmesh.errors import BadArguments, BadTool, Permanent, UnknownTool
from agentmesh.execution.schemas import Arguments, Hinted, Result, Returned, Signature, line
from agentmesh.records import AgentCall, Backoff, Effect, Json, Later, check_name, check_permissions, tool_queue

TX_LIMIT_S = 5.0
ASKS_S = 86_400.0
MAX_INPUTS = 1000


class Adopted(Protocol):
    """What we need of a Celery task that becomes a tool and stays a task for everybody else.

    Its `time_limit` and `queue` count where it has them.
    """

    name: str
    max_retries: int | None

    def run(self, *args: Any, **kwargs: Any) -> Any: ...
    def push_request(self, *args: Any, **kwargs: Any) -> None: ...
    def pop_request(self) -> Any: ...


def _nowhere() -> str:
    raise Permanent("this call cannot be answered later")


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool knows of the call it runs for. `tx` only for tools declared with tx=True."""

    call_id: UUID
    trace_id: UUID
    tenant: str
    context_id: str
    intent: str
    tool: str
    attempt: int
    epoch: int
    idempotency_key: str
    deadline: datetime | None
    payload: Mapping[str, Json] = field(default_factory=dict)
    results: Mapping[str, Json] = field(default_factory=dict)
    step_id: UUID | None = None
    log: Any = None
    tx: Any = None
    holds: Callable[[], bool] = lambda: True
    report: Callable[[dict[str, Json]], None] = lambda _: None
    answer_at: Callable[[], str] = _nowhere

    def __getitem__(self, key: str) -> Json:
        return self.payload[key]

    def still_mine(self) -> bool:
        """Whether this attempt still holds its call: once it does not, whatever it returns is stale."""
        return self.holds()

    @property
    def callback_url(self) -> str:
        """Where the answer of a call that returns Later can be posted. Raises SecretMissing."""
        return self.answer_at()

    @property
    def cancelled(self) -> bool:
        return not self.holds()

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Show how far this attempt is, to whoever looks at the trace."""
        self.report({"done": done, "total": total, "note": note[:200]})


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with everything the engine must know to call it."""

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    timeout_s: float
    attempts: int
    effect: Effect
    inline: bool
    tx: bool
    group: str
    version: str
    backoff: Backoff
    description: str
    takes_ctx: bool
    arguments: Arguments
    returns: Result
    compensate: str | None = None
    many: Callable[..., Any] | None = None
    """many(ctx, inputs) -> results in order: runs instead of the function where a call is `for` many inputs."""
    asks: AgentCall | None = None
    """The agent that answers in its place: the function makes what that one is given."""

    @property
    def queue(self) -> str:
        return tool_queue(self.group)

    def check(self, args: Mapping[str, Json]) -> dict[str, Any] | list[dict[str, Any]]:
        """`args` as the function takes them; {"for": inputs, "with": common} as a list of them, one an input.

        Raises BadArguments; no argument reaches `ctx`.
        """
        if "for" not in args:  # no parameter can have this name
            return self.arguments.check(self.name, args)
        if self.asks is not None:
            raise BadArguments(f"{self.name} asks an agent, which is given one input", value="for",
                               expected="a call for each input, or for_each in a chain")  # fmt: skip
        inputs, common = args["for"], args.get("with", {})
        listed = isinstance(inputs, list) and all(isinstance(one, dict) for one in [*inputs, common])
        if not listed or args.keys() - {"for", "with"} or len(inputs) > MAX_INPUTS:
            raise BadArguments(f"{self.name} is not called for these", value=inputs,
                               expected=f"a list of at most {MAX_INPUTS} objects")  # fmt: skip
        return [self.arguments.check(self.name, {**common, **one}) for one in inputs]

    def output(self, value: Any) -> Json:
        """`value` as JSON. Raises BadResult when the tool may not return it."""
        return self.returns.output(self.name, value)

    def spec(self) -> dict[str, Json]:
        """What is announced: everything but the code."""
        return {
            "description": self.description, "timeout_s": self.timeout_s, "attempts": self.attempts,
            "inline": self.inline, "tx": self.tx, "backoff": self.backoff.model_dump(),
            "compensate": self.compensate, "asks": None if self.asks is None else self.asks.agent,
            "arguments": self.arguments.schema(), "returns": self.answers(),
        }  # fmt: skip

    def answers(self) -> dict[str, Json]:
        """The JSON Schema of a call's result; {} where an agent answers: what that says is its own."""
        return self.returns.schema() if self.asks is None else {}


class ToolRegistry:
    """Tools by name, in one process."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def register(self, tool: Tool) -> Tool:
        """From now on `tool` is found by its name. Raises BadTool when another function has it already."""
        known = self._tools.get(tool.name)
        if known is not None and _identity(known.function) != _identity(tool.function):
            raise BadTool("two functions are registered under one tool name", value=tool.name,
                          expected="a name of its own for each tool")  # fmt: skip
        self._tools[tool.name] = tool
        return tool

    def unregister(self, name: str) -> None:
        """From now on the name is unknown; nothing happens when it was already."""
        self._tools.pop(name, None)

    def get(self, name: str) -> Tool:
        """Raises UnknownTool with the nearest name."""
        tool = self._tools.get(name)
        if tool is None:
            raise unknown_tool(name, self._tools)
        return tool

    def signature(self, name: str) -> Signature | None:
        """What a tool takes and returns; None of one that is not here."""
        tool = self._tools.get(name)
        return None if tool is None else Signature(tool.arguments.schema(), tool.answers())

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def names(self) -> tuple[str, ...]:
        return tuple(self._tools)

    def list(self) -> list[Tool]:
        return [self._tools[name] for name in sorted(self._tools)]


def unknown_tool(name: str, known: Iterable[str]) -> UnknownTool:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" · did you mean {near[0]}?" if near else ""
    return UnknownTool("no tool has this name", value=name, expected=f"one of {', '.join(names) or 'none'}{hint}")


def _identity(function: Callable[..., Any]) -> tuple[str, str]:
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))


TOOLS = ToolRegistry()
"""What `@register_tool` fills: the tools whose modules this process has imported."""


def register_tool(  # noqa: PLR0913 - the public declaration, every part optional
    name: str, *, needs: Iterable[str] = (), timeout: float | None = None, attempts: int | None = None,
    effect: Effect = "repeatable", inline: bool = False, tx: bool = False, queue: str | None = None, version: str = "1",
    backoff: Backoff | None = None, task: Adopted | None = None, registry: ToolRegistry | None = None,
    compensate: str | None = None, many: Callable[..., Any] | None = None, asks: AgentCall | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Make a function a tool; the function itself is unchanged. With `task=`, a Celery task becomes one at once.

    `many(ctx, inputs)` runs instead of it where one call is `for` many inputs, else it runs for one after the other.
    `compensate` names the tool that undoes it: called with `args` and `result` of what was done, as two parameters.
    With `asks` another agent answers the call: what the function returns is the payload of a child trace, and the end of
    that one is the call's; it has one attempt and a day. `timeout` is in seconds. Raises BadTool, BadName or BadPermission
    when the declaration is wrong.
    """

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        target = _adopt(task) if task is not None else function
        tries = attempts or (None if task is None or effect == "once" else 1 + (task.max_retries or 0))
        (registry or TOOLS).register(make_tool(
            name, target, needs=needs, attempts=tries, effect=effect, inline=inline, tx=tx,
            timeout_s=timeout or (ASKS_S if asks else TX_LIMIT_S if tx else getattr(task, "time_limit", None) or 60.0),
            group=queue or getattr(task, "queue", None) or "tools", version=version, backoff=backoff or Backoff(), many=many,
            compensate=compensate, asks=asks,
        ))  # fmt: skip
        return function

    if task is not None:
        declare(task.run)
    return declare


def make_tool(  # noqa: PLR0913 - the whole declaration
    name: str, function: Callable[..., Any], *, needs: Iterable[str], timeout_s: float, attempts: int | None,
    effect: Effect, inline: bool, group: str, version: str, backoff: Backoff, tx: bool = False,
    description: str | None = None, arguments: Arguments | None = None, returns: Result | None = None,
    compensate: str | None = None, many: Callable[..., Any] | None = None, asks: AgentCall | None = None,
) -> Tool:  # fmt: skip
    """A tool of this declaration. Without `arguments` and `returns` type hints say what they are; with them it takes ctx.

    Raises BadTool, BadName or BadPermission.
    """
    if effect == "once" and inline:
        raise BadTool("a tool with effect='once' cannot be inline", value=name, expected="inline=False")
    if effect == "once" and attempts not in {None, 1}:
        raise BadTool("a tool with effect='once' has one attempt", value=attempts, expected="attempts=1")
    if effect not in {"repeatable", "keyed", "once"}:
        raise BadTool("a tool has an unknown effect", value=effect, expected="repeatable, keyed or once")
    if tx and timeout_s > TX_LIMIT_S:
        raise BadTool("a transactional tool may take 5 s at most", value=timeout_s, expected="timeout <= 5")
    if tx and inspect.iscoroutinefunction(function):
        raise BadTool("a transactional tool is not async", value=name, expected="a plain function")
    if asks is not None and (inline or tx or many is not None):
        raise BadTool("a tool that asks an agent runs nowhere", value=name, expected="neither inline, tx nor many")
    if asks is not None:
        check_name(asks.agent, "an agent")
        check_permissions(asks.permissions or ())
    takes_ctx = True
    if arguments is None or returns is None:
        takes_ctx, arguments, returns = _schema(name, function)
    text = description if description is not None else inspect.getdoc(function) or ""
    return Tool(
        name=check_name(name, "a tool"), function=function, needs=check_permissions(needs), timeout_s=timeout_s,
        attempts=attempts or (1 if effect == "once" or asks is not None else 3), effect=effect, inline=inline, tx=tx,
        group=check_name(group, "a tool queue"), version=version, backoff=backoff, description=text.split("\n\n")[0],
        takes_ctx=takes_ctx, arguments=arguments, returns=returns, many=many, asks=asks,
        compensate=None if compensate is None else check_name(compensate, "a tool"),
    )  # fmt: skip


def _schema(name: str, function: Callable[..., Any]) -> tuple[bool, Hinted, Returned]:
    signature = inspect.signature(function)
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as exc:
        raise BadTool(f"the type hints of {name} cannot be resolved: {exc}", value=name) from exc
    fields: dict[str, Any] = {}
    takes_ctx = False
    for place, (parameter, about) in enumerate(signature.parameters.items()):
        if place == 0 and (parameter == "ctx" or hints.get(parameter) is ToolContext):
            takes_ctx = True
            continue
        if about.kind not in {about.POSITIONAL_OR_KEYWORD, about.KEYWORD_ONLY} or parameter not in hints:
            raise BadTool(f"parameter {parameter} of {name} has no schema", value=str(about))
        default = ... if about.default is about.empty else about.default
        fields[parameter] = (hints[parameter], default)
    try:
        arguments = create_model(f"{name}_arguments", __config__=ConfigDict(strict=True, extra="forbid"), **fields)
        hint = _at_once(hints.get("return"))
        returns = TypeAdapter(hint) if hint not in {None, Any} else None
    except (PydanticUserError, NameError, TypeError) as exc:
        raise BadTool(f"no schema can be made of {name}: {line(exc)}", value=name) from exc
    return takes_ctx, Hinted(arguments), Returned(returns)


def _at_once(hint: Any) -> Any:
    """A return annotation without Later: what the tool returns, or is answered in the end."""
    if hint is Later:
        return None
    rest = [one for one in typing.get_args(hint) if one is not Later]
    return hint if Later not in typing.get_args(hint) else functools.reduce(operator.or_, rest)


def _adopt(task: Adopted) -> Callable[..., Any]:
    """`task.run` as a function, with `self.request` filled and its own retry raised to us."""
    signature = inspect.signature(task.run)

    def run(ctx: ToolContext, **arguments: Any) -> Any:
        task.push_request(id=f"{ctx.trace_id}", retries=ctx.attempt - 1, called_directly=True, kwargs=arguments)
        try:
            return task.run(**arguments)
        finally:
            task.pop_request()

    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD), *signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = dict(typing.get_type_hints(task.run))
    run.__doc__ = task.run.__doc__
    run.__module__, run.__qualname__ = getattr(task.run, "__module__", ""), task.name
    return run
