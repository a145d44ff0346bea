"""`agentmesh pause | resume | cancel | retry`: one trace, or all that match, steered by a person who is named in the events."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from agentmesh.cli.many import Limit, Where, Yes, steer_many
from agentmesh.cli.output import document, say
from agentmesh.cli.session import Json, opened

if TYPE_CHECKING:
    from uuid import UUID

    from agentmesh.state.steering import Steered
    from agentmesh.wiring import Mesh

TraceId = Annotated[str, typer.Argument(metavar="ID", help="An id, a unique prefix of one, or @last.")]
Meant = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="An id, a unique prefix of one, or @last; else --filter.")
]
Reason = Annotated[str, typer.Option(help="Why; it stands in the trace's events.")]


def pause(
    ctx: typer.Context, trace_id: Meant = None, where: Where = None, limit: Limit = None, yes: Yes = False,
    reason: Reason = "", as_json: Json = False,
) -> None:  # fmt: skip
    """Start no further step; calls that run are kept."""
    from agentmesh.state import steering

    def order(mesh: Mesh, found: UUID) -> Steered:
        return steering.pause(mesh.db, tenant=mesh.tenant, trace_id=found, by=getpass.getuser(), reason=reason)

    _steer(ctx, _Order("pause", "paused", order), trace_id, where, limit, yes=yes, as_json=as_json)


def resume(
    ctx: typer.Context, trace_id: Meant = None, where: Where = None, limit: Limit = None, yes: Yes = False,
    reason: Reason = "", as_json: Json = False,
) -> None:  # fmt: skip
    """Go on where it was paused."""
    from agentmesh.state import steering

    def order(mesh: Mesh, found: UUID) -> Steered:
        return steering.resume(mesh.db, tenant=mesh.tenant, trace_id=found, by=getpass.getuser(), reason=reason)

    _steer(ctx, _Order("resume", "resumed", order), trace_id, where, limit, yes=yes, as_json=as_json)


def cancel(
    ctx: typer.Context,
    trace_id: Meant = None,
    where: Where = None,
    limit: Limit = None,
    yes: Yes = False,
    tree: Annotated[bool, typer.Option("--tree", help="And everything it delegated.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Undo what its tools did first, newest first.")] = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """End it now: nothing of it starts any more, and what still runs comes too late."""
    from agentmesh.state import rewind as rewinding
    from agentmesh.state import steering

    def order(mesh: Mesh, found: UUID) -> Steered:
        by = getpass.getuser()
        if undo:
            undone = rewinding.undo(mesh.db, tenant=mesh.tenant, trace_id=found, by=by, reason=reason)
            return steering.Steered(changed=True, status="running", paused=False, rings=undone.rings)
        return steering.cancel(mesh.db, tenant=mesh.tenant, trace_id=found, by=by, reason=reason, tree=tree)

    wanted = _Order("cancel", "being undone" if undo else "cancelled", order)
    _steer(ctx, wanted, trace_id, where, limit, yes=yes, as_json=as_json)


def retry(
    ctx: typer.Context, trace_id: Meant = None, where: Where = None, limit: Limit = None, yes: Yes = False, as_json: Json = False
) -> None:  # fmt: skip
    """Run the failed part again: same rows, same keys, same history."""
    from agentmesh.state.retry import retry as retried
    from agentmesh.state.steering import Steered

    def again(mesh: Mesh, found: UUID) -> Steered:
        rings = retried(mesh.db, tenant=mesh.tenant, trace_id=found, by=getpass.getuser())
        return Steered(changed=True, status="running", paused=False, rings=tuple(rings))

    _steer(ctx, _Order("retry", "retried", again), trace_id, where, limit, yes=yes, as_json=as_json)


def rewind(
    ctx: typer.Context,
    trace_id: TraceId,
    to: Annotated[int, typer.Option("--to", min=1, help="The step to begin anew at, as trace show numbers them.")],
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Go back to an earlier step; what came after stays readable, memory goes back with it."""
    from agentmesh.observation import timeline
    from agentmesh.state.rewind import rewind as back

    with opened(ctx) as mesh:
        found = timeline.resolve(mesh.db, mesh.tenant, trace_id)
        done = back(mesh.db, tenant=mesh.tenant, trace_id=found, ordinal=to, by=getpass.getuser(), reason=reason)
        mesh.doorbell.ring(done.rings)
    if as_json:
        document("rewound", id=found, node=done.node, restored=list(done.restored), parked=list(done.parked))
        return
    say(f"{found} begins anew at {done.node}")
    for key in done.parked:
        say(f"left as somebody else has written it since: {key}")


def fork(
    ctx: typer.Context,
    trace_id: TraceId,
    at: Annotated[int, typer.Option("--at", min=1, help="The step to begin at, as trace show numbers them.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=JSON", help="A key of the payload.")
    ] = None,
    plan: Annotated[str | None, typer.Option(help="The hash of another plan.")] = None,
    as_json: Json = False,
) -> None:
    """A new trace from a step of this one, with changed input; prints its id."""
    from agentmesh.observation import timeline

    wanted = dict(_changed(one) for one in changes or [])
    with opened(ctx) as mesh:
        found = timeline.resolve(mesh.db, mesh.tenant, trace_id)
        made = mesh.forks.fork(found, at, changes=wanted, plan_hash=plan, by=getpass.getuser())
    if as_json:
        document("fork", id=made.id, of=found, step=at)
    else:
        print(made.id)


def _changed(text: str) -> tuple[str, Any]:
    """KEY=JSON; what is no JSON is text."""
    from agentmesh.errors import BadJson, Mistake
    from agentmesh.infrastructure import jsontext

    key, sign, value = text.partition("=")
    if not sign or not key:
        raise Mistake("--set does not say what to set", value=text, expected="KEY=JSON")
    try:
        return key, jsontext.loads(value, what="--set")
    except BadJson:
        return key, value


class _Order(NamedTuple):
    """What is asked, how it is called when it is done, and what does it to one trace."""

    verb: str
    done: str
    do: Callable[[Mesh, UUID], Steered]


def _steer(
    ctx: typer.Context, order: _Order, given: str | None, where: str | None, limit: int | None, *, yes: bool, as_json: bool
) -> None:  # fmt: skip
    """Exit code 4 when the order came too late: the trace had ended."""
    from agentmesh.errors import Mistake
    from agentmesh.observation import timeline

    done = order.done
    if (given is None) == (where is None):
        raise Mistake("which trace?", value=given, expected="the id of one, or --filter for all that match",
                      next="agentmesh trace list")  # fmt: skip
    if given is None:
        steer_many(ctx, order.verb, done, str(where), order.do, limit=limit, yes=yes, as_json=as_json)
        return
    with opened(ctx) as mesh:
        found = timeline.resolve(mesh.db, mesh.tenant, given)
        steered = order.do(mesh, found)
        mesh.doorbell.ring(steered.rings)
    ended = steered.status in timeline.ENDED
    late = ended and not (steered.changed or (done, steered.status) == ("cancelled", "cancelled"))
    if as_json:
        document("steered", id=found, done=done, changed=steered.changed, status=steered.status, paused=steered.paused)
    elif late:
        say(f"too late: {found} is {steered.status}")
    else:
        say(f"{found} is {done}" if steered.changed else f"{found} was {done} already")
    if late:
        raise typer.Exit(4)
