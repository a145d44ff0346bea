"""How far each back end has read the committed events.

A place is (transaction, trace, number): events carry the transaction that wrote them, and are read up to the oldest one
that still runs, so that no late commit slips behind a reader. Readers lock nothing that writers touch.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from agentmesh.infrastructure.database import Database, Row

# Only what every transaction before has ended with; what older releases wrote before the column was there has none.
BEHIND = """
SELECT e.xid, e.trace_id, e.seq, e.tenant_id, e.name, e.step_id, e.call_id, e.body, e.at FROM mesh.events e
 WHERE e.xid >= %(xid)s AND e.xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
   AND (e.xid, e.trace_id, e.seq) > (%(xid)s, %(trace_id)s, %(seq)s)
 ORDER BY e.xid, e.trace_id, e.seq LIMIT %(limit)s
"""

START: Row = {"xid": 0, "trace_id": UUID(int=0), "seq": 0}

MOVE = """
INSERT INTO mesh.exports AS x (name, xid, trace_id, seq) VALUES (%(name)s, %(xid)s, %(trace_id)s, %(seq)s)
ON CONFLICT (name) DO UPDATE SET xid = excluded.xid, trace_id = excluded.trace_id, seq = excluded.seq, at = mesh.mesh_now()
 WHERE (x.xid, x.trace_id, x.seq) < (excluded.xid, excluded.trace_id, excluded.seq)
"""


def following(db: Database, name: str, *, limit: int) -> list[Row]:
    """The events behind this reader's place, in order, of all tenants."""
    kept = db.read("SELECT xid, trace_id, seq FROM mesh.exports WHERE name = %(name)s", {"name": name})
    return behind(db, kept[0] if kept else START, limit=limit)


def behind(db: Database, place: Row, *, limit: int) -> list[Row]:
    """The committed events behind a place, in order, of all tenants; each is the place behind itself."""
    return db.read(BEHIND, {key: place[key] for key in START} | {"limit": limit})


def move(db: Database, name: str, last: Row) -> None:
    """The reader has written everything up to this event; its place never goes back."""
    given: dict[str, Any] = {key: last[key] for key in ("xid", "trace_id", "seq")}
    db.once(MOVE, {"name": name, **given})


def now(db: Database) -> Row:
    """The place behind everything that is committed by now."""
    return START | db.read("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xid")[0]
