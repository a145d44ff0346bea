"""The agents and tools of the workload WF. Each run of a tool and each answer of a reasoner is noted in the ledger, a
database outside the system under test, in a transaction of its own: how often something really ran is counted there.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from agentmesh import Later, ReasonerBase, ToolContext, register_callback, register_tool
from agentmesh.errors import Permanent
from agentmesh.execution.tools import TOOLS

HOME = Path(os.environ["STORY_HOME"])
TAG = os.environ["STORY_TAG"]
LEDGER = os.environ["FAULTS_LEDGER"]
if "FAULTS_MEMORY_MIB" in os.environ:
    limit = int(os.environ["FAULTS_MEMORY_MIB"]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
PARTS = 8
TURNS = 3


def note(kind: str, trace_id: Any, name: str, key: str, attempt: int, epoch: int) -> None:
    with psycopg.connect(LEDGER, autocommit=True) as ledger:
        ledger.execute(
            "INSERT INTO ran (kind, trace_id, name, idem_key, attempt, epoch, pid) VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (kind, trace_id, name, key, attempt, epoch, os.getpid()),
        )


def ran(ctx: ToolContext) -> None:
    note("tool", ctx.trace_id, ctx.tool, ctx.idempotency_key, ctx.attempt, ctx.epoch)


def wait_for(gate: str) -> None:
    while not (HOME / gate).exists():
        threading.Event().wait(0.01)


@register_tool("part", needs=["data:read"], queue=TAG, attempts=3)
def part(ctx: ToolContext, n: int) -> int:
    ran(ctx)
    return n * n


@register_tool("model", needs=["data:read"], queue=TAG)
def model(ctx: ToolContext, n: int) -> int:
    ran(ctx)
    raise Permanent("no model is configured")


@register_tool("here", needs=["data:read"], inline=True)
def here(ctx: ToolContext, n: int) -> int:
    ran(ctx)
    return n + 1


@register_tool("filed", needs=["data:read"], queue=TAG, tx=True)
def filed(ctx: ToolContext, n: int) -> int:
    ran(ctx)
    ctx.tx.exec_driver_sql("INSERT INTO filed VALUES (%(trace)s, %(key)s)", {
        "trace": ctx.trace_id, "key": ctx.idempotency_key,
    })  # fmt: skip
    return n


@register_tool("gated", needs=["data:read"], queue=TAG, attempts=3)
def gated(ctx: ToolContext, gate: str, n: int = 0) -> int:
    """Waits at the gate, but only the first time: whoever is killed here is not waited for again."""
    ran(ctx)
    if ctx.attempt == 1:
        wait_for(gate)
    return n * n


@register_tool("sleepy", needs=["data:read"], queue=TAG, timeout=0.5, attempts=1)
def sleepy(ctx: ToolContext, gate: str) -> str:
    """Far over its time: it comes back when the test says so."""
    ran(ctx)
    wait_for(gate)
    return "too late"


@register_tool("deaf", needs=["data:read"], queue=TAG, timeout=1, attempts=1)
def deaf(ctx: ToolContext, to: str) -> None:
    """Never ends by itself, and heeds nothing that could end it."""
    ran(ctx)
    if to == "signals":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if to == "threads":
        sum(itertools.repeat(0))  # in C, where no other thread of its process runs
    while True:
        with suppress(BaseException):
            threading.Event().wait(0.1)


@register_tool("asked", needs=["data:read"], queue=TAG, attempts=3)
def asked(ctx: ToolContext) -> int | Later:
    """Is answered later."""
    ran(ctx)
    return Later()


@register_tool("abort", needs=["data:read"], queue=TAG, attempts=3)
def abort(ctx: ToolContext) -> None:
    ran(ctx)
    os.abort()


@register_tool("greedy", needs=["data:read"], queue=TAG, attempts=3)
def greedy(ctx: ToolContext, mib: int) -> int:
    """Takes so much memory, and is counted first."""
    ran(ctx)
    kept = [bytearray(1 << 20) for _ in range(mib)]
    return len(kept)


@register_tool("big", needs=["data:read"], queue=TAG)
def big(ctx: ToolContext, size: int) -> str:
    ran(ctx)
    return "x" * size


if "FAULTS_WITHOUT" in os.environ:  # a release that has not got these tools
    for missing in os.environ["FAULTS_WITHOUT"].split(","):
        TOOLS.unregister(missing)


def calls(shape: str, payload: dict[str, Any], turn: int) -> dict[str, Any] | None:
    """The action of one turn of a trace of this shape; None when it is over."""
    n = int(payload.get("n", 0))
    tools: dict[str, list[list[dict[str, Any]]]] = {
        "serial": [[{"tool": "part", "args": {"n": n}}, {"tool": "filed", "args": {"n": n}}]],
        "parallel": [[{"tool": "part", "args": {"n": n + k}, "as": f"p{k}"} for k in range(PARTS)]],
        "fallback": [[{"tool": "model", "args": {"n": n}}, {"tool": "part", "args": {"n": n}}]],
        "loop": [[{"tool": "here", "args": {"n": k}}] for k in range(TURNS)],
        "memory": [[{"tool": "filed", "args": {"n": n}}]],
        "delegate": [[{"tool": "part", "args": {"n": n}}]],
        "given": [payload.get("tools", [])],
    }  # fmt: skip
    if turn >= len(tools[shape]):
        return None
    default = {"parallel": "parallel", "fallback": "fallback"}.get(shape, "serial")
    more = {"require": payload["require"]} if "require" in payload else {}
    return {"tools": tools[shape][turn], "strategy": payload.get("strategy", default), **more}


class Worker(ReasonerBase):
    """Takes the turns of its shape, then answers what it was given."""

    def select_action(self, session: Any) -> dict[str, Any]:
        note("reason", session.trace_id, "worker", f"{session.trace_id}:{session.iteration}", 0, 0)
        shape = session.payload.get("shape", "answer")
        action = None if shape == "answer" else calls(shape, session.payload, session.iteration)
        return action or {"answer": {"n": session.payload.get("n")}}


@register_callback("judge")
def judge(result: Any, session: Any) -> dict[str, Any]:
    """Ends the trace after its last turn: by delegating, with a memory, or with its result."""
    payload = session.payload
    shape = payload.get("shape", "answer")
    if shape == "loop" and session.iteration < TURNS - 1:
        return {"verdict": "continue"}
    if shape == "delegate":
        return {
            "verdict": "delegate",
            "to": f"child-{TAG}",
            "intent": "work",
            "payload": {"n": payload["n"]},
            "result": result,
        }
    memory = [{"key": f"n{payload['n']}", "value": payload["n"]}] if shape == "memory" else []
    return {"verdict": "finish", "result": result, "memory": memory}


class Child(ReasonerBase):
    def select_action(self, session: Any) -> dict[str, Any]:
        note("reason", session.trace_id, "child", f"{session.trace_id}:{session.iteration}", 0, 0)
        return {"answer": {"n": session.payload["n"]}}
