"""`agentmesh tools list | show`: what workers can do for agents."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmesh.cli.output import document, moment, pairs, table
from agentmesh.cli.session import Json, opened

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
