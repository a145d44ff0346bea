"""The agents and tools of the stories, as a user would write them; worker processes import this.

Every tool notes its runs in a file of its own story, outside the system under test: one line a run, appended whole.
A tool that waits at a gate goes on when the test makes the gate's file.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from agentmesh import ReasonerBase, ToolContext, register_callback, register_tool
from agentmesh.errors import Permanent

HOME = Path(os.environ["STORY_HOME"])
TAG = os.environ["STORY_TAG"]
SURE = 0.7  # the first vote says 0.6, the second 0.9


def ran(ctx: ToolContext) -> None:
    line = {"tool": ctx.tool, "key": ctx.idempotency_key, "attempt": ctx.attempt, "pid": os.getpid()}
    with (HOME / "ledger").open("ab", buffering=0) as ledger:
        ledger.write(json.dumps(line).encode() + b"\n")


def wait_for(gate: str) -> None:
    while not (HOME / gate).exists():
        threading.Event().wait(0.02)


# --- the journey


@register_tool("orders", needs=["data:read"], queue=TAG)
def orders(ctx: ToolContext, customer: int) -> list[int]:
    ran(ctx)
    return [customer * 10, customer * 10 + 1]


@register_tool("contract", needs=["data:read"], queue=TAG)
async def contract(ctx: ToolContext, customer: int) -> dict[str, int]:
    ran(ctx)
    return {"customer": customer, "since": 2019}


@register_tool("rate", needs=["data:read"], queue=TAG, inline=False)
def rate(ctx: ToolContext, text: str) -> str:
    ran(ctx)
    return "urgent" if "!" in text else "calm"


@register_tool("ask_model", needs=["data:read"], queue=TAG)
def ask_model(ctx: ToolContext, text: str) -> dict[str, float]:
    ran(ctx)
    raise Permanent("no model is configured")


@register_tool("vote", needs=["data:read"], queue=TAG)
def vote(ctx: ToolContext, text: str, turn: int) -> dict[str, float]:
    ran(ctx)
    return {"confidence": 0.3 + 0.3 * turn}


@register_tool("file_report", needs=["reports:write"], queue=TAG, tx=True)
def file_report(ctx: ToolContext, customer: int) -> dict[str, int]:
    ran(ctx)
    ctx.tx.exec_driver_sql("INSERT INTO filed VALUES (%(trace)s)", {"trace": ctx.trace_id})
    return {"report": customer}


class Analyst(ReasonerBase):
    """Three tools at once, then the model or the vote, again while that is unsure."""

    def select_action(self, session: Any) -> dict[str, Any]:
        text, customer = session.payload["text"], session.payload["customer"]
        if session.iteration == 0:
            tools = [
                {"tool": "orders", "args": {"customer": customer}},
                {"tool": "contract", "args": {"customer": customer}},
                {"tool": "rate", "args": {"text": text}},
            ]
            return {"tools": tools, "strategy": "parallel"}
        tools = [
            {"tool": "ask_model", "args": {"text": text}},
            {"tool": "vote", "args": {"text": text, "turn": session.iteration}},
        ]
        return {"tools": tools, "strategy": "fallback"}


@register_callback("judge")
def judge(result: Any, session: Any) -> dict[str, Any]:
    """Sure: hand the case to the archivist, and remember it. Unsure: once more."""
    if "confidence" not in result or result["confidence"] < SURE:
        return {"verdict": "continue"}
    customer = session.payload["customer"]
    return {
        "verdict": "delegate", "to": f"archivist-{TAG}", "intent": "file_report", "payload": {"customer": customer},
        "result": {"customer": customer, **result}, "memory": [{"key": "case", "value": result}],
    }  # fmt: skip


class Archivist(ReasonerBase):
    """One transactional tool, whose result ends the trace."""

    def select_action(self, session: Any) -> dict[str, Any]:
        return {"tools": [{"tool": "file_report", "args": {"customer": session.payload["customer"]}}]}


# --- work that can be interrupted


@register_tool("slow", needs=["data:read"], queue=TAG, attempts=3)
def slow(ctx: ToolContext, gate: str) -> str:
    """Waits at the gate, but only the first time: whoever is killed here is not waited for again."""
    ran(ctx)
    if ctx.attempt == 1:
        wait_for(gate)
    return f"attempt {ctx.attempt}"


@register_tool("once", needs=["data:read"], queue=TAG, effect="once")
def once(ctx: ToolContext, gate: str) -> str:
    ran(ctx)
    wait_for(gate)
    return "charged"


@register_tool("abort", needs=["data:read"], queue=TAG, attempts=1)
def abort(ctx: ToolContext, gate: str) -> str:
    """Takes its process with it, until the gate opens."""
    ran(ctx)
    if not (HOME / gate).exists():
        os.abort()
    return "survived"


@register_tool("stubborn", needs=["data:read"], queue=TAG, attempts=2)
def stubborn(ctx: ToolContext, gate: str) -> str:
    """Waits at a gate of each attempt."""
    ran(ctx)
    wait_for(f"{gate}-{ctx.attempt}")
    return f"attempt {ctx.attempt}"


@register_tool("rude", needs=["data:read"], queue=TAG, attempts=1)
def rude(ctx: ToolContext, api_key: str) -> str:
    """Fails, and says in its error what it should not."""
    ran(ctx)
    secret = os.environ["STORY_CANARY"]
    raise RuntimeError(f"cannot reach amqp://guest:{secret}@broker.example/ with password={secret}, token={secret}")


class Runner(ReasonerBase):
    """Calls the tools its payload names, or answers what it was given."""

    def select_action(self, session: Any) -> dict[str, Any]:
        if "tools" not in session.payload:
            return {"answer": dict(session.payload)}
        return {"tools": session.payload["tools"], "strategy": session.payload.get("strategy", "parallel")}
