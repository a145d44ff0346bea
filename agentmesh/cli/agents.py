"""`agentmesh agents list | show | pause | resume | diff | learn`: whom workers announced, how they are and how they decide."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from agentmesh.cli.decisions import diff, learn
from agentmesh.cli.output import document, moment, pairs, say, table
from agentmesh.cli.session import Json, opened

Named = Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]
app = typer.Typer(name="agents", help="Agents that workers announced.", no_args_is_help=True)

app.command("diff")(diff)
app.command("learn")(learn)


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """Every agent with how it is, its live workers, and its queued and running traces."""
    with opened(ctx) as mesh:
        rows = mesh.lifecycle.agents()
    if as_json:
        document("agents", agents=rows)
        return
    table(
        ["agent", "state", "version", "queue", "workers", "queued", "running", "does"],
        ([row["id"], row["state"], row["version"], row["queue"], row["workers"], row["queued"], row["running"],
          row["spec"].get("description") or "-"] for row in rows),
        empty="no agent was announced; next  agentmesh worker agents",
    )  # fmt: skip


@app.command()
def show(ctx: typer.Context, agent: Annotated[str, typer.Argument(help="Its name.")], as_json: Json = False) -> None:
    """One agent: its intents, tools, permissions and plan."""
    from agentmesh.cli.named import one_of
    from agentmesh.errors import UnknownAgent

    with opened(ctx) as mesh:
        row = one_of(mesh.lifecycle.agents(), agent, "no worker has announced this agent", UnknownAgent)
        row["instances"] = mesh.lifecycle.instances(agent)
    if as_json:
        document("agent", **row)
        return
    spec = row["spec"]
    pairs({
        "agent": row["id"], "state": row["state"] + (f" by {row['paused_by']}" if row["paused_by"] else ""),
        "version": row["version"], "does": spec.get("description") or "-", "queue": row["queue"],
        "offers": ", ".join(spec.get("capabilities", [])) or "-",
        "intents": "any" if row["intents"] is None else ", ".join(row["intents"]),
        "tools": ", ".join(spec.get("tools", [])) or "-", "permissions": ", ".join(row["accepts"]) or "-",
        "executor": spec.get("executor", "-"), "plan": row["plan_hash"], "live workers": str(row["workers"]),
        "queued": str(row["queued"]), "running": str(row["running"]), "announced": moment(row["announced_at"]),
    })  # fmt: skip
    for one in row["instances"]:
        print(f"{one['state']}\t{one['name']}@{one['host']} pid {one['pid']}, since {moment(one['registered_at'])}")


@app.command()
def pause(ctx: typer.Context, agent: Named, as_json: Json = False) -> None:
    """Begin no further trace of it, on any worker; what has begun goes on."""
    with opened(ctx) as mesh:
        changed = mesh.lifecycle.pause(agent, by=getpass.getuser())
    _said(agent, "paused", changed, as_json=as_json)


@app.command()
def resume(ctx: typer.Context, agent: Named, as_json: Json = False) -> None:
    """Take new work again, first what has waited."""
    with opened(ctx) as mesh:
        changed = mesh.lifecycle.resume(agent, by=getpass.getuser())
    _said(agent, "resumed", changed, as_json=as_json)


def _said(agent: str, done: str, changed: bool, *, as_json: bool) -> None:
    if as_json:
        document("agent_steered", agent=agent, done=done, changed=changed)
    else:
        say(f"{agent} is {done}" if changed else f"{agent} was {done} already")
