"""`agentmesh audit list | verify | anchor`: who ordered what, and whether that is still what was written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from agentmesh.cli.output import as_line, document, say, table
from agentmesh.cli.session import Json, opened

app = typer.Typer(name="audit", help="Who ordered what, sealed.", no_args_is_help=True)
ABOUT = ("seq", "id", "tenant", "at", "action", "by", "key", "permission", "trace_id")


@app.command("list")
def list_(
    ctx: typer.Context,
    trace: Annotated[UUID | None, typer.Option(help="Of this trace alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    before: Annotated[int, typer.Option(min=1, help="Only rows with a lower number.")] = 2**62,
    as_json: Json = False,
) -> None:
    """Sealed rows, newest first: number, time, what was ordered, by whom, under which key and permission."""
    with opened(ctx) as mesh:
        rows = mesh.audit.rows(limit=limit, before=before, trace_id=trace)
    if as_json:
        document("audit", rows=rows)
        return
    table(
        ["number", "at", "action", "by", "key", "permission", "trace", "about"],
        ([row["seq"], row["at"], row["action"], row.get("by", "-"), row.get("key", "-"), row.get("permission", "-"),
          row.get("trace_id", "-"), as_line({key: one for key, one in row.items() if key not in ABOUT})] for row in rows),
        empty="nothing is sealed yet",
    )  # fmt: skip


@app.command()
def verify(
    ctx: typer.Context,
    anchors: Annotated[
        list[Path] | None, typer.Option(help="A file of anchors, repeatable; else audit.anchors of the settings.")
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="A PEM file: a public key whose anchors are believed, repeatable; else this mesh's own key."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every tenant's chain and hold it against its anchors. Exits 6 at the first number that is not what it was."""
    from agentmesh.communication.keys import read_public
    from agentmesh.communication.statements import read_statement
    from agentmesh.coordination.anchors import KIND
    from agentmesh.errors import AuditBroken, Mistake
    from agentmesh.observation import audit

    with opened(ctx) as mesh:
        files = anchors or [one for one in [mesh.anchors_path] if one is not None and one.exists()]
        try:
            lines = [line for one in files for line in one.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as exc:
            raise Mistake("the anchors cannot be read", value=str(exc), expected="a file that agent workers wrote",
                          next="agentmesh config show") from None  # fmt: skip
        believed = [read_public(one) for one in key or []]
        if lines and not believed:
            believed = [mesh.key.public]
        found = audit.verify(mesh.db, lines, lambda line: read_statement(line, believed, kind=KIND))
    broken = next((one for one in found if one.bad is not None), None)
    if as_json:
        document("audit_verified", whole=broken is None, chains=[asdict(one) for one in found])
    else:
        table(
            ["tenant", "rows", "anchors", "first bad", "why"],
            ([one.tenant or "-", one.rows, one.anchors, one.bad or "-", one.why or "whole"] for one in found),
            empty="nothing is sealed yet",
        )
    if broken is not None:
        raise AuditBroken(f"the audit is not what was written: {broken.why}", value=f"{broken.tenant}:{broken.bad}")
    if not files:
        say("no anchors were given: a chain that was rebuilt as a whole would not be seen")


@app.command()
def anchor(ctx: typer.Context, as_json: Json = False) -> None:
    """Seal what waits, and write the signed heads to audit.anchors now, as agent workers do by themselves."""
    from agentmesh.errors import Mistake
    from agentmesh.state.audit import BATCH

    with opened(ctx) as mesh:
        if mesh.anchors is None:
            raise Mistake("no file is named for the anchors", expected="audit.anchors in the settings",
                          next="agentmesh config show")  # fmt: skip
        while mesh.audit.seal() == BATCH:
            pass
        count = mesh.anchors.write()
        where = mesh.anchors_path
    if as_json:
        document("audit_anchored", heads=count, path=where)
    else:
        say(f"{count} heads stand in {where}")
