"""delegate to a capability: the least loaded of the agents that offer it; where none does, on_fail says what then."""


def show(stage):
    stage.agent("parrot", lambda session: {"answer": session.payload["text"]})
    trace = stage.run("translate", {"text": "hola"})
    assert (trace.status(), stage.path(trace)) == ("waiting", ["ask", "later"])
    stage.agent("ana", lambda _session: {"answer": "hello"}, capabilities=["translate"])
    stage.later(hours=1)
    assert trace.result(0) == "hello"
