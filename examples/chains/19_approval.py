"""approval: somebody who may must choose; more people are asked after a while; who chose, and why, is recorded."""

import pytest

from agentmesh.errors import AlreadyDecided, NotAsked


def show(stage):
    trace = stage.run("pay_out", {"cents": 900, "to": "ada"})
    people = stage.mesh.people
    assert people.asked()[0]["asked"]["ask"] == {"pay": 900, "to": "ada"}
    with pytest.raises(NotAsked):
        people.decide(trace.id, "pay", by="boss", reason="I may")
    stage.later(days=1)
    people.decide(trace.id, "pay", by="boss", reason="it is due")
    stage.go_on()
    assert trace.result(0) == "paid, said boss: it is due"
    with pytest.raises(AlreadyDecided):
        people.decide(trace.id, "hold", by="ann", reason="wait")

    refused, forgotten = stage.again({"cents": 1, "to": "bob"}), stage.again({"cents": 2, "to": "cleo"})
    people.decide(refused.id, refuse=True, by="ann", reason="too little")
    stage.later(days=1)  # the boss is asked, too
    stage.later(days=2)
    assert (refused.result(0), forgotten.result(0)) == ("held", "nobody cared")
