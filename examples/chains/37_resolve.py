"""resolve: what may have taken effect, and must not happen twice, waits for somebody who has looked; then it goes on."""


def show(stage):
    runs = []

    @stage.tool("transfer", effect="once")
    def transfer() -> str:
        runs.append("transfer")
        raise OSError("the line broke after the order was sent")

    @stage.tool("tell")
    def tell(wire: str) -> str:
        return f"transferred as {wire}"

    trace = stage.run("wire")
    (call,) = stage.calls(trace)
    assert (trace.status(), call["attempts"]) == ("failed", 1)
    stage.mesh.answers.resolve(call["id"], "done", result="wire 4711", by="ann", reason="it is on the statement")
    stage.go_on()
    assert (trace.result(0), runs) == ("transferred as wire 4711", ["transfer"])
