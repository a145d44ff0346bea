"""Events from outside a step: numbered like every other, and never the end of a trace that goes on."""

import pytest

from agentmesh.errors import Mistake


@pytest.mark.parametrize("name", ["EXEC_DONE", "EXEC_FAIL", "EXEC_CANCEL"])
def test_nobody_but_a_trace_records_its_end(lab, name):
    trace = lab.open("work")
    with pytest.raises(Mistake, match="own end"):
        lab.mesh.trace_writer.record(trace.id, name)
    lab.drain()
    assert lab.events(trace).count("EXEC_DONE") == 1
