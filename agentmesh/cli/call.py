"""`agentmesh call finish`: the answer of a tool call that waits for one."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from agentmesh.cli.output import document, say
from agentmesh.cli.session import Json, opened, read_json

app = typer.Typer(name="call", help="Tool calls that wait for an answer.", no_args_is_help=True)


@app.command()
def finish(
    ctx: typer.Context,
    call: Annotated[UUID, typer.Argument(help="The call's id.")],
    result: Annotated[str | None, typer.Option(help="What it returns: JSON, @FILE, or @- for stdin.")] = None,
    failed: Annotated[str | None, typer.Option(help="Or why it has failed for good.")] = None,
    as_json: Json = False,
) -> None:
    """End a running call with its result, checked against the tool's schema, or as failed."""
    from agentmesh.errors import Mistake

    if (result is None) == (failed is None):
        raise Mistake("a call ends with a result or as failed", expected="--result JSON or --failed WHY")
    given = None if result is None else read_json(result, "--result")
    with opened(ctx) as mesh:
        if failed is None:
            mesh.answers.finish(call, given, tenant=mesh.tenant)
        else:
            mesh.answers.fail(call, failed, tenant=mesh.tenant)
    if as_json:
        document("call", id=call, status="done" if failed is None else "failed")
    else:
        say("finished" if failed is None else "failed")
