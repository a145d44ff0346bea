"""`agentmesh signal | approvals | approve | reject`: what a trace waits for, brought by a person who is named in its events."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from agentmesh.cli.output import document, moment, say, table
from agentmesh.cli.session import Json, opened, read_json

TraceId = Annotated[str, typer.Argument(metavar="ID", help="An id, a unique prefix of one, or @last.")]
By = Annotated[str | None, typer.Option(help="Who decides; your account here unless you say otherwise.")]
Why = Annotated[str | None, typer.Option("--reason", help="Why; it stands in the trace's events.")]


def signal(
    ctx: typer.Context,
    trace_id: TraceId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name the chain waits for.")],
    data: Annotated[str | None, typer.Option(help="Its payload: JSON, @FILE, or @- for stdin.")] = None,
    key: Annotated[str | None, typer.Option(help="A second signal under this key changes nothing.")] = None,
    as_json: Json = False,
) -> None:
    """Tell a trace what it waits for, or will wait for."""
    from agentmesh.observation import timeline

    payload: Any = None if data is None else read_json(data, "--data")
    with opened(ctx) as mesh:
        found = timeline.resolve(mesh.db, mesh.tenant, trace_id)
        sent = mesh.people.signal(found, name, payload, by=getpass.getuser(), key=key)
    if as_json:
        document("signal", id=found, heard=sent.heard, repeated=sent.repeated)
    elif sent.repeated:
        say(f"{found} had this signal already")
    else:
        say(f"{found} goes on" if sent.heard else f"{found} does not wait for {name} yet; the signal is kept")


def approvals(ctx: typer.Context, as_json: Json = False) -> None:
    """What waits for a person, oldest first."""
    with opened(ctx) as mesh:
        rows = mesh.people.asked()
    if as_json:
        document("approvals", approvals=rows)
        return
    table(
        ["trace", "node", "agent", "asked", "who", "since", "until"],
        ([row["trace_id"], row["node"], row["agent"], str(row["asked"].get("ask") or ""),
          ", ".join(row["asked"].get("who") or ["anybody"]), moment(row["created_at"]),
          moment(row["wake_at"]) if row["wake_at"] else ""] for row in rows),
        empty="nothing waits for a person",
    )  # fmt: skip


def approve(
    ctx: typer.Context,
    trace_id: TraceId,
    choice: Annotated[str | None, typer.Option(help="One of the options; the first unless you say otherwise.")] = None,
    reason: Why = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Decide what a trace asks."""
    _decide(ctx, trace_id, choice, reason, by, refuse=False, as_json=as_json)


def reject(ctx: typer.Context, trace_id: TraceId, reason: Why = None, by: By = None, as_json: Json = False) -> None:
    """Refuse what a trace asks: its last option."""
    _decide(ctx, trace_id, None, reason, by, refuse=True, as_json=as_json)


def _decide(
    ctx: typer.Context,
    given: str,
    choice: str | None,
    reason: str | None,
    by: str | None,
    *,
    refuse: bool,
    as_json: bool,
) -> None:
    from agentmesh.observation import timeline

    with opened(ctx) as mesh:
        found = timeline.resolve(mesh.db, mesh.tenant, given)
        decided = mesh.people.decide(found, choice, refuse=refuse, by=by or getpass.getuser(), reason=reason)
    if as_json:
        document("decision", id=found, node=decided["node"], choice=decided["choice"], by=decided["by"])
    else:
        say(f"{found}: {decided['by']} chose {decided['choice']} for {decided['node']}")
