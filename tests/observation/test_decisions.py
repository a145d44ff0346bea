"""A recorded decision point shows what its reasoner was shown, whatever came later."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.behavior.agents import define_agent
from agentmesh.behavior.session import Session
from agentmesh.errors import NoDecision
from agentmesh.execution.callbacks import HANDLERS, register_callback
from agentmesh.execution.tools import ToolRegistry, register_tool
from agentmesh.observation.decisions import point

FIELDS = [one for one in Session.__dataclass_fields__ if one != "notes"]


@pytest.fixture
def remember() -> Any:
    @register_callback("remember_n")
    def remember_n(result: Any, session: Session) -> dict[str, Any]:
        entry = {"key": "n", "value": [result, session.iteration], "type": "long_term"}
        return {"memory": [entry], "verdict": "finish" if "answer" in str(result) else "continue"}

    yield
    HANDLERS.pop("remember_n")


def test_a_point_is_what_the_reasoner_was_shown(make_mesh: Any, tools: ToolRegistry, remember: Any) -> None:
    seen: list[dict[str, Any]] = []

    @register_tool("add", registry=tools, inline=True)
    def add(n: int) -> dict[str, Any]:
        return {"n": n, "text": "x" * 100_000}  # too big for a row: put aside, and brought back

    def decide(session: Session) -> dict[str, Any]:
        shown = {name: getattr(session, name) for name in FIELDS}
        seen.append(shown | {name: dict(shown[name]) for name in ("payload", "memory", "results", "steps", "vars")})
        n = session.iteration
        return {"tools": [{"tool": "add", "args": {"n": n}}]} if n < 2 else {"answer": "the answer"}

    spec = define_agent("adder", reasoner=decide, tools=["add"], policy={"callbacks": ["remember_n"]})
    mesh, bells = make_mesh(spec)
    trace = mesh.router.dispatch("add", "shop", "adder", "c-1", {"by": 1}, policy={"max_steps": 9})
    bells.drain(mesh)
    assert trace.status() == "done"
    mesh.router.dispatch("add", "shop", "adder", "c-1", {"by": 2})  # another trace of the context writes later
    bells.drain(mesh)

    for number, step in enumerate((1, 3, 5)):
        found = point(mesh.db, "default", trace.id, step=step, blobs=mesh.blobs, spec=spec)
        shown = {name: getattr(found.session, name) for name in FIELDS}
        assert shown == seen[number]
        assert found.ordinal == step
    assert len(seen[2]["memory"]["long_term:n"][0]["text"]) == 100_000
    assert point(mesh.db, "default", trace.id, step=None, blobs=mesh.blobs).action.answer == "the answer"
    assert point(mesh.db, "default", trace.id, step=4, blobs=mesh.blobs).ordinal == 3
    with pytest.raises(NoDecision):
        point(mesh.db, "other", trace.id, step=None, blobs=mesh.blobs)
