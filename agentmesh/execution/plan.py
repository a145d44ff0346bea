"""The plan a trace is pinned to: nodes in order, canonical and hashed. Pure.

The default plan of an agent is reason → tools → callback: the reasoner decides, its tools run, the callback rules on
the result and may go round again. A callback runs on the step whose result it handles.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from agentmesh.infrastructure import jsontext
from agentmesh.records import Json, Name, Record

NodeKind = Literal["reason", "tools", "callback"]


class Node(Record):
    """One place in a plan. `next` None: the trace ends after it unless a verdict says otherwise."""

    id: Name
    kind: NodeKind
    next: Name | None = None


class BehaviorPlan(Record):
    """Nodes by which a trace moves; the first one starts it. Data: pinned, hashed, compared."""

    chain: Name
    nodes: tuple[Node, ...]

    @property
    def first(self) -> Node:
        return self.nodes[0]

    def node(self, name: str) -> Node:
        """Raises KeyError when the plan has no such node."""
        for one in self.nodes:
            if one.id == name:
                return one
        raise KeyError(name)

    def of_kind(self, kind: NodeKind) -> Node:
        return next(one for one in self.nodes if one.kind == kind)

    def body(self) -> Json:
        return self.model_dump(mode="json", exclude_none=True)

    @cached_property
    def hash(self) -> str:
        """sha256 over the canonical JSON: the same plan has the same hash everywhere."""
        return jsontext.digest(self.body())


def default_plan() -> BehaviorPlan:
    """reason → tools → callback, and round again while the callback says so."""
    return BehaviorPlan(
        chain="default",
        nodes=(
            Node(id="reason", kind="reason", next="tools"),
            Node(id="tools", kind="tools", next="callback"),
            Node(id="callback", kind="callback", next="reason"),
        ),
    )
