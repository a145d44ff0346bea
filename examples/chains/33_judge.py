"""A judge: the step behind a delegation to several gets all their answers, and says which it takes."""


def longest(session):
    drafts = session.payload["drafts"]
    return {"answer": max(drafts, key=lambda name: len(drafts[name]))}


def show(stage):
    stage.agent("ann", lambda _session: {"answer": "Dear Sir"})
    stage.agent("bob", lambda _session: {"answer": "Dear Sir, thank you for your letter"})
    stage.agent("editor", longest)
    trace = stage.run("best_draft")
    assert trace.result(0) == "Dear Sir, thank you for your letter"
