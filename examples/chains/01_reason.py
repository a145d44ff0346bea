"""A reasoner decides; what it answers is the result that the next steps read."""


def clerk(session):
    return {"answer": {"kind": "refund" if "money" in session.payload["text"] else "question"}}


def show(stage):
    trace = stage.run("classify", {"customer": "ada", "text": "I want my money back"}, reasoners={"clerk": clerk})
    assert trace.result(0) == {"kind": "refund", "from": "ada"}
