"""What agents remember: versioned entries of a trace (short-term) or of its context (long-term).

An entry is never changed, only followed by its next version. Long-term writes take the context row's lock, so that
versions have no hole; short-term entries have one writer, the trace's holder. Retrieval by words is PostgreSQL's
full-text search, by meaning that of `vectors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol
from uuid import UUID

from agentmesh.errors import MemoryChanged, Mistake, NoEmbedder, UnknownMemory
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.infrastructure.embedding import Embedder, unit_vectors
from agentmesh.records import Json, new_id
from agentmesh.state import vectors
from agentmesh.state.audit import NOTE, said
from agentmesh.state.blobs import BlobStore
from agentmesh.state.changes import MemoryWrite, plain

if TYPE_CHECKING:
    from agentmesh.state.templates import Templates

MemoryType = Literal["short_term", "long_term"]
QUERY_S = 10.0
"""What turning a question into a vector may take."""

LOCK = """
INSERT INTO mesh.contexts AS c (tenant_id, id, mem_seq) VALUES (%(tenant)s, %(context)s, %(n)s)
ON CONFLICT (tenant_id, id) DO UPDATE SET mem_seq = c.mem_seq + %(n)s RETURNING mem_seq
"""

WRITE = f"""
WITH x AS MATERIALIZED (SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS x(id uuid, type text, scope text, key text,
   value jsonb, deleted boolean, step_id uuid, origin text, trusted boolean, reason text, keep_s float8, models text[])),
 w AS (INSERT INTO mesh.memory (id, tenant_id, context_id, type, scope, key, version, value, deleted, trace_id, step_id, origin,
   trusted, reason, forget_at, mem_seq)
 SELECT x.id, %(tenant)s, %(context)s, x.type, x.scope, x.key, 1 + coalesce((SELECT max(m.version) FROM mesh.memory m
    WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND m.type = x.type AND m.scope = x.scope
      AND m.key = x.key), 0), x.value, x.deleted, %(trace)s, x.step_id, x.origin, x.trusted, x.reason,
    mesh.mesh_now() + make_interval(secs => x.keep_s), %(seq)s FROM x RETURNING id, tenant_id, context_id)
{vectors.INSERT_OWED}"""

# Part of the holder's commit: short-term entries have one writer, whose trace row that statement has locked.
INSERT_SHORT_TERM = """ m AS (INSERT INTO mesh.memory (id, tenant_id, context_id, type, scope, key, version, value, deleted,
    trace_id, step_id, origin, trusted, forget_at)
   SELECT x.id, t.tenant_id, t.context_id, 'short_term', x.scope, x.key,
     1 + coalesce((SELECT max(o.version) FROM mesh.memory o WHERE o.tenant_id = t.tenant_id
       AND o.context_id = t.context_id AND o.type = 'short_term' AND o.scope = x.scope AND o.key = x.key), 0),
     x.value, x.deleted, t.id, x.step_id, x.origin, x.trusted,
     mesh.mesh_now() + make_interval(secs => x.keep_s)
   FROM t, jsonb_to_recordset(%(memory)s::jsonb) AS x(id uuid, scope text, key text, value jsonb, deleted boolean,
     step_id uuid, origin text, trusted boolean, keep_s float8))"""

# From key to key by the index, over however many versions each of them has.
NEWEST = """
WITH RECURSIVE k AS (
 SELECT o.type, o.scope, (SELECT min(m.key) FROM mesh.memory m WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s
   AND m.type = o.type AND m.scope = o.scope) AS key FROM (VALUES ('long_term', ''), ('short_term', %(scope)s)) o(type, scope)
 UNION ALL SELECT k.type, k.scope, (SELECT min(m.key) FROM mesh.memory m WHERE m.tenant_id = %(tenant)s
   AND m.context_id = %(context)s AND m.type = k.type AND m.scope = k.scope AND m.key > k.key) FROM k WHERE k.key IS NOT NULL)
SELECT k.type, k.key, n.value, n.deleted FROM k CROSS JOIN LATERAL (SELECT m.value, m.deleted FROM mesh.memory m
   WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND m.type = k.type AND m.scope = k.scope AND m.key = k.key
   ORDER BY m.version DESC LIMIT 1) n
 WHERE k.key IS NOT NULL ORDER BY k.type, k.key
"""

# Why it was written: what a person said, or the node and the intent it happened at.
HISTORY = """
SELECT m.type, m.key, m.value, m.version, m.origin, m.trusted, m.deleted, m.at, m.trace_id, m.step_id, m.reason, s.node, t.agent,
  t.intent FROM mesh.memory m LEFT JOIN mesh.traces t ON t.id = m.trace_id AND t.tenant_id = m.tenant_id
  LEFT JOIN mesh.steps s ON s.id = m.step_id AND s.tenant_id = m.tenant_id
 WHERE m.tenant_id = %(tenant)s AND m.context_id = %(context)s AND m.type = %(type)s AND m.scope = %(scope)s AND m.key = %(key)s
 ORDER BY m.version DESC LIMIT %(limit)s
"""

# A short-term entry is its trace's: whoever else writes it takes the trace's row before the context's.
LOCK_TRACE = "SELECT 1 FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s FOR NO KEY UPDATE"

VERSION = """
SELECT version, value, deleted, trusted FROM mesh.memory WHERE tenant_id = %(tenant)s AND context_id = %(context)s
  AND type = %(type)s AND scope = %(scope)s AND key = %(key)s AND version = coalesce(%(version)s, version)
 ORDER BY version DESC LIMIT 1
"""

SEARCH = """
SELECT key, value, version, origin, trusted, at, ts_rank(words, q) AS rank FROM (
  SELECT DISTINCT ON (key) * FROM mesh.memory
   WHERE tenant_id = %(tenant)s AND context_id = %(context)s AND type = 'long_term' ORDER BY key, version DESC) m,
  websearch_to_tsquery('simple', %(text)s) q
 WHERE words @@ q AND NOT deleted ORDER BY rank DESC, key LIMIT %(limit)s
"""


class Embedders(Protocol):
    """What wiring hands over: the embedders of this process."""

    def announced(self) -> dict[str, Json] | None:
        """The settings' own, as agents announce theirs."""
        ...

    def made(self, spec: dict[str, Json]) -> Embedder:
        """The one that was announced so."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """One version of one entry: what it says, who wrote it (`origin`; `trusted`: it is a person's word), and why.

    `trace_id`, `step_id`, `node`, `agent` and `intent` name where it was written; all None: outside of a trace.
    `reason` is what a person gave for it.
    """

    type: MemoryType
    key: str
    value: Json
    version: int
    origin: str
    trusted: bool
    deleted: bool
    at: datetime
    trace_id: UUID | None
    step_id: UUID | None
    node: str | None
    agent: str | None
    intent: str | None
    reason: str | None


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
        blobs: BlobStore | None = None, embedders: Embedders | None = None,
    ) -> None:  # fmt: skip
        """`embedders` makes what agents announced, and knows the settings' own; without it nothing is found by meaning."""
        self._db, self._blobs, self._embedders = db, blobs or BlobStore(db), embedders
        self._tenant, self._context, self._trace = tenant_id, context_id, trace_id

    def store(
        self, key: str, value: Json, memory_type: MemoryType = "long_term", *, origin: str = "api", trusted: bool = False,
        reason: str | None = None, newest: int | None = None,
    ) -> int:  # fmt: skip
        """Afterwards the entry's newest version, whose number is returned, is `value`, committed. With `newest`: only if
        that was its newest version until now (0: there was none).

        Raises Mistake for short-term without a trace, BadJson, PayloadTooLarge, MemoryChanged; BadMemory where it is not
        what an agent of this context declares.
        """
        self._own(memory_type)
        declared = self._declared()
        declared.check(memory_type, key, value)
        one = MemoryWrite(memory_type, key, self._shrunk(key, value), origin, trusted=trusted, reason=reason,
                          keep_s=declared.keep_s(memory_type, key), models=declared.models(memory_type))  # fmt: skip
        with self._db.begin() as tx:
            self._lock(tx, memory_type)
            now = self._expect(tx, memory_type, key, newest)
            self._written(tx, [one])
        return now + 1

    update = store

    def write(
        self, values: Mapping[str, Json], memory_type: MemoryType = "long_term", *, origin: str = "api"
    ) -> None:  # fmt: skip
        """Afterwards each of these entries has its value, in one commit. Raises what `store` raises."""
        self._own(memory_type)
        declared = self._declared()
        for key, value in values.items():
            declared.check(memory_type, key, value)
        writes = [
            MemoryWrite(
                memory_type,
                key,
                self._shrunk(key, value),
                origin,
                keep_s=declared.keep_s(memory_type, key),
                models=declared.models(memory_type),
            )
            for key, value in values.items()
        ]
        with self._db.begin() as tx:
            self._lock(tx, memory_type)
            self._written(tx, writes)

    def store_result(self, node: str, value: Json) -> None:
        """Keep what a node came to as the callback of a step keeps it: short-term, as `result:<node>`."""
        self.store(f"result:{node}", value, "short_term", origin="callback")

    def history(self, key: str, memory_type: MemoryType = "long_term", *, limit: int = 50) -> list[MemoryEntry]:
        """The versions of the entry, newest first. Raises UnknownMemory where there never was one."""
        self._own(memory_type)
        rows = self._db.read(HISTORY, self._at(memory_type, key) | {"limit": limit})
        if not rows:
            raise UnknownMemory("nothing was ever remembered under this key", value=f"{memory_type}:{key}",
                                next=f"agentmesh memory get {self._context}")  # fmt: skip
        return [MemoryEntry(**row | {"value": self._whole(row["value"])}) for row in rows]

    def revert(
        self, key: str, version: int, memory_type: MemoryType = "long_term", *, by: str, reason: str | None = None,
        newest: int | None = None,
    ) -> int:  # fmt: skip
        """Afterwards the entry's newest version says what `version` said, and is trusted as far as that was; its number.

        Nothing that was written is lost. `newest` as in `store`. Raises UnknownMemory, MemoryChanged, BadMemory.
        """
        self._own(memory_type)
        declared = self._declared()
        with self._db.begin() as tx:
            self._lock(tx, memory_type)
            now = self._expect(tx, memory_type, key, newest)
            old = tx.one(VERSION, self._at(memory_type, key) | {"version": version})
            if old is None:
                raise UnknownMemory("the entry has no such version", value=f"{memory_type}:{key} {version}",
                                    next=f"agentmesh memory history {self._context} {key}")  # fmt: skip
            if not old["deleted"]:
                declared.check(memory_type, key, self._whole(old["value"]))
            one = MemoryWrite(memory_type, key, old["value"], by, trusted=old["trusted"], deleted=old["deleted"],
                              reason=reason or f"revert to version {version}",
                              keep_s=declared.keep_s(memory_type, key),
                              models=() if old["deleted"] else declared.models(memory_type))  # fmt: skip
            self._written(tx, [one])
        return now + 1

    def retrieve(self, key: str, memory_type: MemoryType = "long_term") -> Json:
        """The newest value of the entry; None when there is none."""
        self._own(memory_type)
        return self._whole(self._newest().get(f"{memory_type}:{key}"))

    def snapshot(self) -> dict[str, Json]:
        """The newest value of every entry, by `type:key`; short-term ones are those of this engine's trace."""
        return {name: self._whole(value) for name, value in self._newest().items()}

    def query(
        self, text: str, *, by: Literal["words", "meaning"] = "words", limit: int = 10, model: str | None = None
    ) -> list[Row]:  # fmt: skip
        """Current long-term entries, best first, each with who wrote it (`origin`, `trusted`) and its `rank` or `score`.

        By words: those that have the words of `text` (web search syntax); a value that was put aside is not found. By
        meaning: those with a vector, nearest first; `model` names the vectors where agents of this context have several.
        Raises NoEmbedder, BadEmbedding, and what the embedder raises.
        """
        at = {"tenant": self._tenant, "context": self._context}
        if by == "words":
            found = self._db.once(SEARCH, at | {"text": text, "limit": limit})
        else:
            name, embedder = self.embedder(model)
            [vector] = unit_vectors(embedder, [text[: vectors.MOST_CHARS]], within_s=QUERY_S)
            near = vectors.nearest(self._db, self._tenant, self._context, name, vector, limit=limit)
            if near.unknown:
                vectors.owe(self._db, self._tenant, self._context, name)
            found = [
                {key: row[key] for key in ("key", "value", "version", "origin", "trusted", "at", "score")}
                for row in near.rows
                if row["score"] is not None
            ]
        return [row | {"value": self._whole(row["value"])} for row in found]

    def embedder(self, model: str | None = None) -> tuple[str, Embedder]:
        """What this context is searched by, with the name of its vectors. Raises NoEmbedder."""
        known = self._known()
        if self._embedders is None or not known or (model is not None and model not in known):
            raise NoEmbedder("nothing makes the vectors that this context would be searched by", value=model,
                             expected=f"one of {', '.join(known)}" if known else None)  # fmt: skip
        name = model or next(iter(known))
        return name, self._embedders.made(known[name])

    def owe(self) -> dict[str, Json]:
        """Afterwards every current long-term entry has the vectors it is to have, or is owed them now; by what: the declared
        embedders by the names of their vectors."""
        known = self._known()
        for name in known:
            vectors.owe(self._db, self._tenant, self._context, name, again=True)
        return known

    def waiting(self, model: str | None = None) -> int:
        """How many entries have no vector yet, and are not found by meaning."""
        name = model or next(iter(self._known()), "")
        return len(vectors.waiting(self._db, self._tenant, name, self._context))

    def _known(self) -> dict[str, Json]:
        """What its agents announced, else the settings' own: the specs of embedders by the names of their vectors."""
        known = {name: said["spec"] for name, said in self._declared().embedders().items()}
        own = None if known or self._embedders is None else self._embedders.announced()
        return known if own is None else {own["vectors"]: own["spec"]}

    def _written(self, tx: Tx, writes: Sequence[MemoryWrite]) -> None:
        """The entries are written, and who wrote which stands in the audit."""
        write(tx, self._tenant, self._context, self._trace, writes)
        for one in writes:
            tx.all(NOTE, {"tenant": self._tenant, "action": "MEMORY_WRITE", "said": said(
                one.origin, context=self._context, entry=f"{one.type}:{one.key}", reason=one.reason,
                trace_id=self._trace and str(self._trace),
            )})  # fmt: skip

    def _newest(self) -> dict[str, Json]:
        return newest(self._db, self._tenant, self._context, self._trace or new_id())

    def _whole(self, value: Json) -> Json:
        return self._blobs.expand(self._tenant, value)

    def _declared(self) -> Templates:
        from agentmesh.state.templates import of_context  # noqa: PLC0415 - a schema library that only writers need

        return of_context(self._db, self._tenant, self._context)

    def _shrunk(self, key: str, value: Json) -> Json:
        return self._blobs.shrink(self._tenant, value, what=f"memory {key}")

    def _at(self, memory_type: MemoryType, key: str) -> dict[str, Any]:
        scope = str(self._trace) if memory_type == "short_term" else ""
        return {"tenant": self._tenant, "context": self._context, "type": memory_type, "scope": scope, "key": key}

    def _lock(self, tx: Tx, memory_type: MemoryType) -> None:
        """From now on nobody else writes such entries: versions read in later statements are the newest."""
        if memory_type == "short_term":
            tx.one(LOCK_TRACE, {"trace": self._trace, "tenant": self._tenant})
        tx.one(LOCK, {"tenant": self._tenant, "context": self._context, "n": 0})

    def _expect(self, tx: Tx, memory_type: MemoryType, key: str, newest: int | None) -> int:
        row = tx.one(VERSION, self._at(memory_type, key) | {"version": None})
        now: int = row["version"] if row else 0
        if newest is not None and newest != now:
            raise MemoryChanged("somebody else has written this entry since", value=f"{memory_type}:{key} {now}",
                                expected=f"version {newest}", next=f"agentmesh memory history {self._context} {key}")  # fmt: skip
        return now

    def _own(self, memory_type: str) -> None:
        if memory_type not in {"short_term", "long_term"}:
            raise Mistake("this memory type does not exist", value=memory_type, expected="short_term or long_term")
        if memory_type == "short_term" and self._trace is None:
            raise Mistake("short-term memory belongs to a trace", expected="an engine made with trace_id")
