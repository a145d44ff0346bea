"""Accepting intents: the rows that make work exist, and nothing else.

One statement inserts trace, envelope and BIR_DISPATCH of any number of intents. It runs in a transaction of its own or
inside a caller's; either way nothing is rung from here. Keys of idempotency have their own table and are looked up in
a second statement, so that the loser of a race sees what the winner committed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID

import psycopg
import sqlalchemy as sa

from agentmesh.errors import DatabaseUnreachable, KeyConflict, KeyContended, OutcomeUnknown, TraceTaken
from agentmesh.infrastructure.counts import transition
from agentmesh.infrastructure.database import Database, Row, Tx, jsonb, retry_transient
from agentmesh.records import Json, named, origin_of
from agentmesh.state.changes import NewTrace, plain

FIELDS = """x(id uuid, envelope_id uuid, tenant_id text, context_id text, agent text, intent text, from_id text,
  queue text, permissions text[], payload jsonb, kid text, jws text, policy jsonb, priority smallint, locale text,
  delay_s float8, parent_id uuid, root_id uuid, depth int, idem_key text, digest text, parent_call_id uuid,
  plan_hash text, lane text, body jsonb)"""

TRACE_COLUMNS = """(id, tenant_id, context_id, agent, intent, from_id, queue, permissions, payload, policy, priority,
  locale, wake_at, rung_at, status, seq, lane, waits_for, parent_id, root_id, depth, plan_hash, parent_call_id)"""

TRACE_VALUES = """x.context_id, x.agent, x.intent, x.from_id, x.queue, x.permissions, x.payload, coalesce(x.policy, '{}'),
  x.priority, x.locale, mesh.mesh_now() + make_interval(secs => x.delay_s),
  CASE WHEN x.delay_s IS NULL AND x.lane IS NULL THEN mesh.mesh_now() END,
  CASE WHEN x.lane IS NULL THEN 'queued' ELSE 'held' END, 1, x.lane, CASE WHEN x.lane IS NOT NULL THEN 'limit' END"""

# What a paused trace sends waits for its resume.
CHILD_VALUES = TRACE_VALUES.replace(
    "x.lane IS NULL THEN 'queued'", "t.paused_at IS NULL AND x.lane IS NULL THEN 'queued'"
).replace("CASE WHEN x.lane IS NOT NULL", "CASE WHEN t.paused_at IS NOT NULL THEN 'parent' WHEN x.lane IS NOT NULL")

ACCEPT = f"""
WITH x AS MATERIALIZED (SELECT * FROM jsonb_to_recordset(CAST(%(rows)s AS jsonb)) AS {FIELDS}),
 t AS (INSERT INTO mesh.traces {TRACE_COLUMNS}
   SELECT x.id, x.tenant_id, {TRACE_VALUES}, x.parent_id, coalesce(x.root_id, x.id), x.depth, x.plan_hash,
     x.parent_call_id FROM x),
 v AS (INSERT INTO mesh.envelopes (id, tenant_id, trace_id, kid, jws, idem_key)
   SELECT x.envelope_id, x.tenant_id, x.id, x.kid, x.jws, x.idem_key FROM x),
 e AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
   SELECT x.id, 1, x.tenant_id, 'BIR_DISPATCH', x.body FROM x)
SELECT count(*) AS accepted FROM x
"""

INSERT_CHILDREN = f"""
 k AS (INSERT INTO mesh.traces {TRACE_COLUMNS}
   SELECT x.id, t.tenant_id, {CHILD_VALUES}, t.id, t.root_id, t.depth + 1, x.plan_hash, x.parent_call_id
   FROM t, jsonb_to_recordset(%(children)s::jsonb) AS {FIELDS}),
 kv AS (INSERT INTO mesh.envelopes (id, tenant_id, trace_id, kid, jws)
   SELECT x.envelope_id, t.tenant_id, x.id, x.kid, x.jws
   FROM t, jsonb_to_recordset(%(children)s::jsonb) AS {FIELDS}),
 ke AS (INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body)
   SELECT x.id, 1, t.tenant_id, 'BIR_DISPATCH', x.body
   FROM t, jsonb_to_recordset(%(children)s::jsonb) AS {FIELDS})
"""

CLAIM_KEYS = """
INSERT INTO mesh.idempotency (tenant_id, operation, key, trace_id, digest)
SELECT x.tenant_id, 'dispatch', x.idem_key, x.id, x.digest
  FROM jsonb_to_recordset(CAST(%(rows)s AS jsonb)) AS x(tenant_id text, idem_key text, id uuid, digest text)
 ORDER BY x.tenant_id, x.idem_key
ON CONFLICT DO NOTHING
"""

READ_KEYS = """
SELECT i.tenant_id, i.key, i.trace_id, i.digest FROM mesh.idempotency i
  JOIN jsonb_to_recordset(CAST(%(rows)s AS jsonb)) AS x(tenant_id text, idem_key text)
    ON i.tenant_id = x.tenant_id AND i.operation = 'dispatch' AND i.key = x.idem_key
"""

FIRST = """
SELECT i.trace_id, i.digest, v.id AS envelope_id FROM mesh.idempotency i
  LEFT JOIN mesh.envelopes v ON v.trace_id = i.trace_id AND v.tenant_id = i.tenant_id
 WHERE i.tenant_id = %(tenant)s AND i.operation = 'dispatch' AND i.key = %(key)s
"""

TOUCH = "UPDATE mesh.envelopes SET kid = kid WHERE trace_id = ANY(%(ids)s) AND tenant_id = %(tenant)s"

AGENT = """
SELECT id, queue, intents, accepts, version, spec->'limits' AS limits, w.waiting FROM mesh.agents,
 (SELECT count(*)::int AS waiting FROM (
   SELECT 1 FROM mesh.traces WHERE status = 'queued' AND tenant_id = %(tenant)s LIMIT %(most)s) q) w
 WHERE tenant_id = %(tenant)s ORDER BY id
"""

HOPS = """
WITH RECURSIVE h AS (SELECT parent_id, agent, depth FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s
 UNION ALL SELECT t.parent_id, t.agent, t.depth FROM h JOIN mesh.traces t ON t.id = h.parent_id AND t.tenant_id = %(tenant)s)
SELECT agent FROM h ORDER BY depth
"""

BATCH = 500
CONTENDED = (psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable)
REFUSED = (
    *CONTENDED, psycopg.errors.DeadlockDetected, psycopg.errors.QueryCanceled, psycopg.errors.DiskFull,
)  # fmt: skip


class Runs(Protocol):
    """Something that runs one statement and gives rows: our Tx, or a caller's connection."""

    def all(self, sql: str, params: dict[str, Any]) -> list[Row]: ...


class Borrowed:
    """A caller's SQLAlchemy connection behind the same face as our Tx."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def all(self, sql: str, params: dict[str, Any]) -> list[Row]:
        text = sa.text(re.sub(r"%\((\w+)\)s", r":\1", sql))
        result = self.connection.execute(text, params)
        return [dict(row._mapping) for row in result] if result.returns_rows else []


def rows_of(traces: Sequence[NewTrace]) -> list[dict[str, Json]]:
    return [
        plain(one)
        | {"body": {"intent": one.intent, "from": one.from_id, "to": one.agent, "permissions": list(one.permissions),
                    "key": one.kid}
           | (named(one.by) if one.by else {})
           | ({"lane": one.lane} if one.lane else {})
           | ({"call": str(one.parent_call_id)} if one.parent_call_id else {})
           | ({"webhook": origin_of(one.policy["webhook"]["url"])} if (one.policy or {}).get("webhook") else {})}
        for one in traces
    ]  # fmt: skip


child_rows = rows_of


def insert(run: Runs, traces: Sequence[NewTrace]) -> list[UUID]:
    """Insert what is new; the id each intent is known by, in order: its own, or that of the first with its key.

    Raises KeyConflict when a key was first used with another payload; then the caller must roll back.
    """
    keyed = [one for one in traces if one.idem_key is not None]
    known: dict[tuple[str, str], Row] = {}
    if keyed:
        keys = {"rows": jsonb([plain(one) for one in keyed])}
        try:
            run.all(CLAIM_KEYS, keys)
            known = {(row["tenant_id"], row["key"]): row for row in run.all(READ_KEYS, keys)}
        except (psycopg.OperationalError, sa.exc.OperationalError) as exc:
            if isinstance(getattr(exc, "orig", exc), CONTENDED):
                raise KeyContended("the idempotency key is being used by another transaction") from exc
            raise
    ids, fresh = [], []
    for one in traces:
        first = known.get((one.tenant_id, one.idem_key)) if one.idem_key is not None else None
        if first is None or first["trace_id"] == one.id:
            fresh.append(one)
            ids.append(one.id)
            continue
        if first["digest"] != one.digest:
            raise conflict(first["trace_id"])
        ids.append(first["trace_id"])
    for start in range(0, len(fresh), BATCH):
        run.all(ACCEPT, {"rows": jsonb(rows_of(fresh[start : start + BATCH]))})
    return ids


@transition("dispatch")
def accept(db: Database, traces: Sequence[NewTrace]) -> list[UUID]:
    """Accept in a transaction of our own; durable when it returns. See `insert` for the ids and errors.

    Raises DatabaseUnreachable when the server refused it again and again (a deadlock, a lock), and OutcomeUnknown when
    the answer to COMMIT was lost and repeating the same write did not settle it.
    """

    def once() -> list[UUID]:
        if len(traces) <= BATCH and all(one.idem_key is None for one in traces):
            with db.checkout() as tx:  # one statement: its own transaction
                return insert(tx, traces)
        with db.begin() as tx:
            return insert(tx, traces)

    try:
        return retry_transient(once)
    except REFUSED as exc:  # then nothing was written, whatever was lost before
        raise DatabaseUnreachable(f"the database refused the write: {exc}", value=str(traces[0].id)) from exc
    except (psycopg.errors.UniqueViolation, psycopg.OperationalError, psycopg.InterfaceError):
        return _settle(db, traces, once)


def _settle(db: Database, traces: Sequence[NewTrace], again: Callable[[], list[UUID]]) -> list[UUID]:
    """Repeat the write under the same ids; a unique violation on them means that the first one had committed."""
    try:
        try:
            return again()
        except psycopg.errors.UniqueViolation:
            with db.begin() as tx:
                known = _landed(tx, traces)
            if known is None:
                raise
            return known
    except (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnreachable) as exc:
        raise OutcomeUnknown("the answer to COMMIT was lost", value=str(traces[0].id)) from exc


def _landed(tx: Tx, traces: Sequence[NewTrace]) -> list[UUID] | None:
    """The ids of intents whose rows stand already, as `insert` gave them; None when some do not.

    Writes a row, so that its own commit waits for whatever the first one waited for.
    """
    keys = {"rows": jsonb([plain(one) for one in traces if one.idem_key is not None])}
    known = {(row["tenant_id"], row["key"]): row["trace_id"] for row in tx.all(READ_KEYS, keys)}
    ids = [known.get((one.tenant_id, one.idem_key), one.id) if one.idem_key else one.id for one in traces]
    at = {"ids": list(set(ids)), "tenant": traces[0].tenant_id}
    return ids if tx.count(TOUCH, at) == len(at["ids"]) else None


@transition("dispatch")
def accept_first(db: Database, trace: NewTrace) -> tuple[UUID, bool]:
    """Accept one intent, which may have come before: the id it is known by, and whether this made it.

    An intent with a key that names its own trace id is told from the first one by its envelope, which a retry over a
    network does not share. Raises KeyConflict and TraceTaken, and what `accept` raises; then nothing was written.
    """
    if trace.idem_key is None:
        return accept(db, [trace])[0], True
    key = {"tenant": trace.tenant_id, "key": trace.idem_key}
    found = db.read(FIRST, key)
    if not found:
        try:
            accept(db, [trace])
        except psycopg.errors.UniqueViolation:
            raise TraceTaken("another intent has this trace id", value=str(trace.id)) from None
        found = db.read(FIRST, key)
    if not found:  # its id had come before, under another key
        raise TraceTaken("another intent has this trace id", value=str(trace.id))
    first = found[0]
    if first["digest"] != trace.digest:
        raise conflict(first["trace_id"])
    return first["trace_id"], first["envelope_id"] == trace.envelope_id


def conflict(first: UUID) -> KeyConflict:
    return KeyConflict(f"the idempotency key was first used for another intent, trace {first}",
                       next=f"agentmesh trace show {first}")  # fmt: skip


def accept_within(connection: sa.Connection, traces: Sequence[NewTrace]) -> list[UUID]:
    """Accept inside a caller's transaction, in a savepoint with a lock time limit of 3 s.

    The caller's limit is put back; synchronous_commit is set on for this transaction and left on.
    """
    run = Borrowed(connection)
    with connection.begin_nested():
        before = run.all(
            "SELECT current_setting('lock_timeout') AS was, set_config('lock_timeout', '3s', true),"
            " set_config('synchronous_commit', 'on', true)",
            {},
        )[0]["was"]
        ids = insert(run, traces)
        run.all("SELECT set_config('lock_timeout', %(was)s, true)", {"was": before})
    return ids


def agents(db: Database, tenant_id: str, *, most: int = 0) -> dict[str, Row]:
    """Every announced agent of the tenant by name: queue, intents (None: any), accepts, version; and how many of the
    tenant's traces wait to begin, counted up to `most`."""
    return {row["id"]: row for row in db.read(AGENT, {"tenant": tenant_id, "most": most})}


def hops(db: Database, tenant: str, trace_id: UUID) -> list[str]:
    """The agents from the root of a tree down to this trace."""
    return [row["agent"] for row in db.read(HOPS, {"tenant": tenant, "trace": trace_id})]


def stands(db: Database, trace_id: UUID) -> bool:
    """Whether there is a row of this trace, in whatever state."""
    return bool(db.read("SELECT tenant_id FROM mesh.traces WHERE id = %(id)s", {"id": trace_id}))


def with_key(trace: NewTrace, key: str, digest: str) -> NewTrace:
    return replace(trace, idem_key=key, digest=digest)
