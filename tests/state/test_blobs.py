"""Values put aside: what was shrunk comes back, and what only looks like a reference is never followed."""

import pytest

from agentmesh.execution.callbacks import HANDLERS
from agentmesh.execution.tools import register_tool
from agentmesh.state.blobs import is_reference


@pytest.mark.parametrize("value", [{"$blob": "nope"}, {"$blob": "0" * 64}])
def test_a_value_that_looks_like_a_reference_comes_back_as_it_is(lab, value):
    blobs = lab.mesh.blobs
    kept = blobs.shrink("default", value, what="a value")
    assert is_reference(kept)
    assert blobs.expand("default", kept) == value


@pytest.mark.parametrize("value", [{"$blob": "nope"}, {"inner": {"$blob": "nope"}}])
@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("strategy", ["serial", "parallel"])
def test_a_tool_that_returns_what_looks_like_a_reference_gets_it_back(make_lab, tools, value, inline, strategy):
    @register_tool("forge", registry=tools, inline=inline)
    def forge() -> dict:
        return value

    lab = make_lab()
    trace = lab.start({"tools": ["forge"], "strategy": strategy})
    lab.drain()
    assert trace.result(0) == ({"forge": value} if strategy == "parallel" else value)


@pytest.mark.parametrize("inline", [False, True])
def test_no_row_holds_the_big_arguments_that_a_tool_gets_whole(make_lab, tools, inline):
    @register_tool("measure", registry=tools, inline=inline)
    def measure(text: str) -> int:
        return len(text)

    lab = make_lab(reasoner=lambda _: {"tools": [{"tool": "measure", "args": {"text": "x" * 70_000}}]})
    trace = lab.start()
    lab.drain()
    assert trace.result(0) == 70_000
    assert [name for name, rows in lab.everything().items() for row in rows if len(row) > 70_000] == []


@pytest.mark.parametrize("callbacks", [[], ["silent"]])
def test_no_row_holds_the_big_answer_that_a_trace_ends_with(make_lab, callbacks, monkeypatch):
    monkeypatch.setitem(HANDLERS, "silent", lambda _result, _session: None)
    lab = make_lab(reasoner=lambda _: {"answer": "x" * 70_000}, policy={"callbacks": callbacks})
    trace = lab.start()
    lab.drain()
    assert trace.result(0) == "x" * 70_000
    assert [name for name, rows in lab.everything().items() for row in rows if len(row) > 70_000] == []
