"""Require: how many of them must succeed. What is no longer needed is cancelled."""

from agentmesh.errors import Permanent


def show(stage):
    @stage.tool("ask")
    def ask(whom: str) -> str:
        if whom == "bob":
            raise Permanent("bob is away")
        return f"yes from {whom}"

    assert stage.run("quorum").result(0) == {"ann": "yes from ann", "cleo": "yes from cleo"}
