"""A shop's module as EXPERIENCE shows it: tools of its own, and a Celery task that stays one for everybody else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from celery import Celery

from agentmesh import ToolContext, register_tool
from agentmesh.errors import Permanent

app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
delivered: list[str] = []


class MailDown(Exception):
    pass


@dataclass
class Order:
    number: int
    placed: date


@dataclass
class Receipt:
    order: str
    cents: int
    key: str


@register_tool("query_db", needs=["db:read"], timeout=5, attempts=3)
def query_db(ctx: ToolContext, customer: int, since: date) -> list[Order]:
    """Orders of one customer, newest first."""
    if customer < 0:
        raise Permanent("customer ids start at 1")
    return [Order(customer * 10, since)]


@register_tool("charge_card", needs=["pay:charge"], effect="keyed")
async def charge_card(ctx: ToolContext, order: str, cents: int) -> Receipt:
    return Receipt(order, cents, ctx.idempotency_key)


@app.task(name="shop.send_invoice", bind=True, autoretry_for=(MailDown,), max_retries=5, default_retry_delay=0)
def send_invoice(self: Any, order: str) -> str:
    """Fails once: the mail server comes back for the second try."""
    if self.request.retries == 0:
        raise MailDown("the mail server is away")
    return f"{order} sent on try {self.request.retries + 1} as {self.request.kwargs['order']}"


register_tool("send_invoice", task=send_invoice, needs=["mail:send"])


def complaints(session: Any) -> dict[str, Any]:
    """Look, charge and send, one after the other; a negative customer is looked up and nothing else."""
    order = session.payload["order"]
    look = {"tool": "query_db", "args": {"customer": order, "since": "2025-04-25"}}
    if order < 0:
        return {"tools": [look]}
    rest = [
        {"tool": "charge_card", "args": {"order": str(order), "cents": 500}},
        {"tool": "send_invoice", "args": {"order": str(order)}},
    ]
    return {"tools": [look, *rest], "strategy": "parallel"}
