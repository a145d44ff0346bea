"""BehaviorChainEngine: run a plan that no agent's file names, and go on with a trace after whatever happened to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from agentmesh.behavior.router import make_intent
from agentmesh.communication.client import DirectClient, Trace
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.infrastructure.database import Database
from agentmesh.records import Json, Ring, new_id
from agentmesh.state import announced, traces
from agentmesh.state.blobs import BlobStore


class BehaviorChainEngine:
    """Executes plans on the agents of one tenant."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        client: DirectClient,
        *,
        tenant: str,
        ring: Callable[[Sequence[Ring]], None],
    ) -> None:
        self._db, self._blobs, self._client, self._tenant, self._ring = db, blobs, client, tenant, ring

    def execute(
        self, plan: BehaviorPlan, *, agent: str, payload: Mapping[str, Json] | None = None, intent: str | None = None,
        context_id: str | None = None, from_id: str = "engine",
    ) -> Trace:  # fmt: skip
        """A trace of this agent that follows the plan, accepted when this returns; the plan is kept under its hash.

        Its tools are the agent's. Raises what dispatch raises.
        """
        for one in plan.all():
            announced.keep_plan(self._db, tenant_id=self._tenant, plan_hash=one.hash, chain=one.chain, body=one.kept)
        made = make_intent(
            intent or plan.chain, from_id, agent, context_id or f"{plan.chain}-{new_id().hex[:20]}", dict(payload or {})
        )
        return self._client.send_along(made, plan_hash=plan.hash)

    def resume(self, trace_id: UUID) -> Trace:
        """The trace is rung where it stands; it goes on from its last commit. Raises UnknownTrace."""
        self._ring(traces.rings(self._db, self._tenant, trace_id))
        return Trace(trace_id, self._tenant, self._db, self._blobs)
