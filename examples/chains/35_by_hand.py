"""A trace driven by hand: a container holds it, an executor runs any step of it anew, or takes the open one a step further."""

from agentmesh import RuntimeContainer


def show(stage):
    paid = []

    @stage.tool("look_up", inline=True)
    def look_up(order: int) -> int:
        return 100 * order

    @stage.tool("pay", inline=True)
    def pay(cents: int) -> str:
        paid.append(cents)
        return f"paid {cents}"

    trace = stage.run("refund", {"order": 7})
    runtime = stage.mesh.runtime("shop")
    executor, container = runtime.executor, RuntimeContainer(runtime, stage.mesh.db)

    executor.run_next_step({"choice": "approve", "by": "ann"}, trace_id=trace.id)  # as if somebody had answered
    assert (stage.path(trace), paid) == (["order", "agreed", "paid"], [])  # paused before it pays
    assert container.resume(trace.id) is None  # nothing is to be decided: its call is out, and is answered
    stage.go_on()
    assert (trace.result(0), paid) == ("paid 700", [700])

    assert executor.run_step(2, trace_id=trace.id) == "waiting"  # from the look-up on: it asks once more
    container.freeze(reason="ask the auditor first")
    stage.go_on()
    assert trace.status() == "waiting"
