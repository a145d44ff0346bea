"""The work that is measured, ours and in bare Celery, and the worker processes that do it.

`python -m bench.parts mesh agents` and `… celery agents` are such workers; what they serve they are told by environment.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from uuid import uuid4

from celery import Celery, chord

from agentmesh import ToolContext, ToolRegistry, define_agent, register_tool
from agentmesh.infrastructure import logging
from agentmesh.infrastructure.settings import load
from agentmesh.wiring import Mesh, build

TAG = os.environ.get("BENCH_TAG", "bench")
CONCURRENCY = 8
PARTS = 3


# --- ours


def decide(session: Any) -> dict[str, Any]:
    """Answer at once, or ask for as many tools as the payload says and end with what they return."""
    wanted = session.payload["tools"]
    if not wanted:
        return {"answer": session.payload["n"]}
    uses = [{"tool": "double", "args": {"n": n}, "as": f"r{n}"} for n in range(wanted)]
    return {"tools": uses, "strategy": "parallel"}


def mesh(environ: dict[str, str]) -> Mesh:
    tools = ToolRegistry()

    @register_tool("double", queue=TAG, registry=tools)
    def double(ctx: ToolContext, n: int) -> int:  # noqa: ARG001
        return 2 * n

    agent = define_agent(f"worker-{TAG}", reasoner=decide, tools=["double"])
    settings = load(environ={k: v for k, v in environ.items() if k.startswith("AGENTMESH_")})
    return build(settings, tools=tools, agents={agent.agent: agent})


# --- the same in bare Celery


def bare(broker: str, backend: str) -> Celery:
    """Celery with its defaults, JSON, and a Redis backend; names and keys of this run only."""
    app = Celery("bench", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        result_backend_transport_options={"global_keyprefix": f"{TAG}."},
        result_expires=600,
    )

    @app.task(name="step")
    def step(n: int) -> int:
        return n

    @app.task(name="decide", ignore_result=True)
    def decide(parts: int, body_id: str) -> None:
        """What our reasoner does: choose the tools, and let them run; the chord's body is its callback."""
        header = [app.signature("double", args=(n,), queue=queue("tools")) for n in range(parts)]
        chord(header, body=app.signature("join", queue=queue("agents")), app=app).apply_async(task_id=body_id)

    @app.task(name="double")
    def double(n: int) -> int:
        return 2 * n

    @app.task(name="join")
    def join(results: list[int]) -> dict[str, int]:
        return {f"r{n}": one for n, one in enumerate(results)}

    return app


def queue(name: str) -> str:
    return f"{TAG}.{name}"


def send(app: Celery, work: str, n: int, producer: Any) -> str:
    """Start one run; the id under which its last result is found."""
    body_id = str(uuid4())
    if work == "task":
        return str(app.signature("step", queue=queue("agents")).apply_async((n,), producer=producer).id)
    if work == "one step":  # a decision, and the callback that handles it
        header = [app.signature("step", args=(n,), queue=queue("agents"))]
        body = app.signature("join", queue=queue("agents"))
        chord(header, body=body, app=app).apply_async(task_id=body_id, producer=producer)
        return body_id
    app.signature("decide", queue=queue("agents")).apply_async((PARTS, body_id), producer=producer)
    return body_id


# --- workers


def main(whose: str, kind: str) -> int:
    if whose == "mesh":
        logging.configure(format="text")
        return mesh(dict(os.environ)).work(kind, pool="threads", concurrency=CONCURRENCY)  # type: ignore[arg-type]
    app = bare(os.environ["BENCH_BROKER"], os.environ["BENCH_BACKEND"])
    worker = app.Worker(
        hostname=f"{TAG}-{kind}@bench", pool="threads", concurrency=CONCURRENCY, queues=[queue(kind)], loglevel="INFO",
        without_gossip=True, without_mingle=True,
    )  # fmt: skip
    worker.start()
    return worker.exitcode or 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
