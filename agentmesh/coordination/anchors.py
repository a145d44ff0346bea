"""Anchors: the heads of the audit's chains, signed with the mesh's key and appended to a file outside the database.

Every agent worker keeps its own file (tool workers have no key): who rebuilds the table has to find, and to sign, all of
them. A line is a compact JWS, good for ever, over tenant, number, hash and time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import structlog

from agentmesh.communication.keys import SigningKey
from agentmesh.communication.statements import sign_statement
from agentmesh.errors import MeshError
from agentmesh.infrastructure.database import Database
from agentmesh.state import audit

log = structlog.get_logger("agentmesh.audit")

KIND = "agentmesh-anchor+jws"


class Anchors:
    """Appends to `path`, at most once in `every_s`, the heads that have moved."""

    def __init__(
        self, db: Database, path: Path, *, key: Callable[[], SigningKey], mesh: str, every_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._db, self._path, self._key, self._mesh = db, path, key, mesh
        self._every_s, self._monotonic = every_s, monotonic
        self._due = float("-inf")
        self._last: dict[str, int] = {}

    def look(self) -> None:
        """When it is time, afterwards every head stands outside. What cannot be written is logged, and tried again."""
        if self._monotonic() < self._due:
            return
        self._due = self._monotonic() + self._every_s
        try:
            self.write()
        except (OSError, psycopg.Error, MeshError) as exc:
            log.warning("the audit's heads were not anchored", path=str(self._path), error=str(exc).splitlines()[0])

    def write(self) -> int:
        """Every head that moved stands outside, on the disk, and then beside its chain; how many that were."""
        moved = [row for row in audit.heads(self._db) if row["seq"] != self._last.get(row["tenant_id"])]
        lines = [sign_statement(self._said(row), self._key(), kind=KIND) for row in moved]
        if not moved:
            return 0
        _append(self._path, lines)
        for row, line in zip(moved, lines, strict=True):
            audit.keep_head(self._db, row, line.encode())
            self._last[row["tenant_id"]] = row["seq"]
        return len(moved)

    def _said(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"mesh": self._mesh, "tenant": row["tenant_id"], "seq": row["seq"], "hash": bytes(row["hash"]).hex(),
                "at": row["at"].isoformat()}  # fmt: skip


def _append(path: Path, lines: Sequence[str]) -> None:
    """One write, so that two processes do not mix their lines; on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
