"""`agentmesh`: every verb, the options before it, and what happens to an error.

Exit codes: 0 as asked, 1 it failed or differs, 2 wrong usage or configuration, 3 not found, 4 refused, 5 a service is
unreachable, 6 integrity, 7 waited too long, 130 interrupted. With --json an error is one JSON document on stderr.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer._click.exceptions import NoArgsIsHelpError  # typer names it nowhere else

from agentmesh import __version__
from agentmesh.cli import (
    agents,
    audit,
    call,
    chains,
    config,
    db,
    decisions,
    demo,
    dev,
    dlq,
    doctor,
    export,
    flower,
    gateway,
    keys,
    memory,
    people,
    prune,
    schedule,
    steer,
    submit,
    tools,
    trace,
    webhooks,
    worker,
)
from agentmesh.cli.output import report
from agentmesh.cli.session import Given

app = typer.Typer(
    name="agentmesh", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its help alone would take 0.25 s to import
    help="Agents that do real work on Celery and Postgres.",
    epilog="Exit codes: 0 as asked · 1 failed or differs · 2 usage · 3 not found · 4 refused · 5 unreachable · "
    "6 integrity · 7 waited too long · 130 interrupted",
)  # fmt: skip

for verb in (
    dev.dev,
    demo.demo,
    worker.worker,
    submit.submit,
    doctor.doctor,
    flower.flower,
    gateway.gateway,
    export.export,
    prune.prune,
    steer.pause,
    steer.resume,
    steer.cancel,
    steer.retry,
    steer.rewind,
    steer.fork,
    call.resolve,
    people.signal,
    decisions.feedback,
    people.approvals,
    people.approve,
    people.reject,
    chains.schema,
):
    app.command()(verb)
for group in (
    trace.app,
    dlq.app,
    agents.app,
    audit.app,
    schedule.app,
    tools.app,
    call.app,
    webhooks.app,
    chains.app,
    keys.app,
    memory.app,
    db.app,
    config.app,
):
    app.add_typer(group)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="Settings file; else agentmesh.toml or config/agentmesh.toml.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Agents that do real work on Celery and Postgres."""
    del version  # its callback has done it
    ctx.obj = Given(config, debug)


def main(args: list[str] | None = None) -> None:
    """Run one verb, and exit with its code."""
    given = sys.argv[1:] if args is None else args
    code = 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only is no error
    try:
        returned = app(args=given, prog_name="agentmesh", standalone_mode=False)
        code = returned if isinstance(returned, int) else 0
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except NoArgsIsHelpError as exc:
        print(exc.format_message(), file=sys.stderr)
        code = 2
    except Exception as exc:  # noqa: BLE001 - the last door: everything becomes one shape and a code
        code = report(exc, as_json="--json" in given, debug="--debug" in given)
    sys.exit(code)
