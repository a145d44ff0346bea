"""What the chain of all kinds calls besides the tools of WF, whose ledger notes these, too."""

from __future__ import annotations

from typing import Any

from fault_parts import TAG, here, note, part, ran  # noqa: F401 - and with them the tools of WF

from agentmesh import ReasonerBase, ToolContext, register_callback, register_tool


@register_tool("book", needs=["data:read"], queue=TAG, compensate="unbook")
def book(ctx: ToolContext, n: int) -> int:
    ran(ctx)
    return n


@register_tool("unbook", needs=["data:read"], queue=TAG)
def unbook(ctx: ToolContext, args: dict[str, Any], result: int) -> None:
    ran(ctx)


class Planner(ReasonerBase):
    def select_action(self, session: Any) -> dict[str, Any]:
        note("reason", session.trace_id, "planner", f"{session.trace_id}:{session.iteration}", 0, 0)
        return {"tools": [{"tool": "part", "args": {"n": session.payload["n"]}}]}


@register_callback("keep")
def keep(result: Any, session: Any) -> dict[str, Any]:
    """Counts its own runs that were committed, for a result that is handled twice would be counted twice."""
    seen = session.memory.get("long_term:kept", 0)
    return {"memory": [{"key": "kept", "value": seen + 1}]}
