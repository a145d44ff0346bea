"""`agentmesh agents list | show | diff | learn`: whom workers announced, and how they decide."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmesh.cli.decisions import diff, learn
from agentmesh.cli.output import document, moment, pairs, table
from agentmesh.cli.session import Json, opened

app = typer.Typer(name="agents", help="Agents that workers announced.", no_args_is_help=True)

app.command("diff")(diff)
app.command("learn")(learn)


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """Every agent with its live workers, and its queued and running traces."""
    from agentmesh.state import announced

    with opened(ctx) as mesh:
        rows = announced.agents(mesh.db, mesh.tenant)
    if as_json:
        document("agents", agents=rows)
        return
    table(
        ["agent", "version", "queue", "workers", "queued", "running", "does"],
        ([row["id"], row["version"], row["queue"], row["workers"], row["queued"], row["running"],
          row["spec"].get("description") or "-"] for row in rows),
        empty="no agent was announced; next  agentmesh worker agents",
    )  # fmt: skip


@app.command()
def show(ctx: typer.Context, agent: Annotated[str, typer.Argument(help="Its name.")], as_json: Json = False) -> None:
    """One agent: its intents, tools, permissions and plan."""
    from agentmesh.cli.named import one_of
    from agentmesh.errors import UnknownAgent
    from agentmesh.state import announced

    with opened(ctx) as mesh:
        row = one_of(announced.agents(mesh.db, mesh.tenant), agent, "no worker has announced this agent", UnknownAgent)
    if as_json:
        document("agent", **row)
        return
    spec = row["spec"]
    pairs({
        "agent": row["id"], "version": row["version"], "does": spec.get("description") or "-", "queue": row["queue"],
        "intents": "any" if row["intents"] is None else ", ".join(row["intents"]),
        "tools": ", ".join(spec.get("tools", [])) or "-", "permissions": ", ".join(row["accepts"]) or "-",
        "executor": spec.get("executor", "-"), "plan": row["plan_hash"], "live workers": str(row["workers"]),
        "queued": str(row["queued"]), "running": str(row["running"]), "announced": moment(row["announced_at"]),
    })  # fmt: skip
