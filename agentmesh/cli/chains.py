"""`agentmesh chains lint`: what is wrong with a chain, all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentmesh.cli.output import document, say
from agentmesh.cli.session import Json

app = typer.Typer(name="chains", help="Behaviour chains: lint.", no_args_is_help=True)
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Chain files.")]


@app.command()
def lint(files: Files, as_json: Json = False) -> None:
    """Every mistake, with its line and column; exit code 1 where there is one."""
    from agentmesh.errors import BadChain
    from agentmesh.execution import chain
    from agentmesh.infrastructure import yamlfiles

    found = []
    for file in files:
        try:
            plan, problems = chain.lint(yamlfiles.read(file, BadChain))
        except BadChain as exc:
            plan, problems = None, [chain.Problem(str(file), exc.what, exc.value, exc.expected)]
        found.append((file, plan, problems))
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
                value = "" if one.value is None else f" (got {one.value})"
                say(f"{one.where}: {one.what}{value}" + (f"\n    expected  {one.expected}" if one.expected else ""))
            if plan is not None and not problems:
                say(f"{file}: chain {plan.chain}, {len(plan.nodes)} nodes, {plan.hash[:12]}")
    if any(problems for _, _, problems in found):
        raise typer.Exit(1)
