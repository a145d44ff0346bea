"""needs: steps begin when those they need have ended, side by side with others, and meet again."""


def show(stage):
    @stage.tool("passport")
    def passport() -> str:
        return "valid"

    @stage.tool("seat")
    def seat() -> str:
        return "12A"

    trace = stage.run("check_in")
    assert stage.path(trace) == ["identity", "bags", "seat"]
    stage.mesh.people.signal(trace.id, "bags", {"count": 2}, by="scales")
    stage.go_on()
    assert trace.result(0) == "12A, 2 bags"
