"""`agentmesh prune`: what ended long ago is archived and taken out."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.cli.output import confirmed, document, moment, say, table
from agentmesh.cli.session import Json, opened

if TYPE_CHECKING:
    from agentmesh.coordination.pruner import Report


def prune(
    ctx: typer.Context,
    before: Annotated[str, typer.Option(metavar="AGE", help="What ended longer ago than this: 90d, 12h.")],
    archive: Annotated[Path | None, typer.Option(metavar="DIR", help="Write all of it there first.")] = None,
    no_archive: Annotated[bool, typer.Option("--no-archive", help="Keep no copy.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Whose; else mesh.tenant of the settings.")] = None,
    letters: Annotated[str, typer.Option(metavar="AGE", help="Dead letters that were settled longer ago.")] = "365d",
    exact: Annotated[
        bool, typer.Option("--exact", help="To the second, not by whole weeks; costs more deleting.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=5000, help="Traces in one transaction and one file.")] = 500,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Take out traces that ended long ago, whole, with all that hangs on them; archived first. May be stopped and run again."""
    from agentmesh.coordination.archive import Archive
    from agentmesh.coordination.pruner import Pruner, Wish
    from agentmesh.errors import Mistake

    if not dry_run and (archive is None) != no_archive:
        raise Mistake("it is not said whether a copy is kept", expected="either --archive DIR or --no-archive",
                      next="agentmesh prune --help")  # fmt: skip
    wish = Wish(_age(before, "--before"), _age(letters, "--letters"), exact, batch)
    with opened(ctx, {"mesh.tenant": tenant}) as mesh:
        kept = Archive(archive, tenant=mesh.tenant) if archive is not None else None
        pruner = Pruner(mesh.db, tenant=mesh.tenant, wish=wish, archive=kept, by=f"person:{getpass.getuser()}")
        try:
            if not (yes or dry_run):
                confirmed(f"Take out everything of tenant {mesh.tenant} that ended more than {before} ago?")
            done = pruner.survey() if dry_run else pruner.run(lambda so_far: say(f"{so_far.traces} traces are out"))
        finally:
            pruner.close()
    _show(done, dry_run=dry_run, as_json=as_json)


def _age(text: str, flag: str) -> float:
    """Seconds. Raises Mistake."""
    from pydantic import TypeAdapter, ValidationError

    from agentmesh.errors import Mistake
    from agentmesh.infrastructure.settings import Seconds

    try:
        return float(TypeAdapter(Seconds).validate_python(text))
    except ValidationError:
        raise Mistake(f"{flag} is no age", value=text, expected="such as 90d, 12h or 30min",
                      next="agentmesh prune --help") from None  # fmt: skip


def _show(done: Report, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        document("pruned", dry_run=dry_run, before=done.before, traces=done.traces, rows=_counts(done.rows),
                 kept=_counts(done.kept), files=done.files, bytes=done.size, partitions_made=done.made,
                 partitions_dropped=done.dropped)  # fmt: skip
        return
    table(["rows", "of"], [*((count, name) for name, count in _counts(done.rows).items()), (sum(done.rows.values()), "all")],
          empty="")  # fmt: skip
    for why, count in _counts(done.kept).items():
        say(f"{count} stay: {why}")
    verb = "would go" if dry_run else "went"
    say(f"{done.traces} traces that ended before {moment(done.before)} {verb}")
    if done.files:
        say(f"{done.files} files, {done.size / 2**20:.1f} MiB, are the archive of it")
    if done.made or done.dropped:
        say(f"partitions of events: {len(done.made)} made, {len(done.dropped)} dropped")


def _counts(counts: Any) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}
