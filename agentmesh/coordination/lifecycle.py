"""The AgentLifecycle: how an agent is, here and on each worker that hosts it, and whether it takes new work.

A paused agent starts no further trace; what has begun goes on to its end, and what is dispatched waits.
"""

from __future__ import annotations

from typing import Literal

from agentmesh.errors import UnknownAgent
from agentmesh.infrastructure.database import Database, Row
from agentmesh.state import announced

State = Literal["idle", "running", "paused", "error", "done"]


class AgentLifecycle:
    """The agents of one tenant."""

    def __init__(self, db: Database, *, tenant: str) -> None:
        self._db, self._tenant = db, tenant

    def pause(self, agent: str, *, by: str) -> bool:
        """No queued trace of the agent is claimed from now on; False: it was paused already. Raises UnknownAgent."""
        return self._set(agent, by, paused=True)

    def resume(self, agent: str, *, by: str) -> bool:
        """The agent takes new work; False: it did so already. Raises UnknownAgent."""
        return self._set(agent, by, paused=False)

    def agents(self, *, after: str = "", limit: int = 10_000) -> list[Row]:
        """Announced agents by name, behind `after`, each with its `state`."""
        rows = announced.agents(self._db, self._tenant, after=after, limit=limit)
        return [row | {"state": state_of(row)} for row in rows]

    def instances(self, agent: str) -> list[Row]:
        """The workers that host the agent or did so within a day, newest first, each with its `state`."""
        rows = announced.instances(self._db, self._tenant, agent)
        return [row | {"state": instance_state(row)} for row in rows]

    def _set(self, agent: str, by: str, *, paused: bool) -> bool:
        known = announced.set_paused(self._db, self._tenant, agent, paused=paused, by=by)
        if known is None:
            raise UnknownAgent("no worker has announced this agent", value=agent)
        return known


def state_of(row: Row) -> State:
    """error: work waits, and nobody is there to do it. done: nobody is there, and nothing waits."""
    if row["paused_at"] is not None:
        return "paused"
    if row["workers"] == 0:
        return "error" if row["queued"] or row["running"] else "done"
    return "running" if row["running"] else "idle"


def instance_state(row: Row) -> State:
    """error: it was lost. done: it has left."""
    if row["worker_state"] != "alive":
        return "done" if row["worker_state"] == "gone" else "error"
    if row["holds"]:
        return "running"
    return "paused" if row["paused_at"] is not None else "idle"
