"""`agentmesh trace list | show | dump`: what was asked of the mesh, and how one of it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from agentmesh.cli.output import as_line, document, moment, safe, say, span, table
from agentmesh.cli.session import Json, opened

if TYPE_CHECKING:
    from agentmesh.infrastructure.database import Database
    from agentmesh.wiring import Mesh

app = typer.Typer(name="trace", help="What was asked, and how it went.", no_args_is_help=True)


@app.command("list")
def list_(
    ctx: typer.Context,
    where: Annotated[str | None, typer.Option("--filter", help="status: agent: intent: context: from: parent:")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    before: Annotated[str | None, typer.Option(help="Older than this trace.")] = None,
    as_json: Json = False,
) -> None:
    """Traces, newest first."""
    from agentmesh.observation import timeline

    wanted = timeline.parse_filter(where)
    with opened(ctx) as mesh:
        older: UUID | None = timeline.resolve(mesh.db, mesh.tenant, before) if before else None
        rows = timeline.traces(mesh.db, mesh.tenant, where=wanted, limit=limit, before=older)
    if as_json:
        document("traces", traces=rows)
        return
    table(
        ["id", "status", "agent", "intent", "context", "took", "created"],
        ([row["id"], row["status"], row["agent"], row["intent"], row["context_id"], span(row["seconds"]),
          moment(row["created_at"])] for row in rows),
        empty="no trace matches; next  agentmesh submit",
    )  # fmt: skip
    if len(rows) == limit:
        say(f"more: --before {rows[-1]['id']}")


@app.command()
def show(
    ctx: typer.Context,
    trace_id: Annotated[str, typer.Argument(metavar="ID", help="An id, a unique prefix of one, or @last.")],
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; with --json one line an event.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Its events instead of the tree.")] = False,
    policy: Annotated[bool, typer.Option("--policy", help="Its policy, and where each part comes from.")] = False,
    session: Annotated[bool, typer.Option("--session", help="What its reasoner saw at each decision.")] = False,
    as_json: Json = False,
) -> None:
    """One trace as a tree: steps, calls, attempts, errors, and what it delegated."""
    from agentmesh.cli import draw
    from agentmesh.observation import timeline

    with opened(ctx) as mesh:
        db, tenant = mesh.db, mesh.tenant
        found = timeline.resolve(db, tenant, trace_id)
        if session:
            _sessions(mesh, found, as_json=as_json)
        elif policy:
            _policy(db, tenant, found, as_json=as_json)
        elif follow and (as_json or events):
            _follow_events(mesh.db, tenant, found, as_json=as_json)
        elif follow:
            draw.follow(db, tenant, found, children=True)
        elif events and not as_json:
            for event in timeline.events(db, tenant, found):
                print(f"{event['seq']}\t{moment(event['at'])}\t{event['name']}\t{safe(as_line(event['body']))}")
        else:
            seen = timeline.trace(db, tenant, found)
            if as_json:
                document(
                    "trace", **seen.trace, step_rows=seen.steps, calls=seen.calls, attempts=seen.attempts,
                    children=seen.children, events=timeline.events(db, tenant, found),
                )  # fmt: skip
            else:
                draw.show(draw.tree(seen, lambda child: timeline.trace(db, tenant, child)))


@app.command()
def dump(
    ctx: typer.Context,
    trace_id: Annotated[str, typer.Argument(metavar="ID", help="An id, a unique prefix of one, or @last.")],
) -> None:
    """Everything about one trace as one JSON document, secrets redacted: its rows, its session, and what is decided next."""
    from agentmesh.observation import timeline

    with opened(ctx) as mesh:
        document("dump", **mesh.dumps.dump(timeline.resolve(mesh.db, mesh.tenant, trace_id)))


def _sessions(mesh: Mesh, found: UUID, *, as_json: bool) -> None:
    from agentmesh.infrastructure.logging import redact
    from agentmesh.observation import decisions

    seen = redact(decisions.shown(mesh.db, mesh.tenant, found, blobs=mesh.blobs))
    if as_json:
        document("sessions", id=found, decisions=seen)
        return
    for one in seen:
        account = one["account"] or {"strategy": "structured", "used": None}
        used = (
            "" if account["used"] is None else f", {account['used']} of {account['budget'] or 'any number of'} tokens"
        )
        print(f"step {one['step']}  {safe(one['node'])}  {safe(account['strategy'])}{used}")
        for name, value in one["values"].items():
            _line(name, value)
        if near := account.get("nearest"):
            keys_ = [f"{key} {'not compared' if score is None else score}" for key, score in near["found"]]
            why = f"; {near['error']['message']}" if "error" in near else ""
            _line("nearest", f"{', '.join(keys_) or 'nothing'} by {near['model']}{why}")
        for part, keys in account.get("left_out", {}).items():
            _line(f"no {part}", ", ".join(keys))
        for prompt in one["prompts"]:
            _line("prompt", prompt.get("prompt") or prompt)
        _line("chose", one["action"])


def _line(name: str, value: object) -> None:
    print(f"  {name:<12}  {safe(value if isinstance(value, str) else as_line(value))}")


def _policy(db: Database, tenant: str, found: UUID, *, as_json: bool) -> None:
    from agentmesh.observation import policies, timeline

    seen = timeline.trace(db, tenant, found)
    body = timeline.plan(db, tenant, seen.trace["plan_hash"]) if seen.trace["plan_hash"] else None
    parts = policies.parts(seen.trace, timeline.events(db, tenant, found), body)
    if as_json:
        document("policy", id=found, parts=[
            {"name": one.name, "value": one.value, "from": one.source, "node": one.node} for one in parts
        ])  # fmt: skip
        return
    table(
        ["field", "value", "from", "node"],
        ([one.name, as_line(one.value), one.source, one.node or ""] for one in parts), empty="it has not begun",
    )  # fmt: skip


def _follow_events(db: object, tenant: str, found: UUID, *, as_json: bool) -> None:
    import threading

    from agentmesh.infrastructure.database import Database
    from agentmesh.observation import timeline

    assert isinstance(db, Database)  # noqa: S101 - what a mesh's db is
    after, wait = 0, threading.Event().wait
    while True:
        ended = timeline.trace(db, tenant, found).ended
        for event in timeline.events(db, tenant, found, after=after):
            after = event["seq"]
            if as_json:
                document("event", trace_id=found, **event)
            else:
                print(
                    f"{event['seq']}\t{moment(event['at'])}\t{event['name']}\t{safe(as_line(event['body']))}",
                    flush=True,
                )
        if ended:
            return
        wait(0.2)
