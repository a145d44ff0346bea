"""Executors driven by hand: any step anew, the open step with a given result, one step at a time."""

import pytest

from agentmesh.errors import Mistake, NothingOpen, NotRewindable
from agentmesh.execution.callbacks import HANDLERS
from agentmesh.execution.tools import register_tool
from agentmesh.records import Verdict
from agentmesh.state import signals, steering

STEPS = [
    {"tools": [{"tool": "note", "args": {"name": "one"}}], "id": "one"},
    {"tools": [{"tool": "note", "args": {"name": {"=": "string(result) + '!'"}}}], "id": "two"},
    {"finish": {"two": {"=": "result"}, "one": {"=": "steps.one"}}},
]


@pytest.fixture
def runs():
    return []


@pytest.fixture
def chained(make_lab, tools, runs):
    """chained(*steps) -> (lab, executor, trace): run as far as it goes by `executor.run`."""

    @register_tool("note", registry=tools, inline=True, attempts=1)
    def note(name: str) -> str:
        runs.append(name)
        return name

    @register_tool("far", registry=tools)
    def far() -> str:
        return "from far"

    def make(*steps, **keys):
        lab = make_lab(chain={"chain": "c", "steps": list(steps or STEPS)}, **keys)
        trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"n": 1})
        runtime = lab.mesh.runtime("puppet")
        with runtime.claimed(lab.bells.waiting.popleft()) as session:
            runtime.executor.run(session)
        return lab, runtime.executor, trace

    return make


def test_a_step_runs_anew_by_its_index_and_all_after_it(chained, runs):
    lab, executor, trace = chained()
    assert trace.result(0) == {"one": "one", "two": "one!"}
    assert executor.run_step(3) == "done"
    assert runs == ["one", "one!", "one!"]
    assert [(one["node"], one["status"]) for one in lab.steps(trace)][2:] == [
        ("two", "superseded"), ("start", "done"), ("two", "done"),
    ]  # fmt: skip
    with pytest.raises(NotRewindable):
        executor.run_step(99)


def test_an_executor_that_has_run_nothing_here_says_so(make_lab):
    lab = make_lab()
    executor = lab.mesh.runtime("puppet").executor
    for call in (lambda: executor.run_step(1), lambda: executor.run_next_step({}), executor.run_next_step):
        with pytest.raises(Mistake) as caught:
            call()
        assert caught.value.what == "this executor has run no trace here"


@pytest.mark.parametrize("waits", [
    {"signal": "paid", "id": "wait"}, {"approval": "go on?", "id": "wait"}, {"wait": "3d", "id": "wait"},
    {"tools": ["far"], "id": "wait"}, {"tools": ["far", "note"], "strategy": "parallel", "id": "wait"},
    {"delegate": "puppet", "id": "wait"},
], ids=lambda one: next(iter(one)))  # fmt: skip
def test_an_open_step_takes_the_result_it_is_given_and_the_next_one_stands_ready(chained, waits, runs):
    if "strategy" in waits:
        waits = waits | {"tools": [{"tool": "far"}, {"tool": "note", "args": {"name": "beside"}}]}
    lab, executor, trace = chained(waits, STEPS[1], {"finish": {"=": "[result, steps.wait, results]"}})
    assert executor.run_next_step("given") == "waiting"
    assert [(one["node"], one["status"]) for one in lab.steps(trace)][-2:] == [("wait", "done"), ("two", "ready")]
    lab.drain()  # the calls that were open come too late
    assert ("given!" in runs, lab.events(trace).count("EXEC_SIGNAL")) == (False, 1)
    lab.bells.ring(steering.resume(lab.mesh.db, tenant="default", trace_id=trace.id, by="ann").rings)
    lab.drain()
    assert trace.result(0)[:2] == ["given!", "given"]


def test_a_reasoner_is_answered_for(chained, make_lab):
    lab = make_lab(reasoner=lambda _session: {"answer": "its own"})
    trace = lab.start()
    assert lab.trace(trace)["status"] == "queued"
    executor = lab.mesh.runtime("puppet").executor
    with pytest.raises(NothingOpen) as caught:
        executor.run_next_step("mine", trace_id=trace.id)
    assert caught.value.what == "this trace does not run"
    with lab.mesh.runtime("puppet").claimed(lab.bells.waiting.popleft()) as session:
        assert session is not None  # a worker has it, and loses it
        assert executor.run_next_step("mine", trace_id=trace.id) == "done"
    assert trace.result(0) == "mine"
    assert lab.outcomes(trace, "reason")[0] == "stale"


def test_one_step_after_the_other_by_its_own_work(chained, runs):
    lab, executor, trace = chained({"signal": "go"}, STEPS[0], STEPS[1], STEPS[2])
    with pytest.raises(NothingOpen):
        executor.run_next_step()  # nothing is ready: it waits for a signal
    sent = signals.send(lab.mesh.db, tenant="default", trace_id=trace.id, name="go", by="ann")
    assert sent.heard
    lab.bells.waiting.clear()
    assert (executor.run_next_step(), lab.step(trace)["node"], runs) == ("waiting", "one", [])
    assert executor.run_next_step() == "waiting"  # its call is let go, and its step is taken by nobody
    lab.drain()
    assert (lab.step(trace)["node"], lab.step(trace)["status"], runs) == ("one", "joined", ["one"])
    assert (executor.run_next_step(), lab.step(trace)["node"]) == ("waiting", "two")
    with pytest.raises(NothingOpen):
        chained({"signal": "go"})[1].run_next_step()


def test_a_callback_rules_on_the_given_result(chained):
    known = dict(HANDLERS)
    HANDLERS["stop"] = lambda result, _session: Verdict(kind="finish", result=[result])
    try:
        _, executor, trace = chained({"signal": "paid"}, {"callback": "stop"}, {"finish": "never"})
        assert executor.run_next_step(5) == "done"
        assert trace.result(0) == [5]
    finally:
        HANDLERS.clear()
        HANDLERS.update(known)


def test_what_is_paused_is_settled_all_the_same(chained):
    lab, executor, trace = chained({"signal": "paid"}, {"finish": {"=": "result"}})
    steering.pause(lab.mesh.db, tenant="default", trace_id=trace.id, by="ann")
    with pytest.raises(NothingOpen):
        executor.run_next_step()
    assert lab.trace(trace)["paused_at"] is not None  # as it was
    assert executor.run_next_step("given") == "done"
    assert trace.result(0) == "given"


def test_several_open_steps_are_not_settled_as_one(chained):
    lab, executor, trace = chained({"signal": "a", "id": "a", "needs": []}, {"signal": "b", "id": "b", "needs": []})
    lab.drain()
    before = lab.everything()
    with pytest.raises(NothingOpen) as caught:
        executor.run_next_step("given", trace_id=trace.id)
    assert caught.value.what == "not one step of this trace is open"
    assert lab.everything() == before
