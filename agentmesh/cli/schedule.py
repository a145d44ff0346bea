"""`agentmesh schedule add | list | remove`: what agents are asked by the clock."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from agentmesh.cli.output import document, moment, say, table
from agentmesh.cli.session import Json, opened, read_json

app = typer.Typer(name="schedule", help="What agents are asked by the clock.", no_args_is_help=True)

Named = Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]


@app.command()
def add(
    ctx: typer.Context,
    name: Named,
    agent: Annotated[str, typer.Argument(help="Whom it is for.")],
    intent: Annotated[str, typer.Argument(help="What is asked of it.")],
    cron: Annotated[str, typer.Option(help="When, such as '0 9 * * 1-5'.")],
    timezone: Annotated[str, typer.Option(help="Whose clock, such as Europe/Berlin.")] = "UTC",
    data: Annotated[str, typer.Option(help="The payload: JSON, @FILE, or @- for stdin.")] = "{}",
    context: Annotated[str | None, typer.Option(help="The session it belongs to; else one of its own.")] = None,
    missed: Annotated[
        str, typer.Option(help="What becomes of moments nobody was there for: skip, once, all.")
    ] = "once",
    priority: Annotated[int, typer.Option(min=0, max=9, help="9 first.")] = 5,
    as_json: Json = False,
) -> None:
    """Ask this of an agent whenever the time comes; a schedule of the same name is replaced."""
    from agentmesh.behavior.router import make_intent
    from agentmesh.errors import Mistake
    from agentmesh.records import check_name

    if missed not in {"skip", "once", "all"}:
        raise Mistake("--missed does not say what to do", value=missed, expected="skip, once or all")
    check_name(name, "the schedule")
    payload: Any = read_json(data, "--data")
    with opened(ctx) as mesh:
        mesh.client.check(make_intent(intent, f"schedule:{name}", agent, context or f"schedule:{name}", payload))
        first = mesh.timetable.add(
            mesh.tenant, name, by=getpass.getuser(), agent=agent, intent=intent, payload=payload, context_id=context, cron=cron,
            timezone=timezone, missed=missed, priority=priority,
        )  # fmt: skip
    if as_json:
        document("schedule", id=name, next_at=first)
    else:
        say(f"{name} comes next at {first.isoformat()}")


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """Every schedule: when it comes next, when it came last, and what was wrong then."""
    from agentmesh.state import schedules

    with opened(ctx) as mesh:
        rows = schedules.listed(mesh.db, mesh.tenant)
    if as_json:
        document("schedules", schedules=rows)
        return
    table(
        ["schedule", "agent", "intent", "cron", "timezone", "missed", "next", "last", "fired", "error"],
        ([row["id"], row["agent"], row["intent"], row["cron"], row["timezone"], row["missed"], moment(row["next_at"]),
          moment(row["fired_at"]), row["fired"], (row["error"] or {}).get("message", "-")] for row in rows),
        empty="nothing is scheduled; next  agentmesh schedule add",
    )  # fmt: skip


@app.command()
def remove(ctx: typer.Context, name: Named, as_json: Json = False) -> None:
    """Forget a schedule; what it has begun goes on."""
    with opened(ctx) as mesh:
        mesh.timetable.remove(mesh.tenant, name, by=getpass.getuser())
    if as_json:
        document("schedule_removed", id=name)
    else:
        say(f"{name} is forgotten")
