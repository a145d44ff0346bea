"""rewind goes back in place; fork tries another way from a step on, and leaves the first trace as it is."""

from agentmesh.state.rewind import rewind


def show(stage):
    sizes = [10, 12]

    @stage.tool("measure")
    def measure() -> int:
        return sizes.pop(0)

    @stage.tool("price")
    def price(size: int, rate: int) -> int:
        return size * rate

    trace = stage.run("estimate", {"rate": 3})
    assert trace.result(0) == 30
    fork = stage.mesh.forks.fork(trace.id, 3, changes={"rate": 5}, by="ann")
    stage.go_on()
    assert (fork.result(0), trace.result(0)) == (50, 30)

    done = rewind(stage.mesh.db, tenant="default", trace_id=trace.id, ordinal=2, by="ann")
    stage.mesh.doorbell.ring(done.rings)
    stage.go_on()
    assert trace.result(0) == 36
