"""What begins by the clock: one row a schedule, and the moment it comes next.

Whoever moves that moment on has fired the schedule, in one guarded UPDATE, and in the same transaction accepts what it
asks for: each moment is fired once, however many look.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from agentmesh.infrastructure.database import Database, Row, Tx, jsonb
from agentmesh.records import Json
from agentmesh.state.audit import said

COLUMNS = "tenant_id, id, agent, intent, context_id, payload, priority, cron, timezone, missed, declared, permissions"

# A moment that was missed while nobody looked is not forgotten by announcing the schedule again.
PUT = f"""
INSERT INTO mesh.schedules AS s ({COLUMNS}, next_at)
VALUES (%(tenant_id)s, %(id)s, %(agent)s, %(intent)s, %(context_id)s, %(payload)s::jsonb, %(priority)s, %(cron)s, %(timezone)s,
  %(missed)s, %(declared)s, %(permissions)s, %(next_at)s)
ON CONFLICT (tenant_id, id) DO UPDATE SET agent = excluded.agent, intent = excluded.intent, context_id = excluded.context_id,
  payload = excluded.payload, priority = excluded.priority, cron = excluded.cron, timezone = excluded.timezone,
  missed = excluded.missed, permissions = excluded.permissions, error = NULL,
  next_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.next_at ELSE excluded.next_at END
 WHERE s.declared = excluded.declared AND (NOT s.declared OR s.agent = excluded.agent)
RETURNING id, CASE WHEN NOT declared THEN mesh.audit_note(tenant_id, 'SCHEDULE_ADD', %(said)s::jsonb) END
"""

UNDECLARED = """
DELETE FROM mesh.schedules WHERE tenant_id = %(tenant)s AND agent = %(agent)s AND declared AND id <> ALL(%(ids)s::text[])
"""

DUE = f"""
SELECT {COLUMNS}, next_at, mesh.mesh_now() AS now FROM mesh.schedules WHERE next_at <= mesh.mesh_asof()
 ORDER BY next_at LIMIT %(batch)s
"""

MOVE_ON = """
UPDATE mesh.schedules SET next_at = %(next_at)s, error = %(error)s::jsonb, fired = fired + %(fired)s::int,
  fired_at = CASE WHEN %(fired)s THEN mesh.mesh_now() ELSE fired_at END
 WHERE tenant_id = %(tenant)s AND id = %(id)s AND next_at = %(was)s AND cron = %(cron)s AND timezone = %(timezone)s
"""

LIST = f"""
SELECT {COLUMNS}, next_at, fired_at, fired, error FROM mesh.schedules WHERE tenant_id = %(tenant)s AND id > %(after)s
 ORDER BY id LIMIT %(limit)s
"""


def put(db: Database, row: dict[str, Any], *, by: str) -> bool:
    """The schedule stands as `row` says; False where its name is taken, by a file's or by another agent's file."""
    noted = said(
        by, schedule=row["id"], agent=row["agent"], intent=row["intent"], cron=row["cron"], timezone=row["timezone"]
    )
    return bool(db.once(PUT, row | {"payload": jsonb(row["payload"]), "said": noted}))


def keep_only(db: Database, tenant: str, agent: str, ids: Sequence[str]) -> None:
    """Afterwards the files' schedules of this agent are these."""
    db.once(UNDECLARED, {"tenant": tenant, "agent": agent, "ids": list(ids)})


def remove(db: Database, tenant: str, name: str, *, by: str) -> bool:
    """True when the schedule, which no file declared, is gone."""
    sql = "DELETE FROM mesh.schedules WHERE tenant_id = %(tenant)s AND id = %(id)s AND NOT declared"
    noting = " RETURNING id, mesh.audit_note(tenant_id, 'SCHEDULE_REMOVE', %(said)s::jsonb)"
    return bool(db.once(sql + noting, {"tenant": tenant, "id": name, "said": said(by, schedule=name)}))


def listed(db: Database, tenant: str, *, after: str = "", limit: int = 10_000) -> list[Row]:
    """Schedules by name, behind `after`."""
    return db.read(LIST, {"tenant": tenant, "after": after, "limit": limit})


def due(db: Database, *, batch: int) -> list[Row]:
    """Schedules whose moment has come, and what time it is."""
    return db.once(DUE, {"batch": batch})


def move_on(tx: Tx, row: Row, next_at: datetime | None, *, fired: bool, error: Json = None) -> bool:
    """True when this moved the schedule on from the moment that `row` shows; False when somebody else has."""
    return tx.count(MOVE_ON, {
        "tenant": row["tenant_id"], "id": row["id"], "was": row["next_at"], "cron": row["cron"],
        "timezone": row["timezone"], "next_at": next_at, "fired": fired, "error": jsonb(error),
    }) == 1  # fmt: skip
