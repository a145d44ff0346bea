"""Race: the first success wins, and the others are cancelled."""


def show(stage):
    @stage.tool("far")
    def far() -> str:
        raise OSError("the line is busy; once more in a moment")

    @stage.tool("near")
    def near() -> str:
        return "near"

    trace = stage.run("fastest")
    assert trace.result(0) == {"near": "near"}
    [other] = [one for one in stage.calls(trace) if one["tool"] == "far"]
    assert other["status"] == "cancelled"
