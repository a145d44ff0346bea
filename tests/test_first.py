"""The thinnest slice: one intent, its tools in parallel, its end."""

from agentmesh.behavior.agents import define_agent
from agentmesh.execution.tools import register_tool


def test_parallel_tools_join_and_finish(make_mesh, tools):
    @register_tool("double", needs=["n:read"], registry=tools)
    def double(n: int) -> int:
        return 2 * n

    def decide(session):
        uses = [{"tool": "double", "args": {"n": n}, "as": f"r{n}"} for n in range(3)]
        return {"tools": uses, "strategy": "parallel"}

    mesh, bells = make_mesh(define_agent("tester", reasoner=decide, tools=["double"], grants=["n:*"]))
    trace = mesh.router.dispatch("compute", "me", "tester", "c-1", {})
    bells.drain(mesh)
    assert trace.result(0) == {"r0": 0, "r1": 2, "r2": 4}
