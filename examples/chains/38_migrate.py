"""chains migrate: a trace keeps the plan it began with, until somebody moves it to another one on purpose."""

from contextlib import suppress

from agentmesh.errors import DoesNotFit
from agentmesh.execution.builder import chain, signal, tools


def show(stage):
    done = []

    @stage.tool("check")
    def check() -> None:
        done.append("checked")

    @stage.tool("publish")
    def publish() -> None:
        done.append("published")

    trace = stage.run("release")
    later = chain("release", signal("go", id="cleared"), tools("check"), tools("publish"))
    with suppress(DoesNotFit):  # what it waits at has another name there
        stage.mesh.migrations.plan(trace.id, later)
        raise AssertionError("a plan without a place for what is open")
    move = stage.mesh.migrations.plan(trace.id, later, renamed={"go": "cleared"})
    stage.mesh.migrations.migrate(move, later, by="ann")
    stage.mesh.people.signal(trace.id, "go", by="ann")
    stage.go_on()
    assert done == ["checked", "published"]
