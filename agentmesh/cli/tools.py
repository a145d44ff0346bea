"""`agentmesh tools list | show | call`: what workers can do for agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.output import as_line, document, moment, pairs, table
from agentmesh.cli.session import Json, opened, read_json
from agentmesh.errors import MeshError

if TYPE_CHECKING:
    from agentmesh.wiring import Mesh

app = typer.Typer(name="tools", help="Tools that workers announced.", no_args_is_help=True)


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """Every tool with its live workers, what it needs and what running it again means."""
    from agentmesh.state import announced

    with opened(ctx) as mesh:
        rows = announced.tools(mesh.db, mesh.tenant)
    if as_json:
        document("tools", tools=rows)
        return
    table(
        ["tool", "version", "queue", "workers", "effect", "needs"],
        ([row["id"], row["version"], row["queue"], row["workers"], row["effect"], ", ".join(row["needs"]) or "-"]
         for row in rows),
        empty="no tool was announced; next  agentmesh worker tools",
    )  # fmt: skip


@app.command()
def show(ctx: typer.Context, tool: Annotated[str, typer.Argument(help="Its name.")], as_json: Json = False) -> None:
    """One tool: its arguments, limits and needs."""
    from agentmesh.cli.named import one_of
    from agentmesh.errors import UnknownTool
    from agentmesh.state import announced

    with opened(ctx) as mesh:
        row = one_of(announced.tools(mesh.db, mesh.tenant), tool, "no worker has announced this tool", UnknownTool)
    if as_json:
        document("tool", **row)
        return
    pairs({
        "tool": row["id"], "version": row["version"], "queue": row["queue"], "effect": row["effect"],
        "needs": ", ".join(row["needs"]) or "-", "live workers": str(row["workers"]), **row["spec"],
        "announced": moment(row["announced_at"]),
    })  # fmt: skip


@app.command()
def call(
    ctx: typer.Context,
    tool: Annotated[str, typer.Argument(help="Its name.")],
    args: Annotated[str, typer.Option(help="Its arguments: JSON, @FILE, or @- for stdin.")] = "{}",
    payload: Annotated[str, typer.Option(help="The intent's payload, for a tool that reads it.")] = "{}",
    key: Annotated[str | None, typer.Option(help="The idempotency key it is given; else one of its own.")] = None,
    as_json: Json = False,
) -> None:
    """Run one tool alone, in this process: its arguments and its result are checked, nothing is recorded."""
    from agentmesh.cli.worker import import_from_here
    from agentmesh.errors import BadArguments

    import_from_here()
    given, intent = read_json(args, "--args"), read_json(payload, "--payload")
    if not isinstance(given, dict):
        raise BadArguments("--args is no object", value=given, expected='{"name": value}')
    with opened(ctx, migrated=False) as mesh:
        value = _alone(mesh, tool, given, intent, key)
    if as_json:
        document("result", tool=tool, result=value)
    else:
        print(as_line(value))


def _alone(mesh: Mesh, name: str, args: dict[str, Any], payload: Any, key: str | None) -> Any:
    """What the tool returns. Raises ToolFailed for what it raises; a transactional one commits where it does not."""
    from dataclasses import replace

    from agentmesh.errors import ToolFailed
    from agentmesh.execution.failures import Raised, failure_of, theirs
    from agentmesh.execution.invoke import context, invoke
    from agentmesh.records import new_id

    mesh.load_code()
    tool = mesh.tools.get(name)
    row = {
        "id": new_id(), "trace_id": new_id(), "tenant_id": mesh.tenant, "context_id": "cli", "intent": "call", "tool": name,
        "epoch": 1, "idem_key": key or new_id().hex,
    }  # fmt: skip
    ctx = context(row, payload=payload, results={}, attempt=1)
    try:
        if not tool.tx:
            return theirs(lambda: invoke(tool, args, ctx))
        with mesh.db.lend() as connection, connection.begin():
            return theirs(lambda: invoke(tool, args, replace(ctx, tx=connection)))
    except Raised as exc:
        if isinstance(exc.cause, MeshError):
            raise exc.cause from exc
        failure = failure_of(exc, code=ToolFailed.code)
        raise ToolFailed(f"{name} failed: {failure.message}", value=failure.detail.get("type")) from exc
