"""delegate: other agents do errands, and the chain goes on with their results; permissions only shrink."""


def show(stage):
    stage.agent("lawyer", lambda session: {"answer": f"sue over {session.payload['text']}"})
    stage.agent("doctor", lambda session: {"answer": f"rest after {session.payload['text']}"})
    trace = stage.run("second_opinion", {"text": "a fall"})
    assert trace.result(0) == ["sue over a fall", "rest after a fall"]
