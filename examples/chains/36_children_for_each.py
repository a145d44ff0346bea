"""A chain for each item of a list, as a child trace each; results in the order of the items, and nobody works meanwhile."""


def show(stage):
    trace = stage.run("survey", {"people": ["ada", "bob", "cleo"]})
    ada, _, cleo = stage.children(trace)
    stage.mesh.people.signal(cleo.id, "answered", "no", by="cleo")
    stage.mesh.people.signal(ada.id, "answered", "yes", by="ada")
    stage.go_on()
    assert trace.status() == "running"
    stage.later(days=3)  # Bob never answers
    assert trace.result(0) == ["ada: yes", None, "cleo: no"]
