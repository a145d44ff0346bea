"""Whether a running trace fits another plan, and its move there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from agentmesh.errors import DoesNotFit
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.infrastructure.database import Database
from agentmesh.state import announced, migration
from agentmesh.state.migration import Move

STEP_KINDS = {"for_each": ("tools",)}
"""What kinds of steps a node makes, where it is not its own kind."""


class Migrations:
    """Moves traces of one tenant to other plans."""

    def __init__(self, db: Database, *, tenant: str, plan: Callable[[str, str], BehaviorPlan]) -> None:
        self._db, self._tenant, self._plan = db, tenant, plan

    def plan(self, trace_id: UUID, to: BehaviorPlan, *, renamed: Mapping[str, str] | None = None) -> Move:
        """What moving the trace would do; nothing has changed. Raises UnknownTrace, or DoesNotFit."""
        was, steps = migration.open_steps(self._db, tenant=self._tenant, trace_id=trace_id)
        if self._plan(self._tenant, was).branches or to.branches:
            raise DoesNotFit(
                "branches of a plan run beside one another", value=to.chain, expected="plans without needs"
            )
        return Move(trace_id, was, to.hash, migration.fit(steps, _kinds(to), renamed or {}))

    def migrate(self, move: Move, to: BehaviorPlan, *, by: str) -> None:
        """The trace follows the other plan, which is kept, from now on. Raises DoesNotFit where it has moved on meanwhile."""
        for one in to.all():
            announced.keep_plan(self._db, tenant_id=self._tenant, plan_hash=one.hash, chain=one.chain, body=one.kept)
        migration.migrate(self._db, move, tenant=self._tenant, kinds=_kinds(to), by=by)


def _kinds(plan: BehaviorPlan) -> dict[str, tuple[str, ...]]:
    """Which kinds of steps each of its nodes makes."""
    return {one.id: STEP_KINDS.get(one.kind, (one.kind,)) for one in plan.nodes}
