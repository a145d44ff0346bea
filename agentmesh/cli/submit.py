"""`agentmesh submit`: one intent, accepted by the mesh's own rules; with --wait drawn until it ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli.output import as_line, document, pairs, say
from agentmesh.cli.session import Json, opened, read_json

if TYPE_CHECKING:
    from agentmesh.communication.client import Trace
    from agentmesh.wiring import Mesh


def submit(
    ctx: typer.Context,
    agent: Annotated[str, typer.Argument(help="Whom it is for.")],
    intent: Annotated[str, typer.Argument(help="What is asked of it.")],
    data: Annotated[str, typer.Option(help="The payload: JSON, @FILE, or @- for stdin.")] = "{}",
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key is the same trace.")] = None,
    context: Annotated[str | None, typer.Option(help="The session it belongs to; else one of its own.")] = None,
    sender: Annotated[str | None, typer.Option("--from", help="Who asks; else your user name.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=9, help="9 first.")] = 5,
    wait: Annotated[bool, typer.Option("--wait", help="Draw it until it ends; exit 1 if it fails.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="With --wait: seconds, then exit 7.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, accept nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Hand one intent to an agent; prints the trace's id."""
    from agentmesh.behavior.router import make_intent
    from agentmesh.records import new_id

    payload = read_json(data, "--data")
    sender = sender or f"user:{os.environ.get('USER', 'cli')}"
    made = make_intent(
        intent, sender, agent, context or f"cli-{new_id().hex[:20]}", payload, idempotency_key=key, priority=priority
    )
    with opened(ctx) as mesh:
        if dry_run:
            queue, permissions = mesh.client.check(made)
            said = {"agent": agent, "intent": intent, "queue": queue, "permissions": list(permissions)}
            if as_json:
                document("intent", accepted=False, **said)
            else:
                say("it would be accepted; nothing was written")
                pairs(said)
            return
        trace = mesh.client.send(made)
        if not wait:
            if as_json:
                document("trace", id=trace.id, status=trace.status(), agent=agent, intent=intent)
            else:
                print(trace.id)
                say(f"next  agentmesh trace show {trace.id}")
            return
        code = _wait(mesh, trace, timeout, as_json=as_json)
    raise typer.Exit(code)


def _wait(mesh: Mesh, trace: Trace, timeout: float | None, *, as_json: bool) -> int:
    """Draw it until it ends; the exit code. Raises StillWorking."""
    from agentmesh.cli.draw import follow

    seen = follow(mesh.db, mesh.tenant, trace.id, timeout=timeout, quiet=as_json)
    done = seen.trace["status"] == "done"
    if as_json:
        document("trace", **seen.trace)
    elif done:
        print(as_line(trace.result(0)))
    return 0 if done else 1
