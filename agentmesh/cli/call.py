"""`agentmesh call finish`: the answer of a tool call that waits for one. `agentmesh resolve`: what became of one that was
lost and must not run twice."""

from __future__ import annotations

import getpass
from typing import Annotated, Any, Literal
from uuid import UUID

import typer

from agentmesh.cli.output import document, say
from agentmesh.cli.session import Json, opened, read_json

app = typer.Typer(name="call", help="Tool calls that wait for an answer.", no_args_is_help=True)

Call = Annotated[UUID, typer.Argument(help="The call's id.")]


@app.command()
def finish(
    ctx: typer.Context,
    call: Call,
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
            mesh.answers.finish(call, given, by=getpass.getuser(), tenant=mesh.tenant)
        else:
            mesh.answers.fail(call, failed, by=getpass.getuser(), tenant=mesh.tenant)
    if as_json:
        document("call", id=call, status="done" if failed is None else "failed")
    else:
        say("finished" if failed is None else "failed")


def resolve(
    ctx: typer.Context,
    call: Call,
    done: Annotated[str | None, typer.Option(help="It took effect: its result, JSON, @FILE, or @- for stdin.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="It did not take effect.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run it again, as a new call with a new key.")] = False,
    reason: Annotated[str, typer.Option(help="How you know; it stands in the trace's events.")] = "",
    as_json: Json = False,
) -> None:
    """Say what became of a failed call of effect `once`; its trace, which had failed with it, goes on."""
    from agentmesh.errors import Mistake

    if [done is not None, failed, again].count(True) != 1:
        raise Mistake("what became of the call?", value=str(call), expected="one of --done JSON, --failed, --again")
    result: Any = None if done is None else read_json(done, "--done")
    to: Literal["done", "failed", "again"] = "done" if done is not None else "failed" if failed else "again"
    with opened(ctx) as mesh:
        mesh.answers.resolve(call, to, result=result, by=getpass.getuser(), reason=reason, tenant=mesh.tenant)
    if as_json:
        document("resolved", id=call, to=to)
    else:
        say(f"{call} runs again as another call" if to == "again" else f"{call} is {to}")
