"""Forks: the same trace from an earlier step on, with changed input, in a context of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from agentmesh.communication.client import DirectClient, Trace
from agentmesh.errors import NotRewindable
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.infrastructure.database import Database
from agentmesh.records import Json, PolicyPatch, Ring, grants_cover, new_id
from agentmesh.state import forking
from agentmesh.state.blobs import BlobStore


class Forks:
    """Makes forks of the traces of one tenant."""

    def __init__(
        self, db: Database, blobs: BlobStore, client: DirectClient, *, tenant: str,
        plan: Callable[[str, str], BehaviorPlan], ring: Callable[[Sequence[Ring]], None],
    ) -> None:  # fmt: skip
        self._db, self._blobs, self._client, self._tenant = db, blobs, client, tenant
        self._plan, self._ring = plan, ring

    def fork(
        self, trace_id: UUID, at: int, *, changes: Mapping[str, Json] | None = None, policy: PolicyPatch | None = None,
        plan_hash: str | None = None, by: str, grants: Sequence[str] = ("*",),
    ) -> Trace:  # fmt: skip
        """A new trace that begins at the `at`-th step of this one: new keys, its memory as it was then, earlier steps kept.

        `changes` replace keys of the payload; it may do what this one may, as far as `grants` go. Raises UnknownTrace, or
        NotRewindable for a step that is not there, or that the other plan does not have.
        """
        of = forking.source(self._db, tenant=self._tenant, trace_id=trace_id)
        if of["plan_hash"] is None:
            raise NotRewindable("a trace that has not begun has no step to fork at", value=str(trace_id))
        chosen = plan_hash or of["plan_hash"]
        self._plan(self._tenant, chosen)
        payload: dict[str, Any] = self._blobs.expand(self._tenant, of["payload"]) or {}
        of = of | {"permissions": [one for one in of["permissions"] if grants_cover(grants, one)]}
        made = self._client.copy(
            of, payload=payload | dict(changes or {}), context_id=f"{of['context_id'][:100]}.fork-{new_id().hex[-12:]}"
        )
        given = policy.model_dump(mode="json", exclude_none=True) if policy else {}
        rings = forking.fork(self._db, made, of=of, ordinal=at, policy=of["policy"] | given, plan_hash=chosen, by=by)
        self._ring(rings)
        return Trace(made.id, self._tenant, self._db, self._blobs)
