"""Celery's tasks: `agent.<name>` and `tool.<name>`, each a doorbell that is handed on, and nothing else.

A task's arguments are believed about nothing. What a tool task returns are the rings that recording its result led to:
the chord's result backend rings them; a call that was rung alone rings them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery import Celery

from agentmesh.communication.hardening import strip_foreign_canvas
from agentmesh.communication.server import ACPServer
from agentmesh.records import Ring

Handler = Callable[[Ring], Sequence[Ring]]


def register_tasks(
    app: Celery, *, server: ACPServer, queues: Mapping[str, str], ring: Callable[[Sequence[Ring]], None]
) -> None:
    """Register a task for each name of `queues` ("agent.x" or "tool.y": the queue it is rung on)."""
    app.agentmesh_ring = ring
    for name, queue in queues.items():
        _register(app, server, name, queue)


def _register(app: Celery, server: ACPServer, name: str, queue: str) -> None:
    @app.task(name=name, bind=True, ignore_result=True, typing=False)  # type: ignore[untyped-decorator]
    def rung(self: Any, *args: Any, **kwargs: Any) -> Any:
        strip_foreign_canvas(self)
        kind, row, epoch = [*args[:3], None, None, None][:3]
        rings = tuple(server.receive(queue, kind, row, epoch, kwargs.get("envelope"), task=name) or ())
        if rings and not self.request.chord:
            app.agentmesh_ring(rings)
        return rings


def task_names(agents: Iterable[tuple[str, str]], tools: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The queue of each task, for agents and tools given as (name, queue)."""
    return {f"agent.{name}": queue for name, queue in agents} | {f"tool.{name}": queue for name, queue in tools}
