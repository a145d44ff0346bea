"""for_each: one call for each item, so many at once, results in the order of the items, null for a failure."""

from agentmesh.errors import Permanent


def show(stage):
    @stage.tool("check")
    def check(order: str, place: int) -> str:
        if order == "lost":
            raise Permanent("no such order")
        return f"{place}: {order}"

    trace = stage.run("check_all", {"orders": ["tea", "lost", "milk"]})
    assert trace.result(0) == ["1: tea", None, "3: milk"]
