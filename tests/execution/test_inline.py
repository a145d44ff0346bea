"""Inline calls see what leaves see."""

import asyncio

import pytest

from agentmesh.execution.tools import register_tool


def test_a_later_inline_call_sees_an_earlier_big_result_whole(make_lab, tools):
    seen = []

    @register_tool("first", registry=tools, inline=True)
    def first() -> str:
        return "x" * 100_000

    @register_tool("second", registry=tools, inline=True)
    def second(ctx) -> int:
        seen.append(ctx.results["first"])
        return 1

    lab = make_lab()
    lab.start({"tools": ["first", "second"], "strategy": "serial"})
    lab.drain()
    assert seen == ["x" * 100_000]


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("ending", [SystemExit(3), asyncio.CancelledError()])
def test_a_tool_that_would_end_its_worker_fails_its_call_alone(make_lab, tools, inline, ending):
    @register_tool("leave", registry=tools, inline=inline, attempts=1)
    def leave() -> int:
        raise ending

    lab = make_lab()
    trace = lab.start({"tools": ["leave"]})
    lab.drain()
    assert trace.status() == "failed"
    assert lab.outcomes(trace) == ["failed"]
