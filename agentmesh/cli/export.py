"""`agentmesh export`: committed events told to a file, Elasticsearch or OpenTelemetry, each from where it was last told."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from agentmesh.cli.output import document, say
from agentmesh.cli.session import Json, loud_log, opened, settings_of

if TYPE_CHECKING:
    from agentmesh.coordination.exporter import Exporter
    from agentmesh.wiring import Mesh

PAUSE_S, PATIENCE_S = 1.0, 30.0


def export(
    ctx: typer.Context,
    to: Annotated[str, typer.Argument(metavar="BACKEND", help="jsonl:PATH, elastic:URL/INDEX or otlp:URL.")],
    name: Annotated[str | None, typer.Option(help="Under which its place is kept; else the back end itself.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SECRET", help="An HTTP header whose value is a secret by name.")
    ] = None,
    sample: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of traces whose verbose events are told.")
    ] = 1.0,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="EVENT", help="Events that are not told; repeatable.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when everything is told.")] = False,
    as_json: Json = False,
) -> None:
    """Tell every committed event, of all tenants, in order, at least once and always under the same id; until stopped.

    With --once exit code 5 says that the back end did not take all.
    """
    from agentmesh.coordination.exporter import Exporter, back_end
    from agentmesh.errors import Mistake
    from agentmesh.infrastructure.secrets import secret

    pairs = [one.partition("=") for one in header or []]
    if any(not key or not named for key, _, named in pairs):
        raise Mistake("a header does not say which secret it is", value=header, expected="NAME=SECRET")
    with opened(ctx) as mesh:
        if not once:
            loud_log(settings_of(ctx))
        headers = {key: secret(named) for key, _, named in pairs}
        write = back_end(to, spans=lambda tenant, trace: _spans(mesh, tenant, trace), headers=headers)
        exporter = Exporter(mesh.db, name or to, write, sample=sample, drop=drop or ())
        told = _tell(exporter, once=once)
    if as_json:
        document("exported", events=told)
    else:
        say(f"{told} events are told")


def _tell(exporter: Exporter, *, once: bool) -> int:
    """How many events were told before there were no more; without `once` it goes on until stopped."""
    from agentmesh.errors import ExportRefused

    told, wait, ended = 0, PAUSE_S, threading.Event()
    while True:
        try:
            count = exporter.look()
        except ExportRefused as exc:
            if once:
                raise
            say(f"{exc}; again in {wait:g} s")
            ended.wait(wait)
            wait = min(2 * wait, PATIENCE_S)
            continue
        told, wait = told + count, PAUSE_S
        if count == 0 and once:
            return told
        if count == 0:
            ended.wait(PAUSE_S)


def _spans(mesh: Mesh, tenant: str, trace_id: UUID) -> dict[str, Any]:
    from agentmesh import __version__
    from agentmesh.observation import spans, timeline

    found = timeline.trace(mesh.db, tenant, trace_id)
    about = {"tenant_id": tenant, "chain": timeline.chain_of(mesh.db, tenant, found.trace["plan_hash"])}
    made = spans.spans(found.trace | about, found.steps, found.calls, found.attempts)
    return spans.request(made, mesh=mesh.settings.mesh.name, version=__version__)
