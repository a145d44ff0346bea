"""signal: the chain waits for a named message, checked against a schema, for so long."""

import pytest

from agentmesh.errors import BadPayload


def show(stage):
    trace = stage.run("sell")
    with pytest.raises(BadPayload):
        stage.mesh.people.signal(trace.id, "paid", {"cents": 0}, by="bank")
    stage.mesh.people.signal(trace.id, "paid", {"cents": 500}, by="bank", key="transfer-1")
    stage.go_on()
    assert trace.result(0) == "paid 500"

    late = stage.again()
    stage.later(days=15)
    assert late.result(0) == "sent a reminder"
