"""Taking out what is over: whole trees of ended traces with everything that hangs on them, batch by batch.

A tree goes when every trace of it ended before the time asked for and nothing is owed: no open dead letter, no delivery to be
made, no event that a reader of events has not been told. What is deleted is what is returned, so that it can be archived
before the transaction commits. Lock order: traces first, and only those that nobody holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import new_id
from agentmesh.state.audit import said
from agentmesh.state.partitions import Partition, first_id_at

MAX_EVENTS = 20_000  # a batch, unless one tree alone has more

# Why a trace stays; NULL: it does not. (xid + 0: the index of all that was written is no help for one trace.)
KEPT = """CASE WHEN t.status NOT IN ('done', 'failed', 'cancelled') OR t.parent_owed OR t.cancel_owed THEN 'open'
   WHEN t.ended_at >= %(before)s THEN 'younger'
   WHEN EXISTS (SELECT 1 FROM mesh.dead_letters d WHERE d.trace_id = t.id AND d.settled_at IS NULL) THEN 'parked'
   WHEN EXISTS (SELECT 1 FROM mesh.deliveries d WHERE d.trace_id = t.id AND d.status IN ('ready', 'running')) THEN 'to deliver'
   WHEN EXISTS (SELECT 1 FROM mesh.events e WHERE e.trace_id = t.id AND e.xid + 0 >= %(told)s) THEN 'to export' END"""

NEXT_ROOTS = """SELECT t.id FROM mesh.traces t WHERE t.tenant_id = %(tenant)s AND t.parent_id IS NULL AND t.id > %(after)s
   AND t.id < %(below)s ORDER BY t.id LIMIT %(batch)s"""
THESE_ROOTS = "SELECT t.id FROM mesh.traces t WHERE t.tenant_id = %(tenant)s AND t.id = ANY(%(roots)s)"

TREES = f"""
WITH RECURSIVE roots AS ({{roots}}),
 tree AS (SELECT id AS root, id FROM roots
   UNION ALL SELECT tree.root, k.id FROM tree JOIN mesh.traces k ON k.parent_id = tree.id AND k.tenant_id = %(tenant)s)
SELECT root, array_agg(id ORDER BY id) AS ids, sum(seq)::bigint AS events, min(why) AS why FROM (
  SELECT tree.root, t.id, t.seq, {KEPT} AS why FROM tree JOIN mesh.traces t ON t.id = tree.id) x GROUP BY root ORDER BY root
"""

CUT = """
SELECT mesh.mesh_asof() - make_interval(secs => %(age_s)s) AS before,
 coalesce((SELECT min(xid) FROM mesh.exports), 9223372036854775807) AS told
"""

PATIENT = """
SELECT set_config('statement_timeout', '10min', true), set_config('idle_in_transaction_session_timeout', '1min', true)
"""

LOCK = """
SELECT id FROM mesh.traces WHERE tenant_id = %(tenant)s AND id = ANY(%(ids)s) ORDER BY id FOR UPDATE SKIP LOCKED
"""

OF_STEPS = ("mesh.steps s", "s.trace_id = ANY(%(ids)s) AND x.step_id = s.id AND x.tenant_id = s.tenant_id")
OF_TRACE = ("", "x.trace_id = ANY(%(ids)s) AND x.tenant_id = %(tenant)s")
# What hangs on a trace, each table before those by which its rows are found: where to look, and what must be true there.
PARTS: dict[str, tuple[str, str]] = {
    "attempts": OF_STEPS,
    "calls": OF_STEPS,
    "effects": OF_STEPS,
    "steps": OF_TRACE,
    "events": OF_TRACE,
    "signals": OF_TRACE,
    "deliveries": OF_TRACE,
    "rewards": OF_TRACE,
    "ledger": OF_TRACE,
    "memory": (
        "mesh.traces t",
        (
            "t.id = ANY(%(ids)s) AND x.tenant_id = t.tenant_id AND x.context_id = t.context_id AND x.type = 'short_term'"
            " AND x.scope = t.id::text"
        ),
    ),
    "idempotency": (
        "mesh.envelopes v",
        (
            "v.trace_id = ANY(%(ids)s) AND x.tenant_id = v.tenant_id AND x.operation = 'dispatch' AND x.key = v.idem_key"
            " AND x.trace_id = v.trace_id"
        ),
    ),
    "envelopes": OF_TRACE,
    "traces": ("", "x.id = ANY(%(ids)s) AND x.tenant_id = %(tenant)s"),
}
TRACE_OF = {"traces": "x.id", "memory": "x.scope::uuid"}

NOTE = """
INSERT INTO mesh.prunings (id, tenant_id, kind, first_id, last_id, ids, counts, archive, digest, by)
VALUES (%(id)s, %(tenant)s, %(kind)s, %(first)s, %(last)s, %(ids)s, %(counts)s::jsonb, %(archive)s, %(digest)s, %(by)s)
RETURNING mesh.audit_note(tenant_id, 'PRUNED', %(said)s::jsonb)
"""

WHERE = """
SELECT archive, at, by FROM mesh.prunings WHERE tenant_id = %(tenant)s AND kind = 'traces' AND first_id <= %(high)s
  AND last_id >= %(low)s AND EXISTS (SELECT 1 FROM unnest(ids) one WHERE one BETWEEN %(low)s AND %(high)s) ORDER BY at LIMIT 1
"""

# Events whose trace is gone, of a partition that could not be dropped.
ORPHANS = """
DELETE FROM mesh.events x WHERE x.trace_id IN (SELECT DISTINCT e.trace_id FROM mesh.events e
  WHERE e.trace_id >= %(low)s AND e.trace_id < %(high)s
   AND NOT EXISTS (SELECT 1 FROM mesh.traces t WHERE t.id = e.trace_id) LIMIT 1000) AND x.trace_id < %(high)s
"""

WHOLE = """
SELECT NOT EXISTS (SELECT 1 FROM mesh.traces t WHERE t.id >= %(low)s AND t.id < %(high)s
  AND (t.tenant_id <> %(tenant)s OR t.status NOT IN ('done', 'failed', 'cancelled') OR t.ended_at >= %(before)s)) AS whole
"""


class Found(NamedTuple):
    """A row that was taken out: its table, the trace it hung on, and itself as JSON."""

    table: str
    trace: UUID
    row: str


@dataclass(frozen=True, slots=True)
class Cut:
    """What is asked for: ended `before`, told to every reader of events up to transaction `told`, with an id `below`."""

    tenant: str
    before: datetime
    told: int
    below: UUID
    left: tuple[Partition, ...] = ()
    """Partitions of which everything goes: their events stay until they are dropped as a whole."""

    def params(self) -> dict[str, Any]:
        return {"tenant": self.tenant, "before": self.before, "told": self.told, "below": self.below}


@dataclass(slots=True)
class Tree:
    """A root and all that came of it. `why` it stays; None: it goes."""

    root: UUID
    ids: list[UUID]
    events: int
    why: str | None


@dataclass(slots=True)
class Taken:
    """One batch: which traces went, and how many rows of each table."""

    ids: list[UUID] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    rows: list[Found] = field(default_factory=list)


def cut(db: Database, *, tenant: str, age_s: float, partitions: Sequence[Partition], exact: bool) -> Cut:
    """What ended longer ago than this. Unless `exact`, a week of events that is only partly over waits for its end."""
    row = db.once(CUT, {"age_s": age_s})[0]
    below = first_id_at(row["before"])
    astride = next((one for one in partitions if one.low and one.holds(below)), None)
    if astride is not None and astride.low is not None and not exact:
        below = astride.low
    made = Cut(tenant, row["before"], row["told"], below)
    left = [one for one in partitions if one.low and one.high <= below and _whole(db, made, one)]
    return Cut(tenant, row["before"], row["told"], below, tuple(left))


def _whole(db: Database, made: Cut, one: Partition) -> bool:
    return bool(db.once(WHOLE, made.params() | {"low": one.low, "high": one.high})[0]["whole"])


def trees(db: Database, asked: Cut, *, batch: int) -> Iterator[list[Tree]]:
    """Trees in the order of their roots, in batches of about `batch` and of at most MAX_EVENTS events that go."""
    after = UUID(int=0)
    while found := db.once(TREES.format(roots=NEXT_ROOTS), asked.params() | {"after": after, "batch": batch}):
        after = found[-1]["root"]
        some: list[Tree] = []
        for one in (Tree(row["root"], row["ids"], row["events"], row["why"]) for row in found):
            if some and sum(tree.events for tree in some if tree.why is None) + one.events > MAX_EVENTS:
                yield some
                some = []
            some.append(one)
        yield some


def patient(tx: Tx) -> None:
    """A statement of this transaction may take as long as one trace with a million events does."""
    tx.all(PATIENT)


def take(tx: Tx, asked: Cut, found: Sequence[Tree], *, rows: bool) -> Taken:
    """Afterwards these trees are gone, but those that somebody holds or that are not over any more; with `rows` everything
    that went is returned, too."""
    ids = [one for tree in found for one in tree.ids]
    locked = {row["id"] for row in tx.all(LOCK, {"tenant": asked.tenant, "ids": ids})}
    free = [tree.root for tree in found if locked.issuperset(tree.ids)]
    judged = tx.all(TREES.format(roots=THESE_ROOTS), asked.params() | {"roots": free})
    gone = Taken([one for row in judged if row["why"] is None and locked.issuperset(row["ids"]) for one in row["ids"]])
    if not gone.ids:
        return gone
    stay = [one for one in gone.ids if any(part.holds(one) for part in asked.left)]
    for table in PARTS:
        if table == "events" and stay:
            _pick(tx, gone, asked, table, stay, rows=rows, delete=False)
            _pick(tx, gone, asked, table, list(set(gone.ids) - set(stay)), rows=rows)
        else:
            _pick(tx, gone, asked, table, gone.ids, rows=rows)
    return gone


def _pick(tx: Tx, gone: Taken, asked: Cut, table: str, ids: list[UUID], *, rows: bool, delete: bool = True) -> None:
    source, where = PARTS[table]
    given = {"ids": ids, "tenant": asked.tenant}
    wanted = f"{TRACE_OF.get(table, 'x.trace_id')} AS trace, (to_jsonb(x) - '{{words,xid}}'::text[])::text AS row"
    if delete and not rows:
        count = tx.count(f"DELETE FROM mesh.{table} x {source and 'USING ' + source} WHERE {where}", given)
    elif delete:
        using = source and "USING " + source
        found = tx.all(f"DELETE FROM mesh.{table} x {using} WHERE {where} RETURNING {wanted}", given)
        count = len(found)
        gone.rows += [Found(table, row["trace"], row["row"]) for row in found]
    elif rows:
        found = tx.all(f"SELECT {wanted} FROM mesh.{table} x WHERE {where}", given)
        count = len(found)
        gone.rows += [Found(table, row["trace"], row["row"]) for row in found]
    else:
        count = int(tx.all(f"SELECT count(*) AS n FROM mesh.{table} x WHERE {where}", given)[0]["n"])
    gone.counts[table] = gone.counts.get(table, 0) + count


def counted(db: Database, asked: Cut, found: Sequence[Tree]) -> dict[str, int]:
    """How many rows of each table hang on these trees."""
    given = {"ids": [one for tree in found for one in tree.ids], "tenant": asked.tenant}
    counts = {}
    for table, (source, where) in PARTS.items():
        sql = f"SELECT count(*) AS n FROM mesh.{table} x{source and ', ' + source} WHERE {where}"
        counts[table] = int(db.once(sql, given)[0]["n"])
    return counts


def note(  # noqa: PLR0913 - the row
    tx: Tx, tenant: str, kind: str, ids: Sequence[UUID], counts: dict[str, int], *, by: str, batch: UUID | None = None,
    archive: str | None = None, digest: bytes | None = None,
) -> None:  # fmt: skip
    """There are rows that say what went, by whose order, and where it was archived: one to find it by, one in the audit."""
    about = {"what": kind, "traces": len(ids), "rows": sum(counts.values()), "archive": archive,
             "sha256": digest.hex() if digest else None}  # fmt: skip
    tx.all(NOTE, {
        "id": batch or new_id(), "tenant": tenant, "kind": kind, "first": min(ids, default=UUID(int=0)),
        "last": max(ids, default=UUID(int=0)), "ids": list(ids), "counts": jsonb(counts), "archive": archive,
        "digest": digest, "by": by, "said": said(by, **about),
    })  # fmt: skip


def where(db: Database, tenant: str, low: UUID, high: UUID) -> Row | None:
    """When, by whom and into which archive a trace with an id from `low` to `high` went; None where none did."""
    rows = db.read(WHERE, {"tenant": tenant, "low": low, "high": high})
    return rows[0] if rows else None


def sweep(db: Database, one: Partition) -> int:
    """How many events were deleted whose traces are gone, of a partition that cannot be dropped yet."""
    swept = 0
    with db.checkout() as tx:
        while count := tx.count(ORPHANS, {"low": one.low or UUID(int=0), "high": one.high}):
            swept += count
    return swept
