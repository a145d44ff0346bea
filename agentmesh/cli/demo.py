"""`agentmesh demo`: real complaints, worked by real agents on a real PostgreSQL; `demo crash` kills workers meanwhile.

One foreground process owns the database it started and four workers, and ends them all. What it says at the end is
read from the database.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from agentmesh.cli.children import Children
from agentmesh.cli.output import console, document, is_terminal, say, span
from agentmesh.cli.session import Given, Json, plain, quiet_log, settings_of

if TYPE_CHECKING:
    from agentmesh.demo.data import Message
    from agentmesh.demo.summary import Summary
    from agentmesh.infrastructure.settings import Settings
    from agentmesh.wiring import Mesh

WORKERS = (
    ("agents", "demo-agents-1"),
    ("tools", "demo-tools-1"),
    ("agents", "demo-agents-2"),
    ("tools", "demo-tools-2"),
)
READY_S = 60.0
LOOK_S = 0.1
MODEL_S = 120.0  # some load a model first
TELL_S = 5.0  # off a terminal: a line this often
GUESS_FROM = 0.05  # the part that must have ended before a time left is worth saying


@dataclass(slots=True)
class Stage:
    """What a film plays on: a mesh with its tables, its workers, the messages, and when Enter was pressed."""

    mesh: Mesh
    children: Children
    messages: list[Message]
    run: str
    since: float

    def seconds(self) -> float:
        return time.monotonic() - self.since


def demo(
    ctx: typer.Context,
    film: Annotated[Literal["crash"] | None, typer.Argument(help="crash: kill workers with SIGKILL meanwhile.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many messages; else 200 (20 with --llm), or all of --input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--input", help="A CSV of your own with a column 'text'.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where the data lies; else mesh.home of the settings.")] = None,
    llm: Annotated[
        str | None, typer.Option(metavar="URL", help="Decide by a model behind this OpenAI-compatible endpoint.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name there; else llm.model of the settings.")] = None,
    as_json: Json = False,
) -> None:
    """Two agents work 200 messages that customers wrote to a bank; ends with figures and a report."""
    since = time.monotonic() - _age_s()
    from agentmesh.cli.crash import Crash, print_ledger
    from agentmesh.demo.data import load_test_messages, read_input

    messages = read_input(file, count) if file else load_test_messages(count or (20 if llm else 200))
    given: Given = ctx.obj or Given()
    with staged(ctx, given, messages, since, _flags(home, llm, model)) as stage:
        first, took = _first(stage, quiet=as_json)
        handles = stage.mesh.router.dispatch_many(_intents(stage, messages[1:]))
        ids: list[UUID] = [first, *(one.id for one in handles)]
        crash = Crash(stage.children, len(ids)) if film == "crash" else None
        watch(stage, ids, crash)
        summary = _summary(stage, ids)
        report = _report(stage, summary, own_data=file is not None)
        ledger = crash.ledger(stage, ids) if crash else None
        if as_json:
            _as_document(summary, ids, report, took, ledger)
        else:
            _print(summary, report, first, took)
            if ledger:
                print_ledger(ledger)
    raise typer.Exit(ledger.code if ledger else int(summary.timing.failed > 0))


@contextmanager
def staged(
    ctx: typer.Context, given: Given, messages: list[Message], since: float, flags: Mapping[str, str | None]
) -> Iterator[Stage]:
    """Database, schema, tables and workers are there; afterwards everything this started is gone but the data."""
    from agentmesh.infrastructure.settings import variable
    from agentmesh.records import new_id

    quiet_log()
    settings = settings_of(ctx, flags)
    if flags["llm.base_url"]:
        _try_model(settings)
    told = {variable(name): value for name, value in flags.items() if value is not None}
    environ = os.environ | told | {
        "AGENTMESH_HOME": str(settings.mesh.home.absolute()), "AGENTMESH_LOG_FORMAT": "text",
    }  # fmt: skip
    options = ["--config", str(given.config.absolute())] if given.config else []
    with Children(settings.mesh.home.absolute() / "logs", environ, options) as children:
        for kind, name in WORKERS[:2]:  # they import while the database starts; the others come when these work
            children.start(kind, name)
        with _database(settings) as mesh:
            stage = Stage(mesh, children, messages, f"run-{new_id().hex[-8:]}", since)
            wait_for_workers(stage, [name for _, name in WORKERS[:2]])
            yield stage
            children.stop()  # before their database


def _flags(home: Path | None, llm: str | None, model: str | None) -> dict[str, str | None]:
    """The settings the demo runs under, here and in its workers; None: as configured."""
    from agentmesh.demo.agents import HOME, TOOLS, WITH_MODEL
    from agentmesh.errors import Mistake

    if model and not llm:
        raise Mistake("--model needs the endpoint it is behind", value=model, expected="--llm URL --model M",
                      next="agentmesh demo --help")  # fmt: skip
    return {
        "mesh.home": str(home.absolute()) if home else None, "tools.imports": TOOLS, "agents.policies": "",
        "agents.paths": ",".join(map(str, WITH_MODEL)) if llm else str(HOME), "llm.base_url": llm, "llm.model": model,
    }  # fmt: skip


def _try_model(settings: Settings) -> None:
    """Ask the model one word, so that what is wrong with it is said now. Raises what asking raises."""
    from agentmesh.behavior.declared import LlmSpec, Models
    from agentmesh.behavior.llm import open_endpoint
    from agentmesh.errors import Mistake

    llm = settings.llm
    if not llm.base_url or not llm.model:
        raise Mistake("--llm needs the name of a model", expected="--llm URL --model M", next="agentmesh demo --help")
    say(f"asking {llm.model} at {llm.base_url} …")
    key = Models(llm.base_url, llm.model, llm.key).key_for(LlmSpec(prompt="x"))
    endpoint = open_endpoint(llm.base_url, key)
    from agentmesh.infrastructure.models import Bounds

    question = {"model": llm.model, "max_tokens": 16, "messages": [{"role": "user", "content": "Say yes."}]}
    reply = endpoint.ask(question, Bounds(MODEL_S, 10_000, 1 << 22))
    say(f"it answered after {reply.seconds:.1f} s")


@contextmanager
def _database(settings: Settings) -> Iterator[Mesh]:
    """It runs, is migrated, and the past cases are in it."""
    import psycopg

    from agentmesh.demo import tables
    from agentmesh.infrastructure import migrate
    from agentmesh.wiring import build, embedded_started

    say("starting a PostgreSQL of its own …" if settings.database.url is None else "using the configured database …")
    mesh, started = build(settings), False
    try:
        started = embedded_started(mesh)
        migrate.upgrade(mesh.database_url)
        say("loading past cases …")
        with psycopg.connect(plain(mesh)) as connection:
            tables.prepare(connection)
        yield mesh
    finally:
        mesh.close()
        if started:
            mesh.embedded.stop()


def wait_for_workers(stage: Stage, names: Sequence[str]) -> None:
    """Workers of these names beat. Raises WorkerEnded when one ended instead."""
    from agentmesh.errors import WorkerEnded
    from agentmesh.observation import health

    end = time.monotonic() + READY_S
    while not set(names) <= health.alive(stage.mesh.db):
        stage.children.check()
        if time.monotonic() > end:
            raise WorkerEnded("the workers did not come up in time", value=", ".join(names),
                              expected=f"a beat within {READY_S:g} s")  # fmt: skip
        threading.Event().wait(LOOK_S / 2)


def _intents(stage: Stage, messages: Sequence[Message]) -> list[dict[str, Any]]:
    from agentmesh.demo.data import intents

    return intents(messages, run=stage.run)


def _first(stage: Stage, *, quiet: bool) -> tuple[UUID, float]:
    """The first message's trace, drawn while it runs, and the seconds from Enter to its end."""
    from agentmesh.cli.draw import follow

    intent = _intents(stage, stage.messages[:1])[0]
    say(f"the first message: {intent['payload']['text']!r}")
    trace = stage.mesh.router.dispatch(**intent)
    follow(stage.mesh.db, stage.mesh.tenant, trace.id, children=True, timeout=READY_S, quiet=quiet)
    took = stage.seconds()
    say(f"first trace finished {took:.1f} s after the start")
    for kind, name in WORKERS[2:]:
        stage.children.start(kind, name)
    return trace.id, took


def watch(stage: Stage, ids: Sequence[UUID], crash: Any = None) -> None:
    """Everything has ended; until then progress is shown, and `crash` may strike."""
    from agentmesh.observation import runs

    begun, wait = time.monotonic(), threading.Event().wait
    with _Bar(len(ids)) as bar:
        while True:
            seen = runs.progress(stage.mesh.db, stage.mesh.tenant, ids)
            bar.show(seen.ended, time.monotonic() - begun)
            if crash is not None:
                crash.strike(stage, seen.ended)
            stage.children.check()
            if seen.ended == len(ids) and seen.open == 0:
                return
            wait(LOOK_S)


class _Bar:
    """done/total, rate and time left: a bar on a terminal, elsewhere a line every few seconds.

    Rate and time left count only what ended since the first `show`.
    """

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._total, self._told = total, 0.0
        self._before: int | None = None
        columns = (
            TextColumn("working messages"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console(err=True)) if is_terminal() else None
        self._task = self._bar.add_task("", total=total, pace="") if self._bar else None

    def __enter__(self) -> _Bar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, seconds: float) -> None:
        self._before = done if self._before is None else self._before
        pace = _pace(done - self._before, self._total - self._before, seconds)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, pace=pace)
        elif seconds - self._told >= TELL_S:
            self._told = seconds
            say(f"{done} of {self._total} messages{pace and ', '}{pace}")


def _pace(ended: int, of: int, seconds: float) -> str:
    """ "4.0/s, about 45.0 s left"; less of it while too little has ended to tell."""
    if ended == 0 or seconds <= 0.5:
        return ""
    rate = ended / seconds
    left = f", about {span((of - ended) / rate)} left" if GUESS_FROM * of <= ended < of else ""
    return f"{rate:.1f}/s{left}"


def _summary(stage: Stage, ids: Sequence[UUID]) -> Summary:
    import psycopg

    from agentmesh.demo import tables
    from agentmesh.demo.data import labels
    from agentmesh.demo.summary import Timing, summarise
    from agentmesh.observation import runs

    db, tenant = stage.mesh.db, stage.mesh.tenant
    seen = runs.progress(db, tenant, ids)
    durations, whole = runs.durations(db, tenant, ids)
    timing = Timing(len(ids), seen.done, seen.failed, whole, durations, runs.survived(db, tenant, ids))
    with psycopg.connect(plain(stage.mesh)) as connection:
        return summarise(tables.filed(connection, stage.run), labels(stage.messages), timing)


def _report(stage: Stage, summary: Summary, *, own_data: bool) -> Path:
    from agentmesh.demo.report import render_html

    folder = stage.mesh.settings.mesh.home.absolute() / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage.run}.html"
    path.write_text(render_html(summary, own_data=own_data), encoding="utf-8")
    return path


def _print(summary: Summary, report: Path, first: UUID, took: float) -> None:
    from agentmesh.demo.summary import print_summary

    print_summary(summary, console())
    if is_terminal():
        print()
    print(f"first trace after\t{took:.1f} s" if not is_terminal() else f"first trace after {took:.1f} s")
    print(f"report\t{report}" if not is_terminal() else f"report  {report}")
    say(f"next    agentmesh dev, and in another terminal: agentmesh trace show {first}")


def _as_document(summary: Summary, ids: Sequence[UUID], report: Path, took: float, ledger: Any) -> None:
    from agentmesh.demo.summary import figures

    timing = summary.timing
    document(
        "demo", intents=timing.intents, done=timing.done, failed=timing.failed, seconds=timing.seconds,
        survived=timing.survived, filed=len(summary.cases), doubles=summary.doubles, agreement=summary.agreement,
        first_trace_s=round(took, 2), first_trace=ids[0], report=report, figures=dict(figures(summary)),
        crash=ledger.as_json() if ledger else None,
    )  # fmt: skip


def _age_s() -> float:
    """Seconds since this process began, interpreter and imports included; 0 where the system does not tell."""
    from agentmesh.coordination.process import started

    ticks = started(os.getpid())
    if not ticks or not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
