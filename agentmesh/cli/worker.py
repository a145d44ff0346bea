"""`agentmesh worker`: one Celery worker process of this mesh, for agents, tools or both."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agentmesh.cli.session import Json, loud_log, settings_of
from agentmesh.errors import DatabaseNotMigrated, DatabaseUnreachable

if TYPE_CHECKING:
    from agentmesh.wiring import Mesh

Kind = Literal["agents", "tools", "all"]
Pool = Literal["threads", "prefork", "solo"]
PATIENCE_S = 60.0


def worker(
    ctx: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="What this worker runs.")] = "all",
    concurrency: Annotated[int | None, typer.Option(min=1, max=10_000, help="At once; else as settings say.")] = None,
    pool: Annotated[Pool | None, typer.Option(help="Else as settings say.")] = None,
    name: Annotated[str | None, typer.Option(help="Shown by doctor, trace show and Flower.")] = None,
    parent: Annotated[int | None, typer.Option(hidden=True, help="End when this process ends.")] = None,
    as_json: Json = False,
) -> None:
    """Be a worker until told to stop: SIGTERM or Ctrl-C lets running work end."""
    from agentmesh.cli.children import watch_parent
    from agentmesh.coordination.alone import VARIABLE
    from agentmesh.wiring import build

    settings = settings_of(ctx, {"log.format": "json"} if as_json else None)
    loud_log(settings)
    if parent is not None and VARIABLE not in os.environ:
        watch_parent(parent)
    import_from_here()
    mesh = build(settings)
    try:
        if parent is not None:
            _wait_for_database(mesh)
        code = mesh.work(kind, name=name, pool=pool, concurrency=concurrency)
    finally:
        mesh.close()
    raise typer.Exit(code)


def _wait_for_database(mesh: Mesh) -> None:
    """The parent is starting it: importing takes as long, and both go on at once."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return mesh.require_migrated()
        except (DatabaseUnreachable, DatabaseNotMigrated):
            if time.monotonic() > end:
                raise
        threading.Event().wait(0.1)


def import_from_here() -> None:
    """The user's modules lie in the current directory, as for `celery` and `python -m`."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
