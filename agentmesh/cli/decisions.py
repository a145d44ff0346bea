"""`agentmesh feedback`, `agents learn` and `agents diff`: how well decisions turned out, what that teaches, and what
another reasoner would do."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.output import as_line, document, safe, say
from agentmesh.cli.session import Json, opened
from agentmesh.errors import NoDecision

if TYPE_CHECKING:
    from agentmesh.behavior.combined import Decision
    from agentmesh.observation.decisions import Point
    from agentmesh.wiring import Mesh

TraceId = Annotated[str, typer.Argument(metavar="ID", help="An id, a unique prefix of one, or @last.")]
Step = Annotated[int | None, typer.Option(min=1, help="The decision that led to this step; else the last one.")]


def feedback(
    ctx: typer.Context,
    trace_id: TraceId,
    reward: Annotated[float, typer.Argument(metavar="REWARD", help="Such as 1, 0.5 or -1 (after --).")],
    step: Step = None,
    note: Annotated[str, typer.Option(help="Why; kept with the reward.")] = "",
    key: Annotated[str | None, typer.Option(help="A second reward under this key changes nothing.")] = None,
    as_json: Json = False,
) -> None:
    """Tell how well a decision turned out; a learner reads it with what could have been chosen."""
    from agentmesh.observation import timeline

    with opened(ctx) as mesh:
        found = timeline.resolve(mesh.db, mesh.tenant, trace_id)
        told = mesh.trace(found).feedback(reward, step=step, key=key, by=getpass.getuser(), note=note)
    if as_json:
        document("feedback", id=found, step=told.ordinal, reward=reward, repeated=told.repeated)
    else:
        say(f"the decision of step {told.ordinal} had this reward already" if told.repeated else
            f"the decision of step {told.ordinal} earned {reward:g}")  # fmt: skip


def diff(
    ctx: typer.Context,
    trace_id: TraceId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The agent file whose reasoner is asked.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="Another one to ask; else what was recorded.")
    ] = None,
    step: Step = None,
    as_json: Json = False,
) -> None:
    """Ask another reasoner what a trace's reasoner was asked. Runs no tool and writes nothing; 1 when they differ."""
    from agentmesh.behavior.combined import Decision, Difference
    from agentmesh.cli.worker import import_from_here
    from agentmesh.observation import timeline

    import_from_here()
    with opened(ctx) as mesh:
        found = timeline.resolve(mesh.db, mesh.tenant, trace_id)
        first, point = _asked(mesh, found, step, file)
        second = Decision(point.action, None) if other is None else _asked(mesh, found, step, other)[0]
    difference = Difference(first, second)
    names = (str(file), "recorded" if other is None else str(other))
    if as_json:
        document("diff", id=found, step=point.ordinal, same=difference.same,
                 decisions=[{"by": name, **_shown(one)} for name, one in zip(names, (first, second), strict=True)])  # fmt: skip
    else:
        say(f"the decision of step {point.ordinal}: {'the same' if difference.same else 'different'}")
        for name, one in zip(names, (first, second), strict=True):
            print(f"{name}\t{safe(as_line(_shown(one)['decision']))}")
    raise typer.Exit(int(not difference.same))


def learn(
    ctx: typer.Context,
    agent: Annotated[str, typer.Argument(help="Its name.")],
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The newest so many decisions.")] = 10_000,
    temperature: Annotated[
        float, typer.Option(min=0.001, help="How much worse a choice may be and still be taken.")
    ] = 0.1,
) -> None:
    """Print the policy that an agent's rewards teach, as JSON; its file names it (reasoner: policy: file)."""
    from agentmesh.behavior.learned import learn as learned
    from agentmesh.observation import decisions

    with opened(ctx) as mesh:
        found = decisions.rewarded(mesh.db, mesh.tenant, agent, limit=limit)
    policy = learned(found, temperature=temperature)
    if not policy["weights"]:
        raise NoDecision("no decision of this agent was rewarded, or none says how likely it was", value=agent)
    document("policy", agent=agent, **policy)


def _asked(mesh: Mesh, trace: Any, step: int | None, file: Path) -> tuple[Decision, Point]:
    """What the reasoner of an agent file decides at this point of the trace."""
    from agentmesh.behavior.agents import load_agent_file
    from agentmesh.behavior.combined import decide
    from agentmesh.observation import decisions

    spec = load_agent_file(file)
    hosted = mesh.registry.register(spec)  # in this process, for this answer
    point = decisions.point(mesh.db, mesh.tenant, trace, step=step, blobs=mesh.blobs, spec=spec)
    node = next((one for one in hosted.plan.nodes if one.id == point.session.node), None)
    return decide(hosted.decides(node), point.session), point


def _shown(one: Decision) -> dict[str, Any]:
    from agentmesh.infrastructure.logging import redact

    return {"decision": redact(one.said()), "notes": [redact(note.body) for note in one.notes]}
