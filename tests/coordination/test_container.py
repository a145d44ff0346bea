"""A RuntimeContainer: one trace held by hand, run, or given back."""

import pytest

from agentmesh.coordination.container import RuntimeContainer
from agentmesh.errors import Mistake, UnknownTrace
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


def other(lab):
    return RuntimeContainer(lab.mesh.runtime("puppet"), lab.mesh.db)


def test_a_frozen_trace_is_paused_and_goes_on_in_another_container(lab, container):
    trace = lab.start({"answer": 7})
    container.create(trace.id)
    container.freeze(reason="lunch")
    row = lab.trace(trace)
    assert (row["worker_id"], row["paused_at"] is not None) == (None, True)
    with pytest.raises(UnknownTrace):
        container.create(trace.id)  # paused: nobody takes it
    fetched = other(lab)
    session = fetched.resume(str(trace.id))
    assert lab.trace(trace)["paused_at"] is None
    assert (fetched.run(session), trace.result(0)) == ("done", 7)
    assert [lab.events(trace).count(name) for name in ("EXEC_PAUSE", "EXEC_RESUME")] == [1, 1]


def test_a_frozen_trace_that_waits_for_its_tools_keeps_what_they_return(lab, container):
    trace = lab.start({"tools": ["work"]})
    assert container.run(container.create(trace.id)) == "waiting"
    container.freeze()
    lab.bells.waiting.popleft()  # the trace's own ring, which the container did without
    lab.answer()  # the call ends while its trace is frozen
    assert lab.step(trace)["status"] == "joined"
    assert container.run(container.resume(trace.id)) == "done"


def test_resume_says_when_nothing_is_ready_and_whose_trace_it_is(lab, container):
    trace = lab.open("work")
    assert container.resume(trace.id) is None
    container.dispose()
    with pytest.raises(UnknownTrace) as caught:
        container.resume(new_id())
    assert caught.value.what == "agent puppet has no such trace"
    with pytest.raises(Mistake) as told:
        other(lab).freeze()
    assert told.value.what == "this container has no trace to freeze"


def test_what_a_container_holds_is_noted_until_it_lets_go(lab, container):
    trace = lab.start({"answer": 7})
    container.create(trace.id)
    assert set(lab.mesh.notes.claims()) == {lab.trace(trace)["claim_id"]}  # a beat would give anything else back
    container.dispose()
    assert lab.mesh.notes.claims() == {}
