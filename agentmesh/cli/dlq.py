"""`agentmesh dlq`: what was parked because no process survived it or no code could read it, and what to do with it."""

from __future__ import annotations

import getpass
from typing import Annotated, Any
from uuid import UUID

import typer

from agentmesh.cli.output import as_line, confirmed, document, moment, say, table
from agentmesh.cli.session import Json, opened, read_json

app = typer.Typer(name="dlq", help="Dead letters: parked work that waits for a person.", no_args_is_help=True)

Letter = Annotated[str | None, typer.Argument(metavar="[ID]", help="One letter; else --fingerprint names many.")]
Fingerprint = Annotated[str | None, typer.Option(help="All letters of one cause; see --group.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command("list")
def list_(
    ctx: typer.Context,
    group: Annotated[bool, typer.Option("--group", help="One line a cause.")] = False,
    fingerprint: Fingerprint = None,
    as_json: Json = False,
) -> None:
    """Open letters, oldest first."""
    from agentmesh.state import dead_letters

    with opened(ctx) as mesh:
        if group:
            _show_groups(dead_letters.groups(mesh.db, mesh.tenant), as_json=as_json)
            return
        rows = dead_letters.letters(mesh.db, mesh.tenant, fingerprint=fingerprint)
    if as_json:
        document("dlq", letters=rows)
        return
    table(
        ["id", "code", "agent", "tool", "trace", "since"],
        (
            [row["id"], row["code"], row["agent"], row["tool"] or "-", row["trace_id"], moment(row["at"])]
            for row in rows
        ),
        empty="nothing is parked",
    )


def _show_groups(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        document("dlq_groups", groups=rows)
        return
    table(
        ["fingerprint", "letters", "first", "last"],
        ([row["fingerprint"], row["letters"], moment(row["first"]), moment(row["last"])] for row in rows),
        empty="nothing is parked",
    )


@app.command()
def show(ctx: typer.Context, letter_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """One letter: its reason, its evidence, and what it was asked."""
    from agentmesh.state import dead_letters

    with opened(ctx) as mesh:
        row = dead_letters.letter(mesh.db, mesh.tenant, _id(letter_id))
    if as_json:
        document("dlq_letter", **row)
        return
    for name in ("code", "fingerprint", "trace_id", "agent", "intent", "payload", "tool", "args", "error", "evidence"):
        print(f"{name}\t{as_line(row[name]) if not isinstance(row[name], str) else row[name]}")
    print(f"since\t{moment(row['at'])}")
    say(
        f"next    agentmesh dlq retry {row['id']} · agentmesh dlq discard {row['id']} · agentmesh trace show {row['trace_id']}"
    )


@app.command()
def retry(
    ctx: typer.Context,
    letter_id: Letter = None,
    fingerprint: Fingerprint = None,
    data: Annotated[
        str | None, typer.Option(help="Another payload, JSON or @file: a new trace replaces this one.")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Run it again: the same rows under the same keys, or a new trace with another payload."""
    from agentmesh.errors import Mistake
    from agentmesh.state import dead_letters
    from agentmesh.state.retry import retry as retried

    if data is not None and letter_id is None:
        raise Mistake("another payload is for one letter", value="--data", expected="the id of a letter",
                      next="agentmesh dlq list")  # fmt: skip
    payload: Any = read_json(data, "--data") if data is not None else None
    me = getpass.getuser()
    with opened(ctx) as mesh:
        done = []
        for row in _wanted(mesh, letter_id, fingerprint, "retry", yes=yes):
            if data is None:
                mesh.doorbell.ring(retried(mesh.db, tenant=mesh.tenant, trace_id=row["trace_id"], by=me))
                done.append({"letter": row["id"], "trace": row["trace_id"]})
                continue
            trace = mesh.router.dispatch(
                row["intent"], row["from_id"], row["agent"], row["context_id"], payload,
                permissions=row["permissions"], idempotency_key=f"dlq-{row['id']}",
            )  # fmt: skip
            dead_letters.settle(mesh.db, mesh.tenant, row["id"], "replaced", by=me)
            done.append({"letter": row["id"], "trace": trace.id})
    _report("dlq_retry", done, as_json=as_json)


@app.command()
def discard(
    ctx: typer.Context,
    letter_id: Letter = None,
    fingerprint: Fingerprint = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take it off the list; its trace stays as it failed."""
    from agentmesh.state import dead_letters

    with opened(ctx) as mesh:
        rows = _wanted(mesh, letter_id, fingerprint, "discard", yes=yes)
        done = [
            {"letter": row["id"], "trace": row["trace_id"]}
            for row in rows
            if dead_letters.settle(mesh.db, mesh.tenant, row["id"], "discarded", by=getpass.getuser())
        ]
    _report("dlq_discard", done, as_json=as_json)


def _wanted(mesh: Any, letter_id: str | None, fingerprint: str | None, verb: str, *, yes: bool) -> list[dict[str, Any]]:
    """The letters that are meant; many only after a look at them. Raises UnknownLetter, Mistake or Unsafe."""
    from agentmesh.errors import Mistake
    from agentmesh.state import dead_letters

    if (letter_id is None) == (fingerprint is None):
        raise Mistake("which letters?", value=letter_id, expected="the id of one, or --fingerprint for all of one cause",
                      next="agentmesh dlq list --group")  # fmt: skip
    if letter_id is not None:
        return [dead_letters.letter(mesh.db, mesh.tenant, _id(letter_id))]
    rows = dead_letters.letters(mesh.db, mesh.tenant, fingerprint=fingerprint)
    if rows and not yes:
        say(f"{len(rows)} letters of {fingerprint}, such as {', '.join(str(row['id']) for row in rows[:5])}")
        confirmed(f"{verb} all of them?")
    return rows


def _report(kind: str, done: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        document(kind, done=done)
        return
    table(["letter", "trace"], ([one["letter"], one["trace"]] for one in done), empty="nothing matched")


def _id(given: str) -> UUID:
    from agentmesh.errors import UnknownLetter

    try:
        return UUID(given)
    except ValueError:
        raise UnknownLetter("this is no id of a dead letter", value=given) from None
