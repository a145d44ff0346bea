"""Whether the audit is what was written: every chain recomputed, and held against the heads that were kept and signed.

A chain alone shows an edit, a gap, another order. Whoever rebuilds all of it with right hashes is shown by the anchors,
which lie outside the database and are signed by a key that is not in it; the database's own list of keys is not asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentmesh.infrastructure.database import Database, Row
from agentmesh.state import audit

Opened = Callable[[str], Mapping[str, Any] | None]
"""What a signed anchor says; None: it was not signed by a key that is believed."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One tenant's chain: how many rows are whole, how many anchors meet it, and the first number that is not what it was.

    `bad` None: all is well.
    """

    tenant: str
    rows: int
    anchors: int
    bad: int | None = None
    why: str = ""


def verify(db: Database, anchors: Iterable[str], opened: Opened) -> list[Checked]:
    """Every tenant's chain, checked against the heads beside it and the `anchors`: lines, each a JWS."""
    outside, forged = _read(anchors, opened)
    kept: dict[str, list[tuple[int, str]]] = {}
    for row in audit.kept_heads(db):
        kept.setdefault(row["tenant_id"], []).append((row["seq"], bytes(row["hash"]).hex()))
    known = sorted({*audit.tenants(db), *outside})
    found = [_tenant(db, one, outside.get(one, []), kept.get(one, [])) for one in known]
    if forged:
        found.append(Checked("", 0, 0, forged, "this line of the anchors was not signed by a key that is believed"))
    return found


def _read(anchors: Iterable[str], opened: Opened) -> tuple[dict[str, list[tuple[int, str]]], int | None]:
    """The signed heads by tenant, and the number of the first line that nobody believed signed."""
    found: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(anchors, 1):
        if not line.strip():
            continue
        said = opened(line.strip())
        if said is None:
            return found, number
        found.setdefault(said["tenant"], []).append((int(said["seq"]), said["hash"]))
    return found, None


def _tenant(db: Database, tenant: str, outside: list[tuple[int, str]], kept: list[tuple[int, str]]) -> Checked:
    wanted: dict[int, set[str]] = {}
    for seq, digest in [*outside, *kept]:
        wanted.setdefault(seq, set()).add(digest)
    seq, link = 0, hashlib.sha256(tenant.encode()).digest()
    for row in audit.chain(db, tenant):
        bad = _wrong(row, seq + 1, link)
        link = bytes(row["hash"] or b"")
        if bad is None and wanted.pop(seq + 1, {link.hex()}) != {link.hex()}:
            bad = "an anchor of this number has another hash: the chain was rebuilt"
        if bad is not None:
            return Checked(tenant, seq, len(outside), seq + 1, bad)
        seq += 1
    if wanted:
        return Checked(tenant, seq, len(outside), seq + 1, "rows that an anchor has seen are gone")
    return Checked(tenant, seq, len(outside))


def _wrong(row: Row, expected: int, link: bytes) -> str | None:
    """What is wrong with one row, if anything is."""
    if row["seq"] != expected:
        return "the row of this number is gone"
    if bytes(row["prev"] or b"") != link:
        return "it is not bound to the row before it"
    if bytes(row["hash"] or b"") != hashlib.sha256(link + row["body"].encode()).digest():
        return "it does not say what was sealed"
    try:
        said = json.loads(row["body"])
        same = (said["id"], said["tenant"]) == (str(row["id"]), row["tenant_id"])
    except (ValueError, TypeError, KeyError):
        same = False
    return None if same else "it is not the row that was written"
