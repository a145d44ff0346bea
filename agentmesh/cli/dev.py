"""`agentmesh dev`: everything on this machine in one terminal: the embedded database and one worker for all.

Ctrl-C drains the worker and stops the server that this process started; the data stays, unless told otherwise. After a
SIGKILL of everything the next start recovers.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from agentmesh.cli.output import document, say
from agentmesh.cli.session import Json, loud_log, settings_of


def dev(
    ctx: typer.Context,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Delete the data at the end.")] = False,
    home: Annotated[Path | None, typer.Option(help="Where the data lies; else mesh.home of the settings.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, max=10_000, help="At once; else as settings say.")] = None,
    as_json: Json = False,
) -> None:
    """Run agents and tools here: database, doorbells and one worker, until Ctrl-C."""
    from agentmesh.cli.worker import import_from_here
    from agentmesh.coordination.alone import VARIABLE
    from agentmesh.errors import Unsafe
    from agentmesh.infrastructure import migrate
    from agentmesh.wiring import build, embedded_started

    settings = settings_of(ctx, {"mesh.home": home})
    if ephemeral and settings.database.url is not None:
        raise Unsafe("--ephemeral would delete a database that is not ours", expected="the embedded database",
                     next="agentmesh dev")  # fmt: skip
    loud_log(settings)
    import_from_here()
    mesh = build(settings)
    if VARIABLE in os.environ:
        mesh.work("all", name="dev")
    started = embedded_started(mesh)
    try:
        if ephemeral and not started:
            raise Unsafe("--ephemeral would delete a database that somebody else runs", value=str(mesh.embedded.home),
                         expected="a home of its own", next="agentmesh dev --ephemeral --home DIR")  # fmt: skip
        migrate.upgrade(mesh.database_url)
        agents, tools = [one.spec.agent for one in mesh.registry.all()], [one.name for one in mesh.tools.list()]
        where = str(mesh.embedded.home) if settings.database.url is None else "the configured database"
        if as_json:
            document("dev", data=where, agents=agents, tools=tools)
        else:
            _greet(where, agents, tools, settings.agents.paths)
        mesh.work("all", name="dev", pool="threads", concurrency=concurrency)
    finally:
        mesh.close()
        if started:
            mesh.embedded.stop()
            if ephemeral:
                shutil.rmtree(mesh.embedded.home, ignore_errors=True)
            say(
                "stopped; the data is deleted"
                if ephemeral
                else "stopped; the data stays, the next start goes on with it"
            )


def _greet(where: str, agents: list[str], tools: list[str], paths: tuple[str, ...]) -> None:
    say(f"data     {where}")
    no_agents = f"none: put a file into {paths[0]}" if paths else "none: name files in [agents] paths"
    say(f"agents   {', '.join(agents) or no_agents}")
    say(f"tools    {', '.join(tools) or 'none: name your modules in [tools] imports'}")
    say(
        f"next     agentmesh submit {agents[0] if agents else 'AGENT'} INTENT --wait · agentmesh trace list · agentmesh doctor"
    )
    say("Ctrl-C ends it")
