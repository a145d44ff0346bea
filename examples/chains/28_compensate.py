"""compensate: what was done is undone, newest first, by the tools that their tools name; then the trace fails."""

from agentmesh.errors import Permanent


def show(stage):
    done = []

    @stage.tool("reserve", compensate="release")
    def reserve(what: str) -> str:
        done.append(f"{what} reserved")
        return what

    @stage.tool("release")
    def release(args: dict, result: str) -> None:
        done.append(f"{result} released")

    @stage.tool("pay")
    def pay() -> None:
        raise Permanent("the card was refused")

    trace = stage.run("travel")
    assert trace.status() == "failed"
    assert done == ["train reserved", "hotel reserved", "hotel released", "train released"]
