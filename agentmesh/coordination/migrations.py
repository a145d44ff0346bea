"""Whether a running trace fits another plan, and its move there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from agentmesh.errors import DoesNotFit
from agentmesh.execution import plan as plans
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
        names: dict[str, str] = dict(renamed or {})
        if self._plan(self._tenant, was).branches or to.branches:
            raise DoesNotFit(
                "branches of a plan run beside one another", value=to.chain, expected="plans without needs"
            )
        nodes: dict[str, str] = {}
        known = {one.id: _kinds(one) for one in to.nodes}
        for step in steps:
            node: str = names.get(step["node"]) or step["node"]
            if step["kind"] not in known.get(node, ()):
                raise DoesNotFit(
                    "an open step has no place in the other plan", value=f"{step['node']} ({step['kind']})",
                    expected=f"a node of its kind among {', '.join(sorted(known))}; name it with --map old=new",
                )  # fmt: skip
            nodes[step["node"]] = node
        return Move(trace_id, was, to.hash, nodes)

    def migrate(self, move: Move, to: BehaviorPlan, *, by: str) -> None:
        """The trace follows the other plan, which is kept, from now on. Raises DoesNotFit where it has moved on meanwhile."""
        for one in to.all():
            announced.keep_plan(self._db, tenant_id=self._tenant, plan_hash=one.hash, chain=one.chain, body=one.body())
        kinds = {one.id: _kinds(one) for one in to.nodes}
        migration.migrate(self._db, move, tenant=self._tenant, kinds=kinds, by=by)


def _kinds(node: plans.Place) -> tuple[str, ...]:
    kind: str = node.kind  # type: ignore[attr-defined]
    return STEP_KINDS.get(kind, (kind,))
