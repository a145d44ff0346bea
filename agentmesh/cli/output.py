"""How the command line prints: data on stdout, talk on stderr, an error in its one shape.

Everything from outside is escaped before it is printed. Colour only on a terminal and without NO_COLOR; a table on a
pipe is one tab-separated line a row, times there are RFC 3339 in UTC.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import typer

from agentmesh.errors import BadSettings, DatabaseUnreachable, MeshError, Mistake, Unsafe

if TYPE_CHECKING:
    from rich.console import Console

GONE = {"psycopg.OperationalError", "psycopg.InterfaceError"}  # by name: most verbs never import it
STATUS = {"done": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "dead": "red", "alive": "green"}


def safe(value: object) -> str:
    """`value` in one printable line: control characters and what changes direction are spelled out."""
    from agentmesh.infrastructure.logging import escape

    return escape(value if isinstance(value, str) else str(value))


def is_terminal() -> bool:
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def console(*, err: bool = False) -> Console:
    """A rich console on stdout (or stderr), without markup, emoji and highlighting of its own."""
    from rich.console import Console

    return Console(stderr=err, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say(*words: object) -> None:
    """Talk, on stderr."""
    print(*(safe(word) for word in words), file=sys.stderr, flush=True)


def document(kind: str, **body: Any) -> None:
    """One JSON document on stdout: `schema` is "agentmesh.<kind>/1"."""
    print(as_line({"schema": f"agentmesh.{kind}/1", **body}), flush=True)  # whoever reads the pipe waits for it


def as_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, default=_plain)


def _plain(value: object) -> Any:
    match value:
        case datetime():
            return stamp(value)
        case UUID() | Path():
            return str(value)
        case set() | frozenset() | tuple():
            return list(value)
        case _:
            return float(str(value)) if type(value).__name__ == "Decimal" else str(value)


def stamp(value: datetime) -> str:
    """RFC 3339 in UTC."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(value: datetime | None) -> str:
    """Local time on a terminal, RFC 3339 in UTC elsewhere; "-" for None."""
    if value is None:
        return "-"
    return value.astimezone().strftime("%m-%d %H:%M:%S") if is_terminal() else stamp(value)


def span(seconds: float | None) -> str:
    """ "13 ms", "2.4 s", "3 min 5 s", "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table on a terminal, tab-separated lines on a pipe; `empty` is said on stderr where there is no row."""
    listed = [[safe(cell) for cell in row] for row in rows]
    if not listed:
        say(empty)
        return
    if not is_terminal():
        for row in listed:
            print("\t".join(row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in listed:
        made.add_row(*(Text(cell, style=STATUS.get(cell, "")) for cell in row))
    console().print(made)


def pairs(rows: Mapping[str, object]) -> None:
    """Name and value, one a line."""
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        shown = safe(value if isinstance(value, str) else as_line(value))
        print(f"{name:<{width}}  {shown}" if is_terminal() else f"{name}\t{shown}")


# --- errors -----------------------------------------------------------------------------------------------------------


def report(exc: Exception, *, as_json: bool, debug: bool) -> int:
    """Print what went wrong on stderr; the exit code. What is ours to fix is saved to a file that is named."""
    if debug:
        traceback.print_exc()
    problem = as_mesh_error(exc)
    parts = {name: value and _masked(value) for name, value in problem.parts().items()}
    if as_json:
        print(as_line({"schema": "agentmesh.problem/1", **parts, "exit_code": problem.exit_code}), file=sys.stderr)
    else:
        print(f"{parts.pop('code')}  {parts.pop('what')}", file=sys.stderr)
        for name, value in parts.items():
            if value:
                print(f"  {name:<8}  {value}", file=sys.stderr)
    return problem.exit_code


def _masked(text: str) -> str:
    from agentmesh.infrastructure.logging import redact

    return safe(redact(text))


def as_mesh_error(exc: Exception) -> MeshError:
    """`exc` as one of our errors: usage, an unreachable database, or one that is ours to fix."""
    if isinstance(exc, MeshError):
        return exc
    usage = getattr(exc, "format_message", None)
    if usage is not None:
        where = getattr(getattr(exc, "ctx", None), "command_path", "agentmesh")
        return Mistake(str(usage()).rstrip("."), expected=f"as '{where} --help' says", next=f"{where} --help")
    cause: BaseException = getattr(exc, "orig", None) or exc
    if any(f"{one.__module__}.{one.__name__}" in GONE for one in type(cause).__mro__):
        return DatabaseUnreachable(
            f"the database does not answer: {(str(cause).strip() or 'no reason').splitlines()[0]}"
        )
    if isinstance(exc, ModuleNotFoundError) and not (exc.name or "agentmesh").startswith("agentmesh"):
        return BadSettings("a module that the settings or an agent name cannot be imported", value=exc.name,
                           expected="a module that 'python -c \"import …\"' finds here")  # fmt: skip
    return MeshError(f"{type(exc).__name__}: {str(exc) or 'no message'}", value=_saved(exc),
                     expected="no such error: it is ours to fix, and saved in the file above")  # fmt: skip


def _saved(exc: Exception) -> str:
    """The file that now holds the traceback, for its owner only."""
    from agentmesh.infrastructure.logging import redact

    text = "".join(traceback.format_exception(exc))
    descriptor, path = tempfile.mkstemp(prefix="agentmesh-error-", suffix=".txt")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(str(redact(text)))
    return path


def confirmed(question: str) -> None:
    """A person at a terminal has said yes. Raises Unsafe where nobody can be asked, or when the answer is no."""
    if not sys.stdin.isatty():
        raise Unsafe("this wants a yes, and there is nobody to ask", value=question, expected="--yes")
    if not typer.confirm(question, err=True):
        raise Unsafe("nothing was done", value=question, expected="yes")


def stop(code: int) -> None:
    """End this verb with `code`."""
    raise typer.Exit(code)
