"""`agentmesh db upgrade | status | check`: the database's schema."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmesh.cli.output import document, pairs, say
from agentmesh.cli.session import Json, opened, plain

app = typer.Typer(name="db", help="The database's schema.", no_args_is_help=True)


@app.command()
def upgrade(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the database to this release's schema. A fresh one gets it at once; workers may run meanwhile."""
    from agentmesh.infrastructure import migrate

    with opened(ctx, migrated=False) as mesh:
        seen = migrate.status(mesh.database_url)
        if seen["missing"]:
            say(f"from {seen['at'] or 'nothing'}: {', '.join(seen['missing'])}")
            say("each table that a script alters is locked until the script ends")
        applied = [] if dry_run else migrate.upgrade(mesh.database_url)
    if as_json:
        document("db", at=seen["at"] if dry_run else seen["newest"], newest=seen["newest"], applied=applied)
    else:
        say(
            f"would apply: {', '.join(seen['missing']) or 'nothing'}"
            if dry_run
            else f"at {seen['newest']}, applied: {', '.join(applied) or 'nothing'}"
        )


@app.command()
def status(ctx: typer.Context, as_json: Json = False) -> None:
    """The revision the database is at. Exits 1 when one is missing."""
    from agentmesh.infrastructure import migrate

    with opened(ctx, migrated=False) as mesh:
        seen = migrate.status(mesh.database_url)
    if as_json:
        document("db", **seen)
    else:
        pairs(
            {
                "at": seen["at"] or "not migrated",
                "newest": seen["newest"],
                "missing": ", ".join(seen["missing"]) or "nothing",
            }
        )
    raise typer.Exit(1 if seen["missing"] else 0)


@app.command()
def check(ctx: typer.Context, as_json: Json = False) -> None:
    """Compare the schema with the declared one, line by line. Exits 6 when they differ."""
    import psycopg

    from agentmesh.errors import SchemaDrift
    from agentmesh.state import catalog

    with opened(ctx) as mesh, psycopg.connect(plain(mesh)) as connection:
        found = catalog.drift(connection)
    if as_json:
        document("drift", same=not found, differences=found)
    else:
        for line in found:
            print(line)
    if found:
        raise SchemaDrift("the schema is not the declared one", value=f"{len(found)} lines differ",
                          next="agentmesh db status")  # fmt: skip
    say("the schema is the declared one")
