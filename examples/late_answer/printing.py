"""A tool whose answer comes days later, from outside."""

from __future__ import annotations

from agentmesh import Later, ToolContext, register_tool


@register_tool("order_print", needs=["print:order"], effect="keyed")
def order_print(ctx: ToolContext, title: str, copies: int) -> dict[str, str] | Later:
    """Order copies of a book. The printing house is asked here, under ctx.idempotency_key, and is given
    ctx.callback_url to post {"result": {"parcel": "…"}} to when they are on their way."""
    ctx.log.info("ordered", title=title, copies=copies)
    return Later(within_s=14 * 86_400)
