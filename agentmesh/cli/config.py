"""`agentmesh config show`: every setting of this process, and where its value comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmesh.cli.output import document, table
from agentmesh.cli.session import Json, settings_of

app = typer.Typer(name="config", help="Settings.", no_args_is_help=True)


@app.command()
def show(
    ctx: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Where each value comes from.")] = False,
    as_json: Json = False,
) -> None:
    """Every setting, secrets as ***."""
    from agentmesh.infrastructure.settings import describe

    rows = describe(settings_of(ctx))
    if as_json:
        document("settings", settings=rows)
        return
    columns = ["setting", "value", *(["from"] if origin else [])]
    table(columns, ([row["name"], row["value"], *([row["origin"]] if origin else [])] for row in rows), empty="")
