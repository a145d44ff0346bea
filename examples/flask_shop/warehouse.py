"""What the warehouse can do. Its workers import this, and nothing of the shop's web application."""

from __future__ import annotations

import sqlalchemy as sa

from agentmesh import ToolContext, register_tool
from agentmesh.errors import Permanent


@register_tool("pack_parcel", needs=["orders:ship"], timeout=5, tx=True)
def pack_parcel(ctx: ToolContext, number: int) -> str:
    """The parcel's label, written to the order in the transaction that records this result: once, whoever dies."""
    label = f"P-{number}"
    done = ctx.tx.execute(
        sa.text("UPDATE shop_orders SET parcel = :label WHERE number = :number"), {"label": label, "number": number}
    )
    if done.rowcount == 0:
        raise Permanent(f"there is no order {number}")
    return label
