"""What a refund agent can do: pay back, or leave it to a person."""

from __future__ import annotations

from agentmesh import ToolContext, register_tool


@register_tool("refund", needs=["refunds:pay"], timeout=10, effect="keyed")
def refund(ctx: ToolContext, order: int, cents: int) -> dict[str, str | int]:
    """Pay back this many cents of an order. Your bank is asked here, under ctx.idempotency_key."""
    return {"order": order, "cents": cents, "key": ctx.idempotency_key}


@register_tool("ask_person", needs=["people:ask"], timeout=5)
def ask_person(ctx: ToolContext, order: int, why: str) -> dict[str, str | int]:  # noqa: ARG001
    """Put an order on the list of those a person looks at. Your ticket system is asked here."""
    return {"order": order, "asked": why}
