"""Fallback: the first tool that succeeds; the next one is asked only when the one before it failed."""

from agentmesh.errors import Permanent


def show(stage):
    @stage.tool("live_price")
    def live_price() -> int:
        raise Permanent("the exchange is closed")

    @stage.tool("cached_price")
    def cached_price() -> int:
        return 42

    assert stage.run("price").result(0) == 42
