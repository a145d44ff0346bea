"""An archive: a folder of gzipped JSON lines, one file a batch, on the disk and read back before what it holds is deleted.

A trace is one line with all that hung on it, table by table, every row as it stood. A file that no row of `prunings` names is
what a killed run left: what it holds is still in the database, or in a later file.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import quote
from uuid import UUID

from agentmesh.errors import ArchiveRefused
from agentmesh.infrastructure.jsontext import dumps
from agentmesh.state.pruning import Found

LEVEL = 6


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that stands: where, its SHA-256, and how long it is."""

    path: Path
    digest: bytes
    size: int


class Archive:
    """The archive of one tenant below `folder`."""

    def __init__(self, folder: Path, *, tenant: str) -> None:
        self._folder = folder.absolute() / quote(tenant, safe="")

    def ready(self) -> None:
        """Files can be written there. Raises ArchiveRefused."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with NamedTemporaryFile(prefix=".probe-", dir=self._folder):
                pass
        except OSError as exc:
            raise ArchiveRefused("the archive cannot be written", value=f"{self._folder}: {exc.strerror}") from None

    def write(self, kind: str, batch: UUID, lines: Sequence[str]) -> Kept:
        """These lines are on the disk, under a name of this batch's own. Raises ArchiveRefused."""
        # a day a folder, by the time in the batch's id
        day = f"{batch.int >> 80:012x}"
        path = self._folder / kind / str(int(day, 16) // 86_400_000) / f"{batch}.jsonl.gz"
        body = gzip.compress("".join(f"{line}\n" for line in lines).encode(), LEVEL, mtime=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _put(path, body)
            seen = path.read_bytes()
        except OSError as exc:
            raise ArchiveRefused("the archive cannot be written", value=f"{path}: {exc.strerror}") from None
        if seen != body or gzip.decompress(seen).count(b"\n") != len(lines):
            raise ArchiveRefused("the archive does not hold what was written", value=str(path))
        return Kept(path, hashlib.sha256(body).digest(), len(body))


def _put(path: Path, body: bytes) -> None:
    """The file and its name are on the disk when this returns."""
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def documents(ids: Iterable[UUID], rows: Iterable[Found]) -> list[str]:
    """One line a trace: {"schema", "id", "trace": its row, "steps": [rows], …}."""
    tables: dict[UUID, dict[str, list[str]]] = {one: {} for one in ids}
    for row in rows:
        tables[row.trace].setdefault(row.table, []).append(row.row)
    return [_document(one, held) for one, held in tables.items()]


def _document(trace: UUID, held: dict[str, list[str]]) -> str:
    parts = [f'"{table}": [{", ".join(rows)}]' for table, rows in sorted(held.items()) if table != "traces"]
    head = f'"schema": "agentmesh.archived/1", "id": {dumps(str(trace), what="an id")}, "trace": {held["traces"][0]}'
    return "{" + ", ".join([head, *parts]) + "}"
