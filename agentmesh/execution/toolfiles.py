"""Tools that files declare: `register_tool`'s keys, a schema for each argument and the result, and one adapter."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from agentmesh.errors import BadTool, BadToolFile, MeshError
from agentmesh.execution.adapters import DataAdapter, Http, HttpAdapter, Rpc, RpcAdapter
from agentmesh.execution.queries import Sql, SqlAdapter
from agentmesh.execution.schemas import Declared
from agentmesh.execution.tools import ASKS_S, TX_LIMIT_S, Tool, ToolContext, make_tool
from agentmesh.infrastructure import yamlfiles
from agentmesh.infrastructure.secrets import Secrets
from agentmesh.infrastructure.settings import Seconds
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import AgentCall, Backoff, Effect, IntentName, Json, Name, Record


def _argument(name: str) -> str:
    if name == "for":
        raise ValueError("another name: for is what many inputs stand under")
    return name


class Agent(Record):
    """Another agent that answers: it is given the arguments."""

    to: Name
    intent: IntentName | None = None
    permissions: tuple[str, ...] | None = None


class AgentAdapter(DataAdapter):
    """The payload for the agent that a tool stands for: its arguments."""

    kind = "agent"
    spec: Agent

    def __post_init__(self) -> None:
        if self.declared.result:
            raise ValueError("what an agent answers has no schema here: leave `result` out")

    def __call__(self, ctx: ToolContext, **args: Json) -> Json:  # noqa: ARG002 - what every adapter takes
        return args

    @property
    def asks(self) -> AgentCall:
        return AgentCall(self.spec.to, self.spec.intent, self.spec.permissions)


class ToolFile(Record):
    """A tool as a file declares it: what `register_tool` takes, its schemas, and one adapter."""

    tool: Name
    description: Annotated[str, StringConstraints(max_length=500)] = ""
    needs: tuple[str, ...] = ()
    timeout: Seconds | None = None
    attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    effect: Effect | None = None
    inline: bool = False
    queue: Name = "tools"
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")] = "1"
    backoff: Backoff = Backoff()
    arguments: dict[Annotated[Name, AfterValidator(_argument)], dict[str, Json]] = Field(default_factory=dict)
    """A JSON Schema for each; one with a default may be left out."""
    result: dict[str, Json] = Field(default_factory=dict)
    http: Http | None = None
    rpc: Rpc | None = None
    sql: Sql | None = None
    agent: Agent | None = None

    @property
    def seconds(self) -> float:
        """What one attempt may take."""
        return self.timeout or (
            ASKS_S if self.agent else TX_LIMIT_S if self.sql and self.sql.database is None else 60.0
        )

    def arguments_schema(self) -> dict[str, Json]:
        required = [name for name, one in self.arguments.items() if "default" not in one]
        properties = dict(self.arguments)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


KINDS: dict[str, type[DataAdapter]] = {one.kind: one for one in (HttpAdapter, RpcAdapter, SqlAdapter, AgentAdapter)}


def load_tools(paths: Iterable[str | Path], secrets: Secrets) -> list[Tool]:
    """The tools of these files, and of the *.yaml files in these directories. Raises BadToolFile with file:line."""
    return [_made(yamlfiles.read(path, BadToolFile), secrets) for path in yamlfiles.listed(paths, BadToolFile)]


def _made(text: YamlText, secrets: Secrets) -> Tool:
    declared = yamlfiles.record(ToolFile, text, BadToolFile)
    kinds = [name for name in KINDS if getattr(declared, name) is not None]
    if len(kinds) != 1:
        raise BadToolFile(f"{text.where()}: {declared.tool} needs one adapter", value=", ".join(kinds) or None,
                          expected=f"one of {', '.join(KINDS)}")  # fmt: skip
    try:
        adapter: Any = KINDS[kinds[0]](declared, getattr(declared, kinds[0]), secrets)
        return make_tool(
            declared.tool, adapter, needs=declared.needs, timeout_s=declared.seconds, attempts=declared.attempts,
            tx=adapter.tx, many=getattr(adapter, "many", None), effect=declared.effect or "repeatable", inline=declared.inline,
            group=declared.queue, version=declared.version, asks=getattr(adapter, "asks", None),
            backoff=declared.backoff, description=declared.description,
            arguments=Declared(declared.arguments_schema(), what=f"{declared.tool}: arguments"),
            returns=Declared(declared.result, what=f"{declared.tool}: result"),
        )  # fmt: skip
    except ValueError as exc:
        raise BadToolFile(f"{text.where(kinds[0])}: {exc}", value=declared.tool) from exc
    except MeshError as exc:
        where = "result" if isinstance(exc, BadTool) and "result" in exc.what else "tool"
        raise BadToolFile(f"{text.where(where)}: {exc.what}", value=exc.value, expected=exc.expected) from exc
