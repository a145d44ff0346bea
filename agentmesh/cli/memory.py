"""`agentmesh memory get | search | set | history | revert | embed`: what a context remembers, who wrote it and why; changed
by a person, who is named in the entry."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agentmesh.cli.output import as_line, document, moment, safe, say, table
from agentmesh.cli.session import Json, opened, read_json

if TYPE_CHECKING:
    from agentmesh.state.memory import MemoryEngine, MemoryEntry, MemoryType
    from agentmesh.wiring import Mesh

app = typer.Typer(name="memory", help="What a context remembers, who wrote it and why.", no_args_is_help=True)

Context = Annotated[str, typer.Argument(metavar="CONTEXT", help="The id of the context.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The key; short_term:KEY with --trace.")]
Of = Annotated[str | None, typer.Option("--trace", help="The trace whose short-term entries are meant, too.")]
Reason = Annotated[str | None, typer.Option(help="Why; it stands in the entry's history.")]
Model = Annotated[str | None, typer.Option(help="Of which model, where the context's agents have several.")]
Newest = Annotated[
    int | None, typer.Option(min=0, help="Refuse unless this is its newest version so far (0: there is none).")
]


@app.command("get")
def get(
    ctx: typer.Context, context: Context,
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="One entry; else all of them.")] = None,
    trace: Of = None, as_json: Json = False,
) -> None:  # fmt: skip
    """What is remembered now: the value on stdout, who wrote it on stderr; without a key every entry."""
    with opened(ctx) as mesh:
        engine = _engine(mesh, context, trace)
        if key is None:
            entries = engine.snapshot()
        else:
            one = engine.history(*_named(key), limit=1)[0]
    if key is None:
        if as_json:
            document("memory", context=context, entries=entries)
        else:
            table(["key", "value"], ([name, as_line(value)] for name, value in sorted(entries.items())),
                  empty="nothing is remembered")  # fmt: skip
        return
    if one.deleted:
        from agentmesh.errors import UnknownMemory

        raise UnknownMemory("this entry was taken back", value=key, next=f"agentmesh memory history {context} {key}")
    if as_json:
        document("entry", context=context, **_told(one))
        return
    print(as_line(one.value))
    trust = "trusted" if one.trusted else "not trusted"
    say(f"version {one.version}, written by {one.origin} at {moment(one.at)}, {trust}; {_why(one)}")


@app.command("search")
def search(
    ctx: typer.Context, context: Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words that are looked for; by meaning, a question.")],
    by: Annotated[Literal["words", "meaning"], typer.Option(help="By words, or by what they mean.")] = "words",
    model: Model = None, limit: Annotated[int, typer.Option(min=1, max=1000)] = 10, as_json: Json = False,
) -> None:  # fmt: skip
    """Long-term entries that are about something, best first, with who wrote them and whether a person did."""
    from agentmesh.cli.worker import import_from_here

    import_from_here()  # an embedder may be the user's
    with opened(ctx) as mesh:
        engine = _engine(mesh, context, None)
        found = engine.query(text, by=by, limit=limit, model=model)
        waiting = engine.waiting(model) if by == "meaning" else 0
    if as_json:
        document("found", context=context, by=by, entries=found, waiting=waiting)
        return
    table(
        ["score", "key", "by", "trusted", "value"],
        ([f"{one['rank' if by == 'words' else 'score']:.3f}", one["key"], one["origin"], "yes" if one["trusted"] else "no",
          as_line(one["value"])] for one in found), empty="nothing is like this",
    )  # fmt: skip
    if waiting:
        say(f"not compared, without a vector yet: {waiting}; 'agentmesh memory embed {context}' gives them theirs")


@app.command("embed")
def embed(
    ctx: typer.Context,
    context: Annotated[str | None, typer.Argument(metavar="[CONTEXT]", help="One context; else all of them.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Give current entries the vectors they lack, by the model that is to find them now, and wait for it."""
    from agentmesh.cli.worker import import_from_here
    from agentmesh.state import vectors

    import_from_here()
    with opened(ctx) as mesh:
        models: dict[str, Any] = {}
        for name in [context] if context else mesh.contexts.all():
            models |= mesh.memory(name).owe()
        if context and not models:
            mesh.memory(context).embedder()  # which says what is missing
        done = sum(mesh.indexer(model, spec).catch_up() for model, spec in models.items())
        left = [one for model in models for one in vectors.waiting(mesh.db, mesh.tenant, model, context)]
    if as_json:
        document("embedded", models=sorted(models), entries=done, waiting=len(left))
        return
    say(f"{done} entries were embedded by {', '.join(sorted(models)) or 'nothing'}")
    if left:
        say(f"{len(left)} still have no vector: {left[0]['error'] or 'a worker is at them'}")


@app.command("set")
def set_(
    ctx: typer.Context, context: Context, key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON, @FILE, or @- for stdin.")],
    trace: Of = None, reason: Reason = None, newest: Newest = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Write the next version of an entry, in your name."""
    given = read_json(value, "VALUE")
    with opened(ctx) as mesh:
        engine = _engine(mesh, context, trace)
        name, kind = _named(key)
        version = engine.store(name, given, kind, origin=_me(), trusted=True, reason=reason, newest=newest)
    _done(context, key, version, "written", as_json=as_json)


@app.command("history")
def history(
    ctx: typer.Context, context: Context, key: Key, trace: Of = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20, as_json: Json = False,
) -> None:  # fmt: skip
    """The versions of an entry, newest first: who wrote each, where, and why."""
    with opened(ctx) as mesh:
        entries = _engine(mesh, context, trace).history(*_named(key), limit=limit)
    if as_json:
        document("history", context=context, versions=[_told(one) for one in entries])
        return
    table(
        ["version", "at", "by", "trusted", "why", "value"],
        ([str(one.version), moment(one.at), one.origin, "yes" if one.trusted else "no", safe(_why(one)),
          "(taken back)" if one.deleted else as_line(one.value)] for one in entries), empty="",
    )  # fmt: skip


@app.command("revert")
def revert(
    ctx: typer.Context, context: Context, key: Key,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="As history numbers them.")],
    trace: Of = None, reason: Reason = None, newest: Newest = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Say again what an older version said, as the next version."""
    with opened(ctx) as mesh:
        name, kind = _named(key)
        made = _engine(mesh, context, trace).revert(name, version, kind, by=_me(), reason=reason, newest=newest)
    _done(context, key, made, f"back at version {version}", as_json=as_json)


def _engine(mesh: Mesh, context: str, trace: str | None) -> MemoryEngine:
    from agentmesh.observation import timeline

    found = timeline.resolve(mesh.db, mesh.tenant, trace) if trace else None
    return mesh.memory(context, found)


def _named(key: str) -> tuple[str, MemoryType]:
    """The key and its type: views of memory show `type:key`."""
    kind, _, rest = key.partition(":")
    if kind == "short_term":
        return rest, "short_term"
    return rest if kind == "long_term" else key, "long_term"


def _me() -> str:
    return f"person:{getpass.getuser()}"


def _why(one: MemoryEntry) -> str:
    where = f"at {one.node} of {one.intent} ({one.agent}), trace {one.trace_id}" if one.node else ""
    return one.reason or where or (f"trace {one.trace_id}" if one.trace_id else "no reason given")


def _told(one: MemoryEntry) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def _done(context: str, key: str, version: int, what: str, *, as_json: bool) -> None:
    if as_json:
        document("remembered", context=context, key=key, version=version)
    else:
        say(f"{key} of {context} is {what}, as version {version}")
