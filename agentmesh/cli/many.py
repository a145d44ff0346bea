"""Steering everything that a filter matches: a look at it first, then one trace after another, until told to stop.

Each is steered by the same guarded transition as one alone; what was dispatched after the look is left alone. An
interrupt loses nothing: it says how many were done, and the same command goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.output import confirmed, document, moment, say
from agentmesh.cli.session import opened

if TYPE_CHECKING:
    from uuid import UUID

    from agentmesh.state.steering import Steered
    from agentmesh.wiring import Mesh

Where = Annotated[
    str | None, typer.Option("--filter", help="All that match: status: agent: intent: context: from: parent:")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="With --filter: at most so many, newest first.")]
Yes = Annotated[bool, typer.Option("--yes", help="With --filter: do not ask.")]
EXAMPLES = 5
BATCH = 100
EVERY = 100_000_000  # the count is what a person says yes to: never a rounded one


def steer_many(
    ctx: typer.Context, verb: str, done: str, where: str, order: Callable[[Mesh, UUID], Steered], *,
    limit: int | None, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Exit code 1 where a trace could not be steered, 4 where nobody said yes, 130 when interrupted."""
    from agentmesh.errors import Mistake
    from agentmesh.observation import timeline

    wanted = timeline.parse_filter(where)
    if not wanted:
        raise Mistake("the filter matches everything", value=where, expected="status:… agent:… or another condition")
    with opened(ctx) as mesh:
        found = timeline.count(mesh.db, mesh.tenant, where=wanted, verb=verb, cap=EVERY)
        count = found if limit is None else min(found, limit)
        examples = timeline.traces(mesh.db, mesh.tenant, where=wanted, limit=min(count, EXAMPLES), verb=verb)
        if not count:
            say(f"nothing to {verb} matches")
        else:
            say(f"{count} of {found} traces, such as")
            for row in examples:
                say(f"  {row['id']}  {row['status']}  {row['agent']}  {row['intent']}  {moment(row['created_at'])}")
            if not yes:
                confirmed(f"{verb} {count} traces?")
        books = {"changed": 0, "late": 0, "refused": 0}
        try:
            _each(mesh, verb, wanted, count, order, books)
        except KeyboardInterrupt:
            say(f"interrupted: {books['changed']} of {count} {done}; the same command goes on with the rest")
            raise
    if as_json:
        document("steered_many", done=done, matched=found, **books)
    elif count:
        say(f"{books['changed']} {done}, {books['late']} too late, {books['refused']} refused")
    if books["refused"]:
        raise typer.Exit(1)


def _each(
    mesh: Mesh, verb: str, wanted: dict[str, str], count: int, order: Callable[[Mesh, UUID], Steered], books: dict[str, int]
) -> None:  # fmt: skip
    from agentmesh.errors import MeshError
    from agentmesh.observation import timeline

    before: Any = None
    while count > 0:
        rows = timeline.traces(
            mesh.db, mesh.tenant, where=wanted, limit=min(count, BATCH), before=before, verb=verb
        )  # fmt: skip
        if not rows:
            return
        for row in rows:
            try:
                steered = order(mesh, row["id"])
            except MeshError as exc:
                books["refused"] += 1
                say(f"{row['id']} refused: {exc}")
                continue
            books["changed" if steered.changed else "late"] += 1
            mesh.doorbell.ring(steered.rings)
        before, count = rows[-1]["id"], count - len(rows)
