"""`agentmesh chains lint | show | diff | migrate`, `agentmesh schema`: what is wrong with a chain, how it looks, what
changed, and who follows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agentmesh.cli.output import as_line, document, safe, say
from agentmesh.cli.session import Json, opened, settings_of

if TYPE_CHECKING:
    from agentmesh.execution.chain import Problem
    from agentmesh.execution.plan import BehaviorPlan
    from agentmesh.execution.schemas import Signature

app = typer.Typer(name="chains", help="Behaviour chains: lint, show, diff, migrate.", no_args_is_help=True)
Chain = Annotated[str, typer.Argument(metavar="CHAIN", help="A file, the name of a chain here, or a plan's hash.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Chain files.")]


@app.command()
def lint(ctx: typer.Context, files: Files, as_json: Json = False) -> None:
    """Every mistake, with its line and column; exit code 1 where there is one. Chains may hold one another.

    What the tools of the settings take and return is checked too, where their code can be loaded.
    """
    from agentmesh.errors import BadChain
    from agentmesh.execution import chain
    from agentmesh.infrastructure import yamlfiles

    texts, refused, known = {}, {}, {}
    with suppress(BadChain):  # a mistake in one that is not asked about
        known = chain.load(settings_of(ctx).agents.chains)
    for file in files:
        try:
            texts[file] = text = yamlfiles.read(file, BadChain)
        except BadChain as exc:
            refused[file] = chain.Problem(str(file), exc.what, exc.value, exc.expected)
        else:
            if isinstance(text.data, dict) and isinstance(text.data.get("chain"), str):
                known[text.data["chain"]] = text
    whole = chain.Known(chains=known, signature=_signature(ctx))
    found = [
        (file, None, [refused[file]]) if file in refused else (file, *chain.lint(texts[file], whole)) for file in files
    ]  # fmt: skip
    if as_json:
        document("chains.lint", files=[
            {"file": str(file), "ok": not problems, "hash": plan.hash if plan else None,
             "problems": [{"where": one.where, "what": one.what, "value": one.value, "expected": one.expected}
                          for one in problems]}
            for file, plan, problems in found
        ])  # fmt: skip
    else:
        for file, plan, problems in found:
            for one in problems:
                _tell(one)
            if plan is not None and not problems:
                say(f"{file}: chain {plan.chain}, {len(plan.nodes)} nodes, {plan.hash[:12]}")
    if any(problems for _, _, problems in found):
        raise typer.Exit(1)


def _tell(one: Problem) -> None:
    say(f"{one.where}: {one.what}" + ("" if one.value is None else f" (got {one.value})"))
    if one.expected:
        say(f"    expected  {one.expected}")


def _signature(ctx: typer.Context) -> Callable[[str], Signature | None]:
    """What the tools of the settings take and return; where their code cannot be loaded, they are unknown."""
    from agentmesh.cli.worker import import_from_here
    from agentmesh.wiring import build

    import_from_here()
    mesh = build(settings_of(ctx))
    try:
        mesh.load_code()
    except Exception as exc:  # noqa: BLE001 - a chain can be read without the code of its tools, whatever is wrong there
        say(f"what tools take and return is not checked, for their code cannot be loaded: {type(exc).__name__}: {exc}")
    return mesh.tools.signature


@app.command()
def show(
    ctx: typer.Context,
    chain: Chain,
    format: Annotated[Literal["text", "mermaid", "svg"], typer.Option(help="text, mermaid or svg.")] = "text",  # noqa: A002
    as_json: Json = False,
) -> None:
    """Draw a chain, with every way a trace can take; with --json, its plan."""
    from agentmesh.observation import drawing

    plan = plan_of(ctx, chain)
    if as_json:
        document("chain", hash=plan.hash, plan=plan.body())
        return
    picture = drawing.picture(plan)
    if format == "svg":
        from agentmesh.observation.svg import svg

        print(svg(picture), end="")
    elif format == "mermaid":
        print(drawing.mermaid(picture), end="")
    else:
        knows = (sys.stdout.encoding or "ascii").lower().startswith("utf")
        drawn = drawing.text(picture)
        print(drawn if knows else drawn.translate(drawing.PLAIN), end="")


@app.command()
def diff(ctx: typer.Context, old: Chain, new: Chain, as_json: Json = False) -> None:
    """What changed from one chain to another, node by node; exit code 1 where something did."""
    from agentmesh.observation.differences import differences

    a, b = plan_of(ctx, old), plan_of(ctx, new)
    found = differences(a, b)
    if as_json:
        document("chains.diff", old=a.hash, new=b.hash, changes=[
            {"kind": one.kind, "where": one.where, "old": one.old, "new": one.new} for one in found
        ])  # fmt: skip
    else:
        for one in found:
            print(_line(one.kind, safe(one.where), one.old, one.new))
        if not found:
            say(f"the same plan, {a.hash[:12]}")
    if found:
        raise typer.Exit(1)


@app.command()
def migrate(
    ctx: typer.Context,
    traces: Annotated[list[str], typer.Argument(metavar="TRACE...", help="Ids, prefixes, or @last.")],
    to: Annotated[
        str, typer.Option("--to", metavar="CHAIN", help="A file, the name of a chain here, or a plan's hash.")
    ],
    renamed: Annotated[
        list[str] | None, typer.Option("--map", metavar="OLD=NEW", help="What a node is called there.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it only what would be done is shown.")] = False,
    as_json: Json = False,
) -> None:
    """Move waiting traces to another plan; refused where an open step has no place in it."""
    import getpass

    from agentmesh.errors import Mistake
    from agentmesh.observation import timeline

    if odd := [one for one in renamed or [] if one.count("=") != 1]:
        raise Mistake("--map does not say what is called what", value=odd[0], expected="OLD=NEW")
    plan = plan_of(ctx, to)
    with opened(ctx) as mesh:
        found = [timeline.resolve(mesh.db, mesh.tenant, one) for one in traces]
        moves = [
            mesh.migrations.plan(one, plan, renamed=dict(two.split("=") for two in renamed or [])) for one in found
        ]
        for move in moves if yes else []:
            mesh.migrations.migrate(move, plan, by=getpass.getuser())
    if as_json:
        document("chains.migrate", done=yes, moves=[
            {"id": one.trace_id, "was": one.was, "to": one.to, "nodes": dict(one.nodes)} for one in moves
        ])  # fmt: skip
        return
    for one in moves:
        nodes = ", ".join(f"{old} -> {new}" for old, new in one.nodes.items())
        say(f"{one.trace_id}  {one.was[:12]} -> {one.to[:12]}  {nodes}")
    if not yes:
        say("nothing has changed; --yes does it")


def schema(
    of: Annotated[Literal["chain"], typer.Argument(metavar="chain", help="What files it describes.")],
) -> None:
    """The JSON Schema of chain files, for editors."""
    import json

    from agentmesh.execution.chainschema import chain_schema

    del of  # there is one kind so far
    print(json.dumps(chain_schema(), indent=2, ensure_ascii=False))


def _line(kind: str, where: str, old: object, new: object) -> str:
    match kind:
        case "added":
            return f"+ {where}  {safe(as_line(new))}"
        case "removed":
            return f"- {where}  {safe(as_line(old))}"
        case _:
            return f"~ {where}  {safe(as_line(old))} -> {safe(as_line(new))}"


def plan_of(ctx: typer.Context, chain: str) -> BehaviorPlan:
    """The plan of a file, of a chain that the settings name, or the one that is pinned under this hash.

    Raises BadChain for a file that is none, UnknownPlan for a name and a hash that nobody knows.
    """
    from agentmesh.errors import BadChain
    from agentmesh.execution.chain import Known, load, read
    from agentmesh.infrastructure import yamlfiles

    file = Path(chain)
    known = load(settings_of(ctx).agents.chains)
    if file.suffix in {".yaml", ".yml"}:
        return read(yamlfiles.read(file, BadChain), Known(chains=known))
    if chain in known:
        return read(known[chain], Known(chains=known))
    return _pinned(ctx, chain, sorted(known))


def _pinned(ctx: typer.Context, chain: str, known: list[str]) -> BehaviorPlan:
    import json

    from agentmesh.errors import UnknownPlan
    from agentmesh.execution.plan import BehaviorPlan
    from agentmesh.observation import timeline

    if len(chain) < 8 or set(chain) - set("0123456789abcdef"):
        raise UnknownPlan("no chain has this name here", value=chain,
                          expected=f"a file, a hash, or one of {', '.join(known) or 'none'}")  # fmt: skip
    with opened(ctx) as mesh:
        return BehaviorPlan.model_validate_json(json.dumps(timeline.plan(mesh.db, mesh.tenant, chain)))
