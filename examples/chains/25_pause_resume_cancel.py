"""pause, resume, cancel: nothing starts while a trace is paused, and nothing of it after its cancel."""


def show(stage):
    runs = []

    @stage.tool("work")
    def work() -> int:
        runs.append(1)
        return len(runs)

    trace, other = stage.run("slow_work"), stage.again()
    stage.steer("pause", trace, reason="wait for the auditor")
    stage.mesh.people.signal(trace.id, "begin", by="ann")
    stage.go_on()
    assert runs == []
    stage.steer("resume", trace)
    assert trace.result(0) == 1

    stage.steer("cancel", other)
    assert (other.status(), runs) == ("cancelled", [1])
