"""on_timeout: where a step goes whose time is over."""


def show(stage):
    trace = stage.run("quote")
    stage.later(hours=3)
    assert trace.result(0) == {"cents": 100}
