"""Traces as people read them: a list newest first, one trace with everything under it, an id by its prefix.

Plain rows out; what they look like is the command line's business. Tool attempts that run right now are among the
attempts, with their progress: events of a tool appear only when its step has joined.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from uuid import UUID

from agentmesh.errors import Ambiguous, Mistake, TracePruned, UnknownPlan, UnknownTrace
from agentmesh.infrastructure.database import Database, Row
from agentmesh.state import pruning

ENDED = frozenset({"done", "failed", "cancelled"})
STATUSES = ("held", "queued", "running", "waiting", *sorted(ENDED))
MAX_PAGE = 200
FILTERS = {
    "status": "status", "agent": "agent", "intent": "intent", "context": "context_id", "from": "from_id",
    "parent": "parent_id::text",
}  # fmt: skip
STEERABLE = {
    "pause": "t.status IN ('held', 'queued', 'running', 'waiting') AND t.paused_at IS NULL",
    "resume": "t.status IN ('held', 'queued', 'running', 'waiting') AND t.paused_at IS NOT NULL",
    "cancel": "t.status IN ('held', 'queued', 'running', 'waiting')",
    "retry": "t.status = 'failed'",
}
"""What a verb can change."""
_PREFIX = re.compile(r"[0-9a-f]{1,32}\Z")

_HEADER = """t.id, t.context_id, t.parent_id, t.root_id, t.agent, t.intent, t.from_id, t.status, t.priority, t.steps, t.depth,
 t.created_at, t.started_at, t.ended_at, t.wake_at, t.paused_at,
 extract(epoch FROM coalesce(t.ended_at, mesh.mesh_asof()) - t.created_at)::float8 AS seconds"""

ONE = f"""
SELECT {_HEADER}, t.permissions, t.policy, t.payload, t.result, t.error, t.waits_for, t.epoch, t.queue,
 t.plan_hash, t.agent_version,
 (SELECT w.name FROM mesh.workers w WHERE w.id = t.worker_id) AS worker
 FROM mesh.traces t WHERE t.id = %(id)s AND t.tenant_id = %(tenant)s
"""  # noqa: S608 - our own columns

# What models cost: of decisions that were taken, and of those that failed. Who notes an event may put anything into it.
ASKED = """
SELECT step_id, max(model) AS model, max(served) AS served, array_agg(finish) AS finishes,
  sum(input)::bigint AS input_tokens, sum(output)::bigint AS output_tokens,
  sum(cost)::float8 AS cost_usd
 FROM (SELECT step_id, said->>'model' AS model, said->>'served' AS served, coalesce(said->>'finish', 'error') AS finish,
    CASE jsonb_typeof(said->'input_tokens') WHEN 'number'
     THEN least(greatest((said->>'input_tokens')::numeric, 0), 1e15) END AS input,
    CASE jsonb_typeof(said->'output_tokens') WHEN 'number'
     THEN least(greatest((said->>'output_tokens')::numeric, 0), 1e15) END AS output,
    CASE jsonb_typeof(said->'cost_usd') WHEN 'number'
     THEN least(greatest((said->>'cost_usd')::numeric, 0), 1e15) END AS cost
   FROM (SELECT step_id, CASE name WHEN 'EXEC_ROLLBACK' THEN body->'error' ELSE body END AS said FROM mesh.events
     WHERE trace_id = %(id)s AND tenant_id = %(tenant)s AND name IN ('REASONER_PROMPT', 'EXEC_ROLLBACK')) e
   WHERE said ? 'model') m GROUP BY step_id
"""

STEPS = f"""
SELECT id, ordinal, node, iteration, kind, phase, status, require, slots, pending, wins, failures, losses, action, output, error,
 created_at, started_at, ended_at, wake_at, waits_for, model, served, finishes, input_tokens, output_tokens, cost_usd,
 extract(epoch FROM coalesce(ended_at, mesh.mesh_asof())
   - CASE kind WHEN 'tools' THEN created_at ELSE coalesce(started_at, created_at) END)::float8 AS seconds
 FROM mesh.steps LEFT JOIN ({ASKED}) asked ON step_id = id
 WHERE trace_id = %(id)s AND tenant_id = %(tenant)s AND kind <> 'group' ORDER BY ordinal
"""  # noqa: S608 - our own statement

CALLS = """
SELECT id, step_id, slot, idx, slot_mode, tool, label, args, effect, inline, status, queue, epoch, n, failures, losses,
 max_losses, max_attempts, result, error, created_at, ended_at, wake_at, child_trace_id
 FROM mesh.calls WHERE step_id IN (SELECT s.id FROM mesh.steps s WHERE s.trace_id = %(id)s) AND tenant_id = %(tenant)s
  AND kind = 'tool' ORDER BY step_id, slot, idx
"""

ATTEMPTS = """
SELECT a.id, a.step_id, a.call_id, a.kind, a.n, a.epoch, a.child, a.started_at, a.ended_at, a.outcome, a.error, a.progress, a.log,
 (SELECT w.name FROM mesh.workers w WHERE w.id = a.worker_id) AS worker,
 extract(epoch FROM coalesce(a.ended_at, mesh.mesh_asof()) - a.started_at)::float8 AS seconds
 FROM mesh.attempts a WHERE a.step_id IN (SELECT s.id FROM mesh.steps s WHERE s.trace_id = %(id)s)
  AND a.tenant_id = %(tenant)s ORDER BY a.started_at, a.n
"""

CHILDREN = f"""
SELECT {_HEADER} FROM mesh.traces t WHERE t.parent_id = %(id)s AND t.tenant_id = %(tenant)s ORDER BY t.id
"""  # noqa: S608 - our own columns

BELOW = """
WITH RECURSIVE p AS (
  SELECT hash, body FROM mesh.plans WHERE tenant_id = %(tenant)s AND hash = %(hash)s
  UNION SELECT c.hash, c.body FROM p CROSS JOIN LATERAL jsonb_each_text(p.body->'chains') x
    JOIN mesh.plans c ON c.tenant_id = %(tenant)s AND c.hash = x.value)
SELECT hash, body FROM p
"""
DRAWN = 16  # levels

EVENTS = """
SELECT seq, name, at, step_id, call_id, body FROM mesh.events
 WHERE trace_id = %(id)s AND tenant_id = %(tenant)s AND seq > %(after)s ORDER BY seq LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One trace: its row, and the rows under it, each in the order it came to be."""

    trace: Row
    steps: Sequence[Row]
    calls: Sequence[Row]
    attempts: Sequence[Row]
    children: Sequence[Row]

    @property
    def ended(self) -> bool:
        return self.trace["status"] in ENDED


def parse_filter(text: str | None) -> dict[str, str]:
    """What `status:failed agent:mailer` asks for. Raises Mistake for a word that is no filter."""
    found: dict[str, str] = {}
    for word in (text or "").split():
        key, colon, value = word.partition(":")
        if not colon or not value or key not in FILTERS:
            raise Mistake("a filter is not understood", value=word, expected=f"{':… '.join(FILTERS)}:…",
                          next="agentmesh trace list --help")  # fmt: skip
        if key == "status" and value not in STATUSES:
            raise Mistake("no trace has such a status", value=value, expected=f"one of {', '.join(STATUSES)}",
                          next="agentmesh trace list --help")  # fmt: skip
        found[key] = value
    return found


def traces(
    db: Database, tenant: str, *, where: Mapping[str, str] | None = None, limit: int = 20, before: UUID | None = None,
    verb: str | None = None,
) -> list[Row]:  # fmt: skip
    """At most `limit` traces that match `where` (as parse_filter gives it), newest first, older than `before`.

    With a `verb`: of those that it can change.
    """
    conditions, given = _matching(tenant, where, verb)
    older = " AND t.id < %(before)s" if before else ""
    return db.once(
        f"SELECT {_HEADER} FROM mesh.traces t WHERE {conditions}{older} ORDER BY t.id DESC LIMIT %(limit)s",  # noqa: S608
        given | {"limit": min(limit, MAX_PAGE), "before": before},
    )


def resolve(db: Database, tenant: str, given: str) -> UUID:
    """The id that `given` means: a whole one, a prefix that only one trace has, or @last, the newest that no other
    trace made. Raises UnknownTrace or Ambiguous."""
    if given == "@last":
        rows = db.once(
            "SELECT id FROM mesh.traces WHERE tenant_id = %(tenant)s AND parent_id IS NULL ORDER BY id DESC LIMIT 1",
            {"tenant": tenant},
        )
        if not rows:
            raise UnknownTrace("there is no trace yet", value=given, next="agentmesh submit")
        return UUID(str(rows[0]["id"]))
    digits = given.strip().lower().replace("-", "")
    if not _PREFIX.match(digits):
        raise UnknownTrace("this is no id of a trace", value=given)
    rows = db.once(
        "SELECT id FROM mesh.traces WHERE tenant_id = %(tenant)s AND id BETWEEN %(low)s AND %(high)s ORDER BY id LIMIT 4",
        {"tenant": tenant, "low": UUID(digits.ljust(32, "0")), "high": UUID(digits.ljust(32, "f"))},
    )
    if not rows:
        raise gone(db, tenant, UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")), given)
    if len(rows) > 1:
        listed = ", ".join(str(row["id"]) for row in rows[:3]) + (" …" if len(rows) > 3 else "")
        raise Ambiguous("more than one trace begins so", value=given, expected=f"one of {listed}")
    return UUID(str(rows[0]["id"]))


def plan(db: Database, tenant: str, given: str) -> dict[str, Any]:
    """The body of the plan whose hash is this or begins so, with those below it. Raises UnknownPlan or Ambiguous."""
    rows = db.once(
        "SELECT hash, body FROM mesh.plans WHERE tenant_id = %(tenant)s AND starts_with(hash, %(given)s) LIMIT 2",
        {"tenant": tenant, "given": given},
    )
    if not rows:
        raise UnknownPlan("no plan has this hash", value=given)
    if len(rows) > 1:
        raise Ambiguous("more than one plan begins so", value=given, expected="more of its hash")
    return _whole(
        rows[0]["body"],
        {row["hash"]: row["body"] for row in db.once(BELOW, {"tenant": tenant, "hash": rows[0]["hash"]})},
    )


def _whole(body: dict[str, Any], kept: dict[str, dict[str, Any]], deep: int = 0) -> dict[str, Any]:
    """The body with the plans below it in place of their hashes, as deep as anybody looks."""
    below = {
        name: _whole(kept[one], kept, deep + 1) if one in kept and deep < DRAWN else one
        for name, one in body.get("chains", {}).items()
    }
    return body | ({"chains": below} if below else {})


def trace(db: Database, tenant: str, trace_id: UUID) -> Timeline:
    """Everything under one trace, read in one snapshot each. Raises UnknownTrace."""
    key = {"id": trace_id, "tenant": tenant}
    with db.checkout() as tx:
        header = tx.one(ONE, key)
        if header is not None:
            return Timeline(
                header, tx.all(STEPS, key), tx.all(CALLS, key), tx.all(ATTEMPTS, key), tx.all(CHILDREN, key)
            )
    raise gone(db, tenant, trace_id, trace_id, str(trace_id))


def gone(db: Database, tenant: str, low: UUID, high: UUID, given: str) -> UnknownTrace:
    """Why there is no trace with an id from `low` to `high`: it was pruned, which says when and where it is archived, or there
    was none."""
    row = pruning.where(db, tenant, low, high)
    if row is None:
        return UnknownTrace("no trace has this id", value=given)
    kept = f"archived in {row['archive']}" if row["archive"] else "kept nowhere"
    when = row["at"].astimezone(UTC).isoformat(timespec="seconds")
    return TracePruned(f"this trace was pruned at {when} by {row['by']}, and is {kept}", value=given)


def events(db: Database, tenant: str, trace_id: UUID, *, after: int = 0, limit: int = 10_000) -> list[Row]:
    """The events of a trace in order, beginning behind number `after`."""
    return db.once(EVENTS, {"id": trace_id, "tenant": tenant, "after": after, "limit": limit})


# --- a page of what stands under a trace, for readers that want no more ------------------------------------------------

MEMORY = """
SELECT * FROM (SELECT DISTINCT ON (m.type, m.key) m.type, m.key, m.value, m.version, m.origin, m.trusted, m.deleted, m.at
  FROM mesh.memory m JOIN mesh.traces t ON t.tenant_id = m.tenant_id AND t.context_id = m.context_id AND t.id = %(id)s
 WHERE m.tenant_id = %(tenant)s AND (m.type = 'long_term' OR m.scope = %(scope)s)
 ORDER BY m.type, m.key, m.version DESC) newest WHERE NOT deleted ORDER BY type, key
"""

PARTS = {"steps": STEPS, "calls": CALLS, "attempts": ATTEMPTS, "memory": MEMORY}


def chain_of(db: Database, tenant: str, plan_hash: str | None) -> str | None:
    """The name of the chain that a plan was made from; None where there is no such plan, or it has no name."""
    sql = "SELECT nullif(chain, '') AS chain FROM mesh.plans WHERE tenant_id = %(tenant)s AND hash = %(hash)s"
    rows = db.read(sql, {"tenant": tenant, "hash": plan_hash}) if plan_hash else []
    return rows[0]["chain"] if rows else None


def header(db: Database, tenant: str, trace_id: UUID) -> Row:
    """The trace's own row. Raises UnknownTrace."""
    rows = db.read(ONE, {"id": trace_id, "tenant": tenant})
    if not rows:
        raise gone(db, tenant, trace_id, trace_id, str(trace_id))
    return rows[0]


def part(db: Database, tenant: str, trace_id: UUID, name: str, *, skip: int = 0, limit: int = MAX_PAGE) -> list[Row]:
    """Some of the trace's steps, calls, attempts or memory, in the order they came to be (memory: by name)."""
    given = {"id": trace_id, "tenant": tenant, "scope": str(trace_id), "skip": skip, "limit": limit}
    return db.read(f"{PARTS[name]} LIMIT %(limit)s OFFSET %(skip)s", given)


def count(
    db: Database, tenant: str, *, where: Mapping[str, str] | None = None, cap: int = 10_000, verb: str | None = None
) -> int:
    """How many traces match; one more than `cap` where there are more."""
    conditions, given = _matching(tenant, where, verb)
    rows = db.read(
        f"SELECT count(*) AS n FROM (SELECT 1 FROM mesh.traces t WHERE {conditions} LIMIT %(cap)s) x",  # noqa: S608
        given | {"cap": cap + 1},
    )
    return int(rows[0]["n"])


def heads(db: Database, watched: Sequence[tuple[str, UUID]]) -> dict[UUID, int]:
    """How many events each of these traces (tenant, id) has."""
    rows = db.read(
        "SELECT t.id, t.seq FROM mesh.traces t JOIN unnest(%(tenants)s::text[], %(ids)s::uuid[]) AS w(tenant_id, id)"
        " ON t.id = w.id AND t.tenant_id = w.tenant_id",
        {"tenants": [tenant for tenant, _ in watched], "ids": [one for _, one in watched]},
    )
    return {row["id"]: row["seq"] for row in rows}


def context(db: Database, tenant: str, context_id: str) -> Row | None:
    """The context's own row, and how many traces share it; None before the first of them has begun."""
    rows = db.once(
        "SELECT c.*, (SELECT count(*) FROM mesh.traces t WHERE t.tenant_id = c.tenant_id AND t.context_id = c.id) AS traces"
        " FROM mesh.contexts c WHERE c.tenant_id = %(tenant)s AND c.id = %(context)s",
        {"tenant": tenant, "context": context_id},
    )
    return rows[0] if rows else None


def signals(db: Database, tenant: str, trace_id: UUID) -> list[Row]:
    """The signals that a trace was sent; `step_id` None: no step has heard it yet."""
    return db.once(
        "SELECT name, key, payload, sent_by, step_id, at FROM mesh.signals WHERE trace_id = %(trace)s"
        " AND tenant_id = %(tenant)s ORDER BY id",
        {"tenant": tenant, "trace": trace_id},
    )


def newest(db: Database, tenant: str, trace_id: UUID, *, limit: int) -> list[Row]:
    """The last events of a trace, in order."""
    rows = db.once(
        "SELECT max(seq) AS last FROM mesh.events WHERE trace_id = %(trace)s AND tenant_id = %(tenant)s",
        {"trace": trace_id, "tenant": tenant},
    )
    return events(db, tenant, trace_id, after=max(0, (rows[0]["last"] or 0) - limit), limit=limit)


def _matching(tenant: str, where: Mapping[str, str] | None, verb: str | None = None) -> tuple[str, dict[str, Any]]:
    """The condition for traces that match `where`, and its values."""
    conditions = ["t.tenant_id = %(tenant)s", *(f"t.{FILTERS[key]} = %({key})s" for key in where or {})]
    conditions += [STEERABLE[verb]] if verb else []
    return " AND ".join(conditions), {"tenant": tenant, **(where or {})}
