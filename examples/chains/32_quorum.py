"""quorum: so many equal answers decide at once, and whoever has not answered is cancelled; without them on_fail is next."""


def show(stage):
    stage.agent("ann", lambda _session: {"answer": "pay"})
    stage.agent("bob", lambda session: {"answer": "pay" if session.payload["amount"] < 1000 else "wait"})
    stage.agent("cid", chain={"chain": "think", "steps": [{"wait": "1d"}, {"finish": "ask me"}]})
    trace = stage.run("release_money", {"amount": 900})
    assert trace.result(0) == "pay"
    assert [one.status() for one in stage.children(trace)] == ["done", "done", "cancelled"]

    split = stage.again({"amount": 1100})
    stage.later(days=1)  # and cid has thought
    assert stage.mesh.people.asked()[0]["asked"]["ask"] == {"they say": {"ann": "pay", "bob": "wait", "cid": "ask me"}}
    stage.mesh.people.decide(split.id, by="boss", choice="reject")
    stage.go_on()
    assert split.status() == "failed"
