"""The audit: who dispatched, steered, decided and changed what, under which key and permission.

The row of an order is written in the order's own transaction: by the trigger on `events` (state/guards.sql) for whatever
is done to a trace, by `mesh.audit_note` in the statement itself for everything else. Rows are only ever added. One sealer
binds each to the one before it afterwards, per tenant; heads of these chains are signed and kept outside as anchors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import structlog

from agentmesh.errors import MeshError
from agentmesh.infrastructure.counts import COUNTS, REFUSALS
from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Json, named

log = structlog.get_logger("agentmesh.audit")

BATCH = 1000
REFUSED_EVERY_S = 10.0

NOTE = "SELECT mesh.audit_note(%(tenant)s, %(action)s, %(said)s::jsonb)"

LIST = """
SELECT seq, body::jsonb AS said FROM mesh.audit WHERE tenant_id = %(tenant)s AND seq IS NOT NULL AND seq < %(before)s
  AND (%(trace)s::text IS NULL OR body::jsonb->>'trace_id' = %(trace)s) ORDER BY seq DESC LIMIT %(limit)s
"""

# A loose index scan: as many steps as there are tenants, however long their chains are.
HEADS = """
WITH RECURSIVE t AS (
  SELECT min(tenant_id) AS tenant_id FROM mesh.audit WHERE seq IS NOT NULL
  UNION ALL SELECT (SELECT min(a.tenant_id) FROM mesh.audit a WHERE a.seq IS NOT NULL AND a.tenant_id > t.tenant_id)
    FROM t WHERE t.tenant_id IS NOT NULL)
SELECT h.tenant_id, h.seq, h.hash, mesh.mesh_now() AS at FROM t, LATERAL (SELECT a.tenant_id, a.seq, a.hash FROM mesh.audit a
  WHERE a.tenant_id = t.tenant_id AND a.seq IS NOT NULL ORDER BY a.seq DESC LIMIT 1) h
"""

KEEP = """
INSERT INTO mesh.audit_heads (tenant_id, seq, hash, signature) VALUES (%(tenant)s, %(seq)s, %(hash)s, %(signature)s)
ON CONFLICT DO NOTHING
"""


class AuditPipeline:
    """The audit of one tenant: written here, sealed by whoever leads, read back as sealed."""

    def __init__(self, db: Database, *, tenant: str) -> None:
        self._db, self._tenant = db, tenant

    def record(self, action: str, *, by: str, **about: Json) -> None:
        """There is a row that says so."""
        self._db.once(NOTE, {"tenant": self._tenant, "action": action, "said": said(by, **about)})

    def seal(self) -> int:
        """See `seal`."""
        return seal(self._db)

    def rows(self, *, limit: int = 50, before: int = 2**62, trace_id: UUID | None = None) -> list[Row]:
        """Sealed rows, newest first, each with its number `seq`; of one trace where its id is given."""
        at = {"tenant": self._tenant, "before": before, "limit": limit, "trace": trace_id and str(trace_id)}
        return [{"seq": row["seq"], **row["said"]} for row in self._db.read(LIST, at)]


def said(by: str, **about: Json) -> str | None:
    """What a row says beside its action, as the parameter of `mesh.audit_note`."""
    return jsonb({**about, **named(by)})


def seal(db: Database, *, most: int = BATCH) -> int:
    """Afterwards at most `most` rows more are bound into their tenants' chains; how many were."""
    return int(db.once("SELECT mesh.audit_seal(%(most)s) AS sealed", {"most": most})[0]["sealed"])


def heads(db: Database) -> list[Row]:
    """The newest sealed row of every tenant: tenant_id, seq, hash, and what time it is."""
    return db.once(HEADS)


def keep_head(db: Database, row: Row, signature: bytes) -> None:
    """The head is kept beside its chain, too; only ever added to."""
    db.once(KEEP, {"tenant": row["tenant_id"], "seq": row["seq"], "hash": row["hash"], "signature": signature})


def chain(db: Database, tenant: str, *, after: int = 0, batch: int = 5000) -> Iterator[Row]:
    """Every sealed row of the tenant from number `after` on, in order, as it stands."""
    sql = """SELECT id, tenant_id, at, body, seq, prev, hash FROM mesh.audit
      WHERE tenant_id = %(tenant)s AND seq > %(after)s ORDER BY seq LIMIT %(batch)s"""
    while rows := db.read(sql, {"tenant": tenant, "after": after, "batch": batch}):
        yield from rows
        after = rows[-1]["seq"]


def kept_heads(db: Database) -> list[Row]:
    """Every head that was kept beside its chain."""
    return db.read("SELECT tenant_id, seq, hash FROM mesh.audit_heads ORDER BY tenant_id, seq")


def tenants(db: Database) -> list[str]:
    """Whose chains or heads there are."""
    sql = "SELECT DISTINCT tenant_id FROM mesh.audit UNION SELECT DISTINCT tenant_id FROM mesh.audit_heads ORDER BY 1"
    return [row["tenant_id"] for row in db.read(sql)]


class Refusals:
    """Refused envelopes: each logged and counted, and audited with its count, at most once in 10 s a reason.

    Whoever can write to the broker writes as much as they like; they shall not fill our table.
    """

    def __init__(
        self, pipeline: Callable[[], AuditPipeline], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._pipeline, self._monotonic = pipeline, monotonic
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._noted: dict[str, float] = {}

    def __call__(self, reason: str, about: dict[str, Any]) -> None:
        log.warning("refused", reason=reason, **about)
        COUNTS.add(f"refused.{reason if reason in REFUSALS else 'other'}")
        now = self._monotonic()
        with self._lock:
            self._open[reason] = self._open.get(reason, 0) + 1
            if now - self._noted.get(reason, float("-inf")) < REFUSED_EVERY_S:
                return
            self._noted[reason], count = now, self._open.pop(reason)
        try:
            self._pipeline().record("ENVELOPE_REFUSED", by="unknown", reason=reason, count=count, last=about)
        except (psycopg.Error, MeshError) as exc:
            with self._lock:
                self._open[reason] = self._open.get(reason, 0) + count
            log.warning("a refusal was not audited", error=str(exc).splitlines()[0])
