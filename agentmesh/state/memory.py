"""What agents remember: versioned entries of a trace (short-term) or of its context (long-term).

An entry is never changed, only followed by its next version. Long-term writes take the context row's lock, so that
versions have no hole; short-term entries have one writer, the trace's holder. Retrieval by words is PostgreSQL's
full-text search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from agentmesh.errors import Mistake
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Json, new_id
from agentmesh.state.blobs import BlobStore
from agentmesh.state.changes import MemoryWrite, plain

MemoryType = Literal["short_term", "long_term"]

LOCK = """
INSERT INTO mesh.contexts AS c (tenant_id, id, mem_seq) VALUES (%(tenant)s, %(context)s, %(n)s)
ON CONFLICT (tenant_id, id) DO UPDATE SET mem_seq = c.mem_seq + %(n)s RETURNING mem_seq
"""

WRITE = """
INSERT INTO mesh.memory (id, tenant_id, context_id, type, scope, key, version, value, deleted, trace_id, step_id, origin,
  trusted, mem_seq)
SELECT x.id, %(tenant)s, %(context)s, x.type, x.scope, x.key, 1 + coalesce((SELECT max(m.version) FROM mesh.memory m
   WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND m.type = x.type AND m.scope = x.scope
     AND m.key = x.key), 0), x.value, x.deleted, %(trace)s, x.step_id, x.origin, x.trusted, %(seq)s
  FROM jsonb_to_recordset(%(rows)s::jsonb) AS x(id uuid, type text, scope text, key text, value jsonb, deleted boolean,
   step_id uuid, origin text, trusted boolean)
"""

# Part of the holder's commit: short-term entries have one writer, whose trace row that statement has locked.
INSERT_SHORT_TERM = """ m AS (INSERT INTO mesh.memory (id, tenant_id, context_id, type, scope, key, version, value, deleted,
    trace_id, step_id, origin, trusted)
   SELECT x.id, t.tenant_id, t.context_id, 'short_term', x.scope, x.key,
     1 + coalesce((SELECT max(o.version) FROM mesh.memory o WHERE o.tenant_id = t.tenant_id
       AND o.context_id = t.context_id AND o.type = 'short_term' AND o.scope = x.scope AND o.key = x.key), 0),
     x.value, x.deleted, t.id, x.step_id, x.origin, x.trusted
   FROM t, jsonb_to_recordset(%(memory)s::jsonb) AS x(id uuid, scope text, key text, value jsonb, deleted boolean,
     step_id uuid, origin text, trusted boolean))"""

NEWEST = """
SELECT DISTINCT ON (type, key) type, key, value, version, origin, trusted, deleted, at FROM mesh.memory
 WHERE tenant_id = %(tenant)s AND context_id = %(context)s AND (type = 'long_term' OR scope = %(scope)s)
 ORDER BY type, key, version DESC
"""

SEARCH = """
SELECT key, value, version, origin, trusted, at, ts_rank(words, q) AS rank FROM (
  SELECT DISTINCT ON (key) * FROM mesh.memory
   WHERE tenant_id = %(tenant)s AND context_id = %(context)s AND type = 'long_term' ORDER BY key, version DESC) m,
  websearch_to_tsquery('simple', %(text)s) q
 WHERE words @@ q AND NOT deleted ORDER BY rank DESC, key LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """One version of one entry."""

    type: MemoryType
    key: str
    value: Json
    version: int
    origin: str
    trusted: bool


def write(tx: Tx, tenant_id: str, context_id: str, trace_id: UUID | None, writes: Sequence[MemoryWrite]) -> int:
    """Add the next version of each entry, under the context's lock; the context's `mem_seq` after it."""
    made = rows(trace_id, writes)
    row = tx.one(LOCK, {"tenant": tenant_id, "context": context_id, "n": len(made)})
    seq: int = row["mem_seq"] if row else 0
    tx.count(WRITE, {"tenant": tenant_id, "context": context_id, "trace": trace_id, "seq": seq, "rows": jsonb(made)})
    return seq


def rows(trace_id: UUID | None, writes: Sequence[MemoryWrite]) -> list[dict[str, Json]]:
    """The entries as rows to be; the last of several writes to one key wins."""
    last = {(one.type, one.key): one for one in writes}
    return [
        plain(one) | {"id": str(new_id()), "scope": str(trace_id) if one.type == "short_term" else ""}
        for one in last.values()
    ]


def newest(db: Database, tenant_id: str, context_id: str, trace_id: UUID) -> dict[str, Json]:
    """The current entries a trace sees, by `type:key`."""
    rows = db.once(NEWEST, {"tenant": tenant_id, "context": context_id, "scope": str(trace_id)})
    return {f"{row['type']}:{row['key']}": row["value"] for row in rows if not row["deleted"]}


class MemoryEngine:
    """Memory of one context, and of one trace in it, for code outside a step (a step's writes commit with it).

    What is too big for a row is put aside in `blobs`, and read back whole.
    """

    def __init__(
        self, db: Database, *, tenant_id: str, context_id: str, trace_id: UUID | None = None,
        blobs: BlobStore | None = None,
    ) -> None:  # fmt: skip
        self._db, self._blobs = db, blobs or BlobStore(db)
        self._tenant, self._context, self._trace = tenant_id, context_id, trace_id

    def store(self, key: str, value: Json, memory_type: MemoryType = "long_term", *, origin: str = "api") -> None:
        """Afterwards the entry's newest version is `value`, committed.

        Raises Mistake for short-term without a trace, BadJson, PayloadTooLarge.
        """
        self._own(memory_type)
        kept = self._blobs.shrink(self._tenant, value, what=f"memory {key}")
        with self._db.begin() as tx:
            one = MemoryWrite(memory_type, key, kept, origin)
            write(tx, self._tenant, self._context, self._trace, [one])

    update = store

    def retrieve(self, key: str, memory_type: MemoryType = "long_term") -> Json:
        """The newest value of the entry; None when there is none."""
        self._own(memory_type)
        return self._whole(self._newest().get(f"{memory_type}:{key}"))

    def snapshot(self) -> dict[str, Json]:
        """The newest value of every entry, by `type:key`; short-term ones are those of this engine's trace."""
        return {name: self._whole(value) for name, value in self._newest().items()}

    def query(self, text: str, *, limit: int = 10) -> list[Row]:
        """Long-term entries that have the words of `text` (web search syntax), best first. A value that was put aside
        is not found by its words."""
        found = self._db.once(SEARCH, {"tenant": self._tenant, "context": self._context, "text": text, "limit": limit})
        return [row | {"value": self._whole(row["value"])} for row in found]

    def _newest(self) -> dict[str, Json]:
        return newest(self._db, self._tenant, self._context, self._trace or new_id())

    def _whole(self, value: Json) -> Json:
        return self._blobs.expand(self._tenant, value)

    def _own(self, memory_type: str) -> None:
        if memory_type not in {"short_term", "long_term"}:
            raise Mistake("this memory type does not exist", value=memory_type, expected="short_term or long_term")
        if memory_type == "short_term" and self._trace is None:
            raise Mistake("short-term memory belongs to a trace", expected="an engine made with trace_id")
