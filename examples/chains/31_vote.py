"""vote: several agents answer at once, and the value that most of them have is the result."""


def show(stage):
    for name, kind in {"ann": "spam", "bob": "mail", "cid": "spam"}.items():
        stage.agent(name, lambda _session, kind=kind: {"answer": {"kind": kind}}, capabilities=["classify"])
    trace = stage.run("classify_mail", {"text": "win money"})
    assert trace.result(0) == {"kind": "spam", "sure": False}
