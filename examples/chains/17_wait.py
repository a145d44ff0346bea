"""wait: a duration, until a moment, or until the next time of a cron expression. A waiting trace is a row."""


def show(stage):
    trace = stage.run("remind", {"not_before": "2001-01-01T00:00:00Z"})
    assert trace.status() == "waiting"
    stage.later(days=4)  # the moment is long past: only Monday is waited for
    assert trace.status() == "waiting"
    stage.later(days=7)
    assert trace.result(0) == "reminded"
