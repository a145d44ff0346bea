"""The Timetable: what begins by the clock, whose clock it goes by, and what becomes of the moments that were missed.

Every agent worker looks, not the leading one alone: the envelopes are signed with the mesh's key, which tool workers have
not. Where several see one moment, one of them moves the schedule on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog

from agentmesh.behavior.router import make_intent
from agentmesh.communication.client import DirectClient
from agentmesh.errors import BadRule, MeshError, NoSigningKey, ScheduleTaken, UnknownSchedule
from agentmesh.infrastructure.cron import following
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.faults import point
from agentmesh.state import schedules, traces

log = structlog.get_logger("agentmesh.schedule")

BATCH = 100
FRESH = timedelta(seconds=60)
"""A moment that is older than this was missed."""


class Timetable:
    """Schedules, and their firing."""

    def __init__(self, db: Database, *, client_of: Callable[[str], DirectClient]) -> None:
        self._db, self._client_of = db, client_of

    def fire(self) -> None:
        """Afterwards what was due has begun. One bad schedule stops nothing."""
        for row in schedules.due(self._db, batch=BATCH):
            try:
                self._fire(row)
            except NoSigningKey:
                continue  # another worker has this tenant's key
            except (psycopg.Error, MeshError) as exc:
                log.warning("a schedule was not fired", id=row["id"], error=str(exc).splitlines()[0])

    def _fire(self, row: Row) -> None:
        at, next_at = moments(row, row["now"])
        if at is None:
            self._pass(row, next_at)
            return
        try:
            intent = make_intent(
                row["intent"], f"schedule:{row['id']}", row["agent"], row["context_id"],
                {"scheduled_at": at.isoformat()} | row["payload"], priority=row["priority"],
                permissions=row["permissions"],
            )  # fmt: skip
            trace = self._client_of(row["tenant_id"]).send_if(
                intent, lambda tx: schedules.move_on(tx, row, next_at, fired=True)
            )
        except NoSigningKey:
            raise
        except MeshError as exc:
            self._pass(row, next_at, error=exc)
            raise
        point("timer.after_fire")
        if trace is not None:
            log.info("fired", schedule=row["id"], trace_id=str(trace), at=at.isoformat())

    def _pass(self, row: Row, next_at: datetime | None, *, error: MeshError | None = None) -> None:
        said = None if error is None else {"code": error.code, "message": str(error)}
        with self._db.checkout() as tx:
            schedules.move_on(tx, row, next_at, fired=False, error=said)

    # --- by hand and from files

    def add(self, tenant: str, name: str, *, by: str, declared: bool = False, **asked: Any) -> datetime:
        """The schedule stands; the moment it comes next. Raises BadRule, ScheduleTaken, or what dispatch refuses."""
        context = asked.pop("context_id", None) or f"schedule:{name}"
        make_intent(asked["intent"], f"schedule:{name}", asked["agent"], context, asked["payload"])
        first = datetime.fromisoformat(following(asked["cron"], asked["timezone"], traces.now(self._db)))
        row = {"tenant_id": tenant, "id": name, "context_id": context, "declared": declared, "next_at": first,
               "permissions": None, **asked}  # fmt: skip
        if not schedules.put(self._db, row, by=by):
            raise ScheduleTaken("another schedule has this name, and an agent's file declares it", value=name)
        return first

    def declare(self, tenant: str, agent: str, specs: Mapping[str, Mapping[str, Any]]) -> None:
        """Afterwards the agent's schedules are those that its file declares. Raises what `add` raises."""
        schedules.keep_only(self._db, tenant, agent, [f"{agent}.{name}" for name in specs])
        for name, spec in specs.items():
            self.add(tenant, f"{agent}.{name}", by="mesh", declared=True, agent=agent, **spec)

    def remove(self, tenant: str, name: str, *, by: str) -> None:
        """The schedule is gone. Raises UnknownSchedule, or ScheduleTaken for one that an agent's file declares."""
        if schedules.remove(self._db, tenant, name, by=by):
            return
        if any(row["id"] == name for row in schedules.listed(self._db, tenant)):
            raise ScheduleTaken("an agent's file declares this schedule", value=name)
        raise UnknownSchedule("no schedule has this name", value=name)


def moments(row: Row, now: datetime) -> tuple[datetime | None, datetime | None]:
    """The moment to fire for now (None: it was missed, and is skipped), and the one to wait for then (None: none comes)."""
    due: datetime = row["next_at"]
    if row["missed"] == "all":
        return due, _next(row, due)
    if row["missed"] == "skip" and now - due > FRESH:
        fresh = _next(row, now - FRESH)
        return (fresh if fresh is not None and fresh <= now else None), _next(row, now)
    return due, _next(row, now)


def _next(row: Row, after: datetime) -> datetime | None:
    try:
        return datetime.fromisoformat(following(row["cron"], row["timezone"], after))
    except BadRule:
        return None
