"""A RuntimeContainer: one trace held by hand, run, or given back."""

import pytest

from agentmesh.coordination.container import RuntimeContainer
from agentmesh.errors import UnknownTrace
from agentmesh.records import new_id


@pytest.fixture
def container(lab):
    return RuntimeContainer(lab.mesh.runtime("puppet"), lab.mesh.db)


def test_a_queued_trace_is_created_and_run_to_its_end(lab, container):
    trace = lab.start({"answer": 7})
    assert container.run(container.create(trace.id)) == "done"
    assert trace.result(0) == 7


def test_a_joined_trace_goes_on_where_it_stands(lab, container):
    trace = lab.open("work")
    lab.answer()  # the call; whose join rings
    assert container.create(str(trace.id)).step["status"] == "running"


@pytest.mark.parametrize("held", [False, True])
def test_a_trace_that_is_not_free_says_what_would_be(lab, container, held):
    wanted = new_id()
    if held:
        wanted = lab.start({"answer": 7}).id
        container.create(wanted)
    with pytest.raises(UnknownTrace) as caught:
        container.create(wanted)
    assert (caught.value.value, caught.value.expected) == (
        str(wanted), "a trace of this agent that is queued, or ready and held by nobody",
    )  # fmt: skip


def test_what_it_did_not_run_is_ready_for_others_after_dispose(lab, container):
    trace = lab.start({"answer": 7})
    container.create(trace.id)
    container.dispose()
    assert lab.trace(trace)["worker_id"] is None
    assert RuntimeContainer(lab.mesh.runtime("puppet"), lab.mesh.db).run(container.create(trace.id)) == "done"
