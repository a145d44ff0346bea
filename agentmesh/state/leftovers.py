"""What stays behind when traces are gone: superseded memory, contexts of nobody, settled dead letters, workers long gone, and
values put aside that nothing refers to any more.

Everything is taken out in bounded batches, each a transaction of its own; what is deleted is what is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg

from agentmesh.infrastructure.database import Database, Row, Tx

BATCH = 1000
VERSIONS = 10_000
BLOBS = 64

CONTEXTS = """
SELECT id FROM mesh.contexts WHERE tenant_id = %(tenant)s AND id > %(after)s ORDER BY id LIMIT %(batch)s
"""

# A version goes where a newer one was written before the time asked for, and a minute (longer than any transaction) before the
# oldest trace began that could still go back. The oldest versions go first, so that no hole is left.
SUPERSEDED = """
SELECT m.id FROM mesh.memory m, LATERAL (SELECT least(%(before)s, min(coalesce(t.started_at, t.created_at)) - interval '1 min')
   AS at FROM mesh.traces t WHERE t.tenant_id = m.tenant_id AND t.context_id = m.context_id) floor
 WHERE m.tenant_id = %(tenant)s AND m.context_id = ANY(%(contexts)s) AND m.type = 'long_term' AND EXISTS (
   SELECT 1 FROM mesh.memory n WHERE n.tenant_id = m.tenant_id AND n.context_id = m.context_id AND n.type = m.type
    AND n.scope = m.scope AND n.key = m.key AND n.version > m.version AND n.at < floor.at)
 ORDER BY m.version LIMIT %(most)s
"""
LOCK_CONTEXTS = """
SELECT 1 FROM mesh.contexts WHERE tenant_id = %(tenant)s AND id = ANY(%(contexts)s) ORDER BY id FOR NO KEY UPDATE
"""
FORGET = f"DELETE FROM mesh.memory x WHERE x.id IN ({SUPERSEDED}) RETURNING (to_jsonb(x) - 'words')::text AS row"

EMPTY = """
DELETE FROM mesh.contexts c WHERE c.tenant_id = %(tenant)s AND c.id = ANY(%(contexts)s) AND c.created_at < %(before)s
 AND NOT EXISTS (SELECT 1 FROM mesh.traces t WHERE t.tenant_id = c.tenant_id AND t.context_id = c.id)
 AND NOT EXISTS (SELECT 1 FROM mesh.memory m WHERE m.tenant_id = c.tenant_id AND m.context_id = c.id) RETURNING c.id
"""
IN_USE = """
SELECT 1 FROM mesh.traces t WHERE t.tenant_id = %(tenant)s AND t.context_id = ANY(%(gone)s) UNION ALL
SELECT 1 FROM mesh.memory m WHERE m.tenant_id = %(tenant)s AND m.context_id = ANY(%(gone)s) LIMIT 1
"""

LETTERS = """
DELETE FROM mesh.dead_letters x WHERE x.id IN (SELECT d.id FROM mesh.dead_letters d WHERE d.tenant_id = %(tenant)s
  AND d.settled_at < %(before)s LIMIT %(batch)s) RETURNING to_jsonb(x)::text AS row
"""

WORKERS = """
DELETE FROM mesh.workers x WHERE x.id IN (SELECT w.id FROM mesh.workers w WHERE w.state <> 'alive' AND w.beat_at < %(before)s
   AND NOT EXISTS (SELECT 1 FROM mesh.traces t WHERE t.worker_id = w.id)
   AND NOT EXISTS (SELECT 1 FROM mesh.calls c WHERE c.worker_id = w.id) LIMIT %(batch)s) RETURNING to_jsonb(x)::text AS row
"""

OLD_BLOBS = "SELECT hash FROM mesh.blobs WHERE tenant_id = %(tenant)s AND touched_at < %(before)s"
REFERRED = """
SELECT DISTINCT m[1] AS hash FROM mesh.{table} x, regexp_matches(concat_ws(' ', {columns}),
  '"\\$blob": "([0-9a-f]{{64}})"', 'g') m WHERE x.tenant_id = %(tenant)s
"""
COLUMNS = """
SELECT c.table_name AS table, array_agg('x.' || quote_ident(c.column_name)) AS columns FROM information_schema.columns c
 WHERE c.table_schema = 'mesh' AND c.data_type = 'jsonb' AND c.table_name !~ '^events_' AND EXISTS (SELECT 1
   FROM information_schema.columns t
    WHERE t.table_schema = 'mesh' AND t.table_name = c.table_name AND t.column_name = 'tenant_id')
 GROUP BY 1 ORDER BY 1
"""
# Whoever refers to a value that nothing referred to has put it again first, which touches it.
DROP_BLOBS = """
DELETE FROM mesh.blobs x WHERE x.tenant_id = %(tenant)s AND x.hash = ANY(%(hashes)s) AND x.touched_at < %(before)s
RETURNING jsonb_build_object('hash', x.hash, 'value', convert_from(x.body, 'UTF8')::jsonb)::text AS row
"""


def contexts(db: Database, tenant: str) -> Iterator[list[str]]:
    """The tenant's contexts by name, in batches."""
    after = ""
    while found := db.once(CONTEXTS, {"tenant": tenant, "after": after, "batch": BATCH}):
        after = found[-1]["id"]
        yield [row["id"] for row in found]


def forget(tx: Tx, tenant: str, before: datetime, some: list[str]) -> list[Row]:
    """Superseded versions of these contexts' entries, which are gone; at most VERSIONS, so ask again."""
    given: dict[str, Any] = {"tenant": tenant, "before": before, "contexts": some, "most": 1}
    if not tx.all(SUPERSEDED, given):
        return []
    tx.all(LOCK_CONTEXTS, given)
    return tx.all(FORGET, given | {"most": VERSIONS})


def empty(db: Database, tenant: str, before: datetime, some: list[str]) -> int:
    """How many of these contexts are gone, because no trace and no memory belongs to them.

    Whoever begins with a context that is being deleted waits, and makes it anew; who had begun is seen by a later statement.
    """
    given: dict[str, Any] = {"tenant": tenant, "before": before, "contexts": some}
    gone: list[Row] = []
    with db.begin() as tx:
        gone = tx.all(EMPTY, given)
        if gone and tx.all(IN_USE, given | {"gone": [row["id"] for row in gone]}):
            gone = []
            raise psycopg.Rollback
    return len(gone)


def letters(tx: Tx, tenant: str, before: datetime) -> list[Row]:
    """Some of the dead letters that were settled before then, which are gone."""
    return tx.all(LETTERS, {"tenant": tenant, "before": before, "batch": BATCH})


def workers(tx: Tx, before: datetime) -> list[Row]:
    """Some of the workers that were last heard of before then, which are gone."""
    return tx.all(WORKERS, {"before": before, "batch": BATCH})


def unused_blobs(db: Database, tenant: str, before: datetime) -> list[str]:
    """Values put aside that were not touched since then, and that no row of the tenant refers to; one snapshot for all.

    Reads every JSON value of the tenant where there is one that old.
    """
    given = {"tenant": tenant, "before": before}
    with db.begin() as tx:
        tx.count("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        tx.count("SET LOCAL statement_timeout = 0")
        old = {row["hash"] for row in tx.all(OLD_BLOBS, given)}
        for row in tx.all(COLUMNS) if old else []:
            sql = REFERRED.format(table=row["table"], columns=", ".join(f"{one}::text" for one in row["columns"]))
            old -= {one["hash"] for one in tx.all(sql, given)}
        return sorted(old)
    return []


def drop_blobs(tx: Tx, tenant: str, before: datetime, hashes: list[str]) -> list[Row]:
    """Those of these values that still nobody has touched, which are gone."""
    return tx.all(DROP_BLOBS, {"tenant": tenant, "before": before, "hashes": hashes})
