"""What every verb is given: the options before the verb, settings, and a mesh that is closed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentmesh.errors import DatabaseUnreachable

if TYPE_CHECKING:
    from agentmesh.infrastructure.settings import Settings
    from agentmesh.wiring import Mesh

MAX_FILE_BYTES = 256 << 20  # what is too large for a payload is refused as such, by its own rule
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Insecure = Annotated[
    list[str] | None, typer.Option(help="Listen beyond loopback in spite of this, as doctor names it; repeatable.")
]


@dataclass(frozen=True, slots=True)
class Given:
    """The options that stand before a verb."""

    config: Path | None = None
    debug: bool = False


def settings_of(ctx: typer.Context, flags: Mapping[str, object] | None = None) -> Settings:
    """The settings of this process. Raises BadSettings."""
    from agentmesh.infrastructure.settings import load

    given: Given = ctx.obj or Given()
    return load(config=given.config, flags=flags)


def accepting(ctx: typer.Context, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """What mesh.accepted is with these names besides; None where there are none."""
    if not names:
        return None
    listed = [one.strip() for name in names for one in name.split(",")]
    return (*settings_of(ctx).mesh.accepted, *listed)


@contextmanager
def opened(ctx: typer.Context, flags: Mapping[str, object] | None = None, *, migrated: bool = True) -> Iterator[Mesh]:
    """The mesh of these settings, its database reachable and (unless told otherwise) migrated; closed afterwards."""
    from agentmesh.wiring import build

    quiet_log()
    mesh = build(settings_of(ctx, flags))
    try:
        if migrated:
            require_migrated(mesh)
        yield mesh
    finally:
        mesh.close()


def require_migrated(mesh: Mesh) -> None:
    """Raises DatabaseNotMigrated, or DatabaseUnreachable that says how the embedded one is started."""
    try:
        mesh.require_migrated()
    except DatabaseUnreachable as exc:
        if mesh.settings.database.url is None:
            raise DatabaseUnreachable(
                "the embedded database does not run", value=str(mesh.embedded.home), expected="one that 'agentmesh dev' runs",
                next="agentmesh dev",
            ) from exc  # fmt: skip
        raise


def plain(mesh: Mesh) -> str:
    """The database's URL as libpq reads it."""
    return mesh.database_url.replace("+psycopg", "")


def quiet_log() -> None:
    """A verb says what it has to say itself: of the log only what is wrong."""
    from agentmesh.infrastructure.logging import configure

    configure(level="warning", format="text")


def loud_log(settings: Settings) -> None:
    """A worker's log, as the settings want it."""
    from agentmesh.infrastructure.logging import configure

    configure(level=settings.log.level, format=settings.log.format)


def read_json(text: str, what: str) -> Any:
    """The strict JSON of `text`, of the file in `@file`, or of stdin for `@-`. Raises BadJson, or Mistake."""
    import sys

    from agentmesh.errors import Mistake
    from agentmesh.infrastructure import jsontext

    if text == "@-":
        return jsontext.loads(sys.stdin.buffer.read(), what=what, max_bytes=MAX_FILE_BYTES)
    if text.startswith("@"):
        try:
            return jsontext.loads(Path(text[1:]).read_bytes(), what=what, max_bytes=MAX_FILE_BYTES)
        except OSError as exc:
            raise Mistake(f"{what} cannot be read: {exc.strerror}", value=text[1:], expected="a file of JSON") from None
    return jsontext.loads(text, what=what)
