"""The vectors of long-term memory entries: what makes them found by meaning.

A vector is of one version and of one model; those of different models are never compared. Its row comes without it, in the
commit of the entry or when somebody asks by that model, and is filled in afterwards: no model is asked in a transaction.
It goes with its entry. Search is exact: by pgvector where the database has it, else by arithmetic on arrays.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import psycopg

from agentmesh.infrastructure.database import Database, Row, jsonb
from agentmesh.records import Failure, Json

MOST_CHARS = 8000
"""Of an entry, as far as its embedder reads it."""

_NEWEST = """(SELECT DISTINCT ON (key) id, tenant_id, context_id, key, value, version, origin, trusted, deleted, at
   FROM mesh.memory WHERE tenant_id = %(tenant)s AND context_id = %(context)s AND type = 'long_term'
   ORDER BY key, version DESC)"""

OWE = f"""
INSERT INTO mesh.vectors (memory_id, model, tenant_id, context_id)
SELECT m.id, %(model)s, m.tenant_id, m.context_id FROM {_NEWEST} m WHERE NOT m.deleted ON CONFLICT DO NOTHING
"""

# Part of the statement that writes entries: `w` are their rows, x.models what they are to be embedded by.
INSERT_OWED = """
INSERT INTO mesh.vectors (memory_id, model, tenant_id, context_id)
SELECT w.id, m.model, w.tenant_id, w.context_id FROM w JOIN x ON x.id = w.id CROSS JOIN LATERAL unnest(x.models) AS m(model)
"""

TAKE = """
WITH due AS (SELECT memory_id FROM mesh.vectors WHERE vector IS NULL AND model = %(model)s AND wake_at <= mesh.mesh_asof()
   ORDER BY wake_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED)
UPDATE mesh.vectors v SET tries = v.tries + 1, wake_at = mesh.mesh_now() + make_interval(secs => %(lease_s)s)
 FROM due JOIN mesh.memory m ON m.id = due.memory_id
 WHERE v.memory_id = due.memory_id AND v.model = %(model)s AND v.vector IS NULL
RETURNING v.memory_id, v.tenant_id, v.tries, m.key, m.value, NOT EXISTS (SELECT 1 FROM mesh.memory n
   WHERE n.tenant_id = m.tenant_id AND n.context_id = m.context_id AND n.type = m.type AND n.scope = m.scope AND n.key = m.key
     AND n.version > m.version) AS newest
"""

# With the vector of an entry those of its earlier versions go, which nobody is shown any more.
FILL = """
WITH f AS (UPDATE mesh.vectors v SET vector = x.vector, dims = cardinality(x.vector), error = NULL
   FROM jsonb_to_recordset(%(rows)s::jsonb) AS x(memory_id uuid, vector real[])
   WHERE v.memory_id = x.memory_id AND v.model = %(model)s AND v.vector IS NULL RETURNING v.memory_id)
DELETE FROM mesh.vectors v USING f, mesh.memory m, mesh.memory o
 WHERE m.id = f.memory_id AND o.tenant_id = m.tenant_id AND o.context_id = m.context_id AND o.type = m.type
   AND o.scope = m.scope AND o.key = m.key AND o.version < m.version AND v.memory_id = o.id AND v.model = %(model)s
"""

FAIL = """
UPDATE mesh.vectors SET error = %(error)s::jsonb, wake_at = mesh.mesh_now() + make_interval(secs => %(after_s)s)
 WHERE memory_id = ANY(%(ids)s) AND model = %(model)s AND vector IS NULL
"""

DROP = "DELETE FROM mesh.vectors WHERE memory_id = ANY(%(ids)s) AND model = %(model)s AND vector IS NULL"

AGAIN = """
UPDATE mesh.vectors SET wake_at = mesh.mesh_now() WHERE tenant_id = %(tenant)s AND context_id = %(context)s AND model = %(model)s
  AND vector IS NULL
"""

# Those without a vector of this model come last, the newest first.
NEAREST = """
SELECT m.key, m.value, m.version, m.origin, m.trusted, m.at, {score} AS score,
  count(*) FILTER (WHERE v.vector IS NULL) OVER () AS waiting, count(*) FILTER (WHERE v.memory_id IS NULL) OVER () AS unknown
  FROM {newest} m LEFT JOIN mesh.vectors v ON v.memory_id = m.id AND v.model = %(model)s AND v.tenant_id = m.tenant_id
 WHERE NOT m.deleted ORDER BY score DESC NULLS LAST, m.at DESC, m.key LIMIT %(limit)s
"""

SCORE = "CASE WHEN v.dims = %(dims)s THEN {} END"
BY_ARRAYS = "(SELECT sum(a::float8 * b) FROM unnest(v.vector, %(query)s::real[]) AS u(a, b))"
BY_PGVECTOR = "-(v.vector::{0}.vector OPERATOR({0}.<#>) (SELECT %(query)s::real[]::{0}.vector))"

# Where the server has lost its library (another binary on the same data), it is as if it were not there.
PGVECTOR = """
SELECT quote_ident(n.nspname) AS name FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
  JOIN pg_available_extensions a ON a.name = e.extname WHERE e.extname = 'vector'
"""

WAITING = """
SELECT memory_id, context_id, tries, error->>'message' AS error FROM mesh.vectors
 WHERE tenant_id = %(tenant)s AND model = %(model)s
  AND vector IS NULL AND context_id = coalesce(%(context)s, context_id) ORDER BY error IS NULL, wake_at LIMIT 10000
"""

MODELS = """
SELECT model, count(vector) AS vectors, count(*) - count(vector) AS waiting, max(error->>'message') AS error
  FROM mesh.vectors WHERE tenant_id = %(tenant)s GROUP BY model ORDER BY model
"""

FORGOTTEN = (
    psycopg.errors.ForeignKeyViolation, psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable
)  # fmt: skip
"""How the server says that entries are being forgotten just now."""


@dataclass(frozen=True, slots=True)
class Found:
    """The nearest entries (`score`: the cosine; None: not compared), and how many of all have no vector yet: `waiting`; of
    them `unknown` were not even owed one."""

    rows: tuple[Row, ...]
    waiting: int = 0
    unknown: int = 0


def text_of(key: str, value: Json) -> str:
    """An entry as an embedder reads it."""
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return f"{key}: {said}"[:MOST_CHARS]


def owe(db: Database, tenant_id: str, context_id: str, model: str, *, again: bool = False) -> int:
    """Afterwards every current long-term entry of the context has a vector of this model, or is owed one; how many are new
    to it. `again`: also those that could not be embedded are tried at once."""
    at = {"tenant": tenant_id, "context": context_id, "model": model}
    try:
        with db.checkout() as tx:
            owed = tx.count(OWE, at)
            if again:
                tx.count(AGAIN, at)
            return owed
    except FORGOTTEN:
        return 0  # whoever asks next owes it


def take(db: Database, model: str, *, batch: int, lease_s: float) -> list[Row]:
    """Entries that are owed a vector, for nobody else to embed until `lease_s` from now: memory_id, tenant_id, key, value,
    tries, and whether this version is still the `newest`."""
    return db.once(TAKE, {"model": model, "batch": batch, "lease_s": lease_s})


def fill(db: Database, model: str, vectors: Mapping[UUID, Sequence[float]]) -> None:
    """Afterwards these entries have their vectors, but for those that are gone."""
    rows = [{"memory_id": str(one), "vector": list(vector)} for one, vector in vectors.items()]
    db.once(FILL, {"model": model, "rows": jsonb(rows)})


def fail(db: Database, model: str, ids: Collection[UUID], failure: Failure, *, after_s: float) -> None:
    """Afterwards these are due again after so long, and say why they have no vector."""
    db.once(FAIL, {"model": model, "ids": list(ids), "error": jsonb(failure.as_json()), "after_s": after_s})


def drop(db: Database, model: str, ids: Collection[UUID]) -> None:
    """Afterwards these are owed none."""
    db.once(DROP, {"model": model, "ids": list(ids)})


def nearest(
    db: Database, tenant_id: str, context_id: str, model: str, vector: Sequence[float] | None, *, limit: int
) -> Found:
    """The current long-term entries of a context, nearest first; None for `vector`: nothing is compared."""
    score = "NULL::float8"
    at: dict[str, Json] = {"tenant": tenant_id, "context": context_id, "model": model, "limit": limit}
    if vector is not None:
        found = db.read(PGVECTOR)
        score = SCORE.format(BY_PGVECTOR.format(found[0]["name"]) if found else BY_ARRAYS)
        at |= {"query": list(vector), "dims": len(vector)}
    rows = db.once(NEAREST.format(score=score, newest=_NEWEST), at)  # not twice, where it takes too long
    first = rows[0] if rows else {"waiting": 0, "unknown": 0}
    return Found(tuple(rows), first["waiting"], first["unknown"])


def waiting(db: Database, tenant_id: str, model: str, context_id: str | None = None) -> list[Row]:
    """Entries of the tenant (or of one context) that are owed a vector, at most 10,000: memory_id, context_id, tries, and the
    `error` of the last one (None: it was not tried). Those with one come first."""
    return db.read(WAITING, {"tenant": tenant_id, "model": model, "context": context_id})


def models(db: Database, tenant_id: str) -> list[Row]:
    """The models of the tenant: how many vectors it has of each, how many are to be made, and why one could not be."""
    return db.read(MODELS, {"tenant": tenant_id})
