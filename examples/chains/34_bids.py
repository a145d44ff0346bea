"""accept: agents bid for the work; the first acceptable bid wins, the losers are cancelled."""


def show(stage):
    stage.agent("dear", lambda _session: {"answer": {"price": 90, "order": 1}}, capabilities=["sell"])
    stage.agent("cheap", lambda _session: {"answer": {"price": 9, "order": 2}}, capabilities=["sell"])
    stage.agent("mute", chain={"chain": "think", "steps": [{"wait": "2d"}]}, capabilities=["sell"])
    stage.agent("carrier", lambda session: {"answer": f"order {session.payload['order']} of {session.payload['from']}"},
                capabilities=["ship"])  # fmt: skip
    trace = stage.run("buy", {"item": "tea", "most": 10})
    assert trace.result(0) == "order 2 of cheap"
    assert sorted(one.status() for one in stage.children(trace)) == ["cancelled", "done", "done", "done"]

    none = stage.again({"item": "gold", "most": 1})
    stage.later(hours=1)
    assert none.result(0) == "nothing was bought"
