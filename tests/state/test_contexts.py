"""What a session is made of: memory, and the results of earlier steps, wherever they are kept."""

from agentmesh.execution.tools import register_tool


def test_results_that_are_too_big_together_are_seen_by_the_next_round(make_lab, tools):
    seen = []

    @register_tool("write", registry=tools)
    def write(letter: str) -> str:
        return letter * 40_000

    def mind(session):
        if session.iteration:
            seen.append({label: len(text) for label, text in session.results.items()})
            return {"answer": 1}
        uses = [{"tool": "write", "args": {"letter": one}, "as": one} for one in "ab"]
        return {"tools": uses, "strategy": "parallel"}

    lab = make_lab(reasoner=mind, policy={"trigger_next_action": True})
    lab.start()
    lab.drain()
    assert seen == [{"a": 40_000, "b": 40_000}]
