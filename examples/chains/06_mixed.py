"""Mixed: slots run at once; a slot of several tools is a fallback of its own."""

from agentmesh.errors import Permanent


def show(stage):
    @stage.tool("live_price")
    def live_price() -> int:
        raise Permanent("the exchange is closed")

    @stage.tool("cached_price")
    def cached_price() -> int:
        return 42

    @stage.tool("orders")
    def orders() -> int:
        return 7

    assert stage.run("report").result(0) == {"cached_price": 42, "orders": 7}
