"""`agentmesh webhooks`: what other systems were told, what they did not take, and sending that again."""

from __future__ import annotations

import getpass
from typing import Annotated
from uuid import UUID

import typer

from agentmesh.cli.output import document, moment, say, table
from agentmesh.cli.session import Json, opened

app = typer.Typer(name="webhooks", help="Deliveries to the webhooks of traces.", no_args_is_help=True)


@app.command("list")
def list_(
    ctx: typer.Context,
    failed: Annotated[bool, typer.Option("--failed", help="Only what was given up.")] = False,
    as_json: Json = False,
) -> None:
    """The newest deliveries."""
    from agentmesh.state import deliveries

    with opened(ctx) as mesh:
        rows = deliveries.listed(mesh.db, mesh.tenant, status="failed" if failed else None)
    if as_json:
        document("webhooks", deliveries=rows)
        return
    table(
        ["id", "trace", "type", "status", "tries", "due", "target", "error"],
        ([row["id"], row["trace_id"], row["type"], row["status"], row["tries"], moment(row["wake_at"]), row["target"],
          (row["error"] or {}).get("message", "-")] for row in rows),
        empty="nothing was to be delivered",
    )  # fmt: skip


@app.command()
def retry(
    ctx: typer.Context,
    delivery: Annotated[UUID | None, typer.Argument(help="One delivery; else --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were given up.")] = False,
    as_json: Json = False,
) -> None:
    """Send again what was given up, once more and under its old webhook-id."""
    from agentmesh.errors import Mistake, UnknownDelivery
    from agentmesh.state import deliveries

    if (delivery is None) != every:
        raise Mistake("one delivery or all of them", expected="an id, or --all")
    with opened(ctx) as mesh:
        count = deliveries.again(mesh.db, mesh.tenant, delivery, by=getpass.getuser())
    if delivery is not None and not count:
        raise UnknownDelivery("no failed delivery has this id", value=str(delivery))
    if as_json:
        document("webhooks_retried", count=count)
    else:
        say(f"{count} due again")
