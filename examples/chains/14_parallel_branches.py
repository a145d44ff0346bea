"""parallel: branches of several steps run at once, each as a child trace; the step joins when all have ended."""


def show(stage):
    @stage.tool("open_account")
    def open_account() -> int:
        return 11

    trace = stage.run("onboard")
    [papers] = [one for one in stage.children(trace) if one.status() == "waiting"]
    stage.mesh.people.signal(papers.id, "signed", {"name": "Ada"}, by="ada")
    stage.go_on()
    assert trace.result(0) == "Ada has account 11"
