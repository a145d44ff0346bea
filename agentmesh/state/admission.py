"""Which held traces may be queued: the lanes of an agent, the room in them, and the one way out of `held` by a limit.

How full a lane is, its traces say themselves, so that nothing has to be counted off when one ends, however it ends. The
row of a lane is what its admissions lock: lane → trace, and whoever holds a trace never asks for a lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import psycopg

from agentmesh.infrastructure.database import Database, Row
from agentmesh.records import Ring

WHOLE = ""  # the lane of a whole agent, which is locked where it has a total; no key in JSON is empty
HELD = "t.status = 'held' AND t.waits_for = 'limit'"
DUE = f"{HELD} AND t.paused_at IS NULL AND (t.wake_at IS NULL OR t.wake_at <= mesh.mesh_asof())"
OPEN = "o.status IN ('queued','running','waiting') AND o.lane IS NOT NULL"

# Reads `l` (tenant_id, agent, lane) and `a.limits`. Counting ends where the limit is reached.
ROOM = f"""
((a.limits->>'concurrency' IS NULL OR (a.limits->>'concurrency')::int > (SELECT count(*) FROM (SELECT FROM mesh.traces o
   WHERE o.tenant_id = l.tenant_id AND o.agent = l.agent AND o.lane = l.lane AND {OPEN}
   LIMIT (a.limits->>'concurrency')::int) x))
 AND (a.limits->>'total' IS NULL OR (a.limits->>'total')::int > (SELECT count(*) FROM (SELECT FROM mesh.traces o
   WHERE o.tenant_id = l.tenant_id AND o.agent = l.agent AND {OPEN} LIMIT (a.limits->>'total')::int) x))
 AND (a.limits->>'rate_n' IS NULL OR NOT EXISTS (SELECT FROM (SELECT o.admitted_at FROM mesh.traces o
   WHERE o.tenant_id = l.tenant_id AND o.agent = l.agent AND o.lane = l.lane AND o.admitted_at IS NOT NULL
   ORDER BY o.admitted_at DESC OFFSET (a.limits->>'rate_n')::int - 1 LIMIT 1) x
   WHERE x.admitted_at > mesh.mesh_asof() - make_interval(secs => (a.limits->>'rate_s')::float8))))
"""

# From lane to lane by the index, over however many traces each of them holds.
LANES = f"""
WITH RECURSIVE l AS (
 (SELECT t.tenant_id, t.agent, t.lane, t.priority FROM mesh.traces t WHERE {DUE} AND {{first}}
   ORDER BY t.tenant_id, t.agent, t.lane, t.priority DESC LIMIT 1)
 UNION ALL SELECT n.* FROM l CROSS JOIN LATERAL (
   SELECT t.tenant_id, t.agent, t.lane, t.priority FROM mesh.traces t WHERE {DUE} AND {{next}}
   ORDER BY t.tenant_id, t.agent, t.lane, t.priority DESC LIMIT 1) n)
SELECT l.tenant_id, l.agent, l.lane, l.priority, {ROOM} AS room
 FROM (SELECT *, row_number() OVER () AS place FROM (SELECT * FROM l LIMIT %(batch)s) seen) l
 LEFT JOIN LATERAL (SELECT g.spec->'limits' AS limits FROM mesh.agents g WHERE g.tenant_id = l.tenant_id AND g.id = l.agent) a
   ON true ORDER BY l.place
"""

ALL = LANES.format(
    first="(t.tenant_id, t.agent, t.lane) > (%(tenant)s, %(agent)s, %(lane)s)",
    next="(t.tenant_id, t.agent, t.lane) > (l.tenant_id, l.agent, l.lane)",
)
OF_AGENT = LANES.format(
    first="t.tenant_id = %(tenant)s AND t.agent = %(agent)s AND t.lane > %(lane)s",
    next="t.tenant_id = l.tenant_id AND t.agent = l.agent AND t.lane > l.lane",
)

LOCK = """
INSERT INTO mesh.lanes AS n (tenant_id, agent, key) SELECT %(tenant)s, %(agent)s, x.key FROM (
  SELECT %(lane)s AS key UNION SELECT '' FROM mesh.agents g
   WHERE g.tenant_id = %(tenant)s AND g.id = %(agent)s AND g.spec->'limits' ? 'total') x ORDER BY x.key COLLATE "C"
ON CONFLICT (tenant_id, agent, key) DO UPDATE SET looked_at = mesh.mesh_now()
"""

# In a statement after LOCK: what others have admitted to the lane since is seen. The room is looked at once, not once for
# each trace that waits, and by parameters, so that no plan reads the table.
_ROOM = ROOM.replace("l.tenant_id", "%(tenant)s").replace("l.agent", "%(agent)s").replace("l.lane", "%(lane)s")
ADMIT = f"""
WITH a AS (SELECT g.spec->'limits' AS limits FROM mesh.agents g WHERE g.tenant_id = %(tenant)s AND g.id = %(agent)s),
 r AS MATERIALIZED (SELECT 1 AS one FROM a WHERE {_ROOM}),
 n AS (SELECT t.id FROM mesh.traces t WHERE EXISTS (SELECT one FROM r) AND {DUE} AND t.tenant_id = %(tenant)s
    AND t.agent = %(agent)s AND t.lane = %(lane)s ORDER BY t.priority DESC, t.id LIMIT 1)
UPDATE mesh.traces t SET status = 'queued', waits_for = NULL, admitted_at = mesh.mesh_now(), rung_at = mesh.mesh_now()
 FROM n WHERE t.id = n.id AND t.tenant_id = %(tenant)s AND t.paused_at IS NULL AND {HELD}
RETURNING t.id, t.epoch, t.queue, t.agent, t.priority
"""

# What its parent waits for runs in the place of that one: else the two could wait for each other for ever.
IN_A_PLACE = """
WITH RECURSIVE up AS (
  SELECT parent_id, parent_call_id, lane FROM mesh.traces WHERE id = %(trace)s AND tenant_id = %(tenant)s
  UNION ALL SELECT p.parent_id, p.parent_call_id, p.lane FROM mesh.traces p JOIN up ON p.id = up.parent_id
   WHERE p.tenant_id = %(tenant)s AND up.parent_call_id IS NOT NULL)
SELECT 1 FROM up WHERE lane IS NOT NULL LIMIT 1
"""

FORGET = "DELETE FROM mesh.lanes WHERE looked_at < mesh.mesh_asof() - interval '1 day'"


class Lane(NamedTuple):
    """The traces of one agent whose intents have one key."""

    tenant_id: str
    agent: str
    key: str


BEFORE_ALL = Lane("", "", "")


class Waiting(NamedTuple):
    """A lane that holds traces, the highest priority among them, and whether it seems to have room."""

    lane: Lane
    priority: int
    room: bool


def waiting(db: Database, after: Lane, *, batch: int) -> list[Waiting]:
    """The next lanes that hold traces, in the order of their names, of every tenant."""
    return _waiting(db, ALL, after, batch)


def waiting_beside(db: Database, lane: Lane, *, batch: int) -> list[Waiting]:
    """The lanes of the same agent that hold traces, beginning after this one and ending with it."""
    later = _waiting(db, OF_AGENT, lane, batch)
    first = _waiting(db, OF_AGENT, lane._replace(key=""), batch)
    return later + [one for one in first if one.lane not in {other.lane for other in later}]


def admit(db: Database, lane: Lane) -> Ring | None:
    """The next held trace of the lane is queued: the highest priority, then the oldest; its ring. None: no room, or none."""
    at = {"tenant": lane.tenant_id, "agent": lane.agent, "lane": lane.key}
    with db.begin() as tx:
        tx.count(LOCK, at)
        row = tx.one(ADMIT, at)
        if row is None:
            raise psycopg.Rollback
        return Ring("trace", row["id"], row["epoch"], row["queue"], f"agent.{row['agent']}", row["id"], row["priority"])
    return None


def has_total(db: Database, lane: Lane) -> bool:
    """Whether the lanes of this agent share their places."""
    sql = "SELECT 1 FROM mesh.agents WHERE tenant_id = %(tenant)s AND id = %(agent)s AND spec->'limits' ? 'total'"
    return bool(db.once(sql, {"tenant": lane.tenant_id, "agent": lane.agent}))


def in_a_place(db: Database, *, tenant: str, trace_id: UUID) -> bool:
    """Whether this trace, or one that waits for it, was admitted by a limit."""
    return bool(db.read(IN_A_PLACE, {"tenant": tenant, "trace": trace_id}))


def forget(db: Database) -> None:
    """Afterwards lanes that nobody has used for a day have no row."""
    db.once(FORGET)


def _waiting(db: Database, sql: str, after: Lane, batch: int) -> list[Waiting]:
    rows: Sequence[Row] = db.once(
        sql, {"tenant": after.tenant_id, "agent": after.agent, "lane": after.key, "batch": batch}
    )
    return [
        Waiting(Lane(row["tenant_id"], row["agent"], row["lane"]), row["priority"], bool(row["room"])) for row in rows
    ]
