"""Going back: in place and as a fork, with the memory and the variables of that moment."""

from typing import Any

import pytest

from agentmesh import define_agent
from agentmesh.errors import NotRewindable
from agentmesh.execution.callbacks import HANDLERS
from agentmesh.execution.tools import register_tool
from agentmesh.state import rewind, signals


@pytest.fixture(autouse=True)
def handlers():
    known = dict(HANDLERS)
    yield HANDLERS
    HANDLERS.clear()
    HANDLERS.update(known)


@pytest.fixture
def lab(make_lab, tools):
    """A chain of two tools, the second of which fails where the payload says so; each result is remembered."""
    runs = []

    @register_tool("note", registry=tools, inline=True, attempts=1)
    def note(name: str, fail: bool = False) -> str:
        runs.append(name)
        if fail:
            raise ValueError("told to")
        return name

    HANDLERS["keep"] = lambda result, _session: {"memory": [{"key": "last", "value": result}]}
    chain = {"chain": "c", "steps": [
        {"set": {"n": 1}}, {"tools": [{"tool": "note", "args": {"name": "one"}}], "id": "one"}, {"callback": "keep"},
        {"set": {"n": 2}, "id": "more"},
        {"tools": [{"tool": "note", "args": {"name": {"=": "payload.name"}, "fail": {"=": "payload.fail"}}}], "id": "two"},
        {"callback": "keep"}, {"finish": {"name": {"=": "result"}, "n": {"=": "vars.n"}, "one": {"=": "results.note"}}},
    ]}  # fmt: skip
    made = make_lab(chain=chain)
    made.runs = runs
    return made


def start(lab, **payload):
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"name": "two", "fail": False} | payload)
    lab.drain()
    return trace


def back(lab, trace, ordinal):
    done = rewind.rewind(lab.mesh.db, tenant="default", trace_id=trace.id, ordinal=ordinal, by="ann")
    lab.bells.ring(done.rings)
    lab.drain()
    return done


def test_a_rewound_trace_runs_the_step_and_all_after_it_once_more(lab):
    trace = start(lab)
    back(lab, trace, 2)
    assert lab.runs == ["one", "two", "one", "two"]
    assert [(one["node"], one["status"]) for one in lab.steps(trace)] == [
        ("start", "done"), ("one", "superseded"), ("two", "superseded"), ("start", "done"), ("one", "done"), ("two", "done"),
    ]  # fmt: skip
    assert trace.result(0) == {"name": "two", "n": 2, "one": "two"}


def test_going_back_to_where_a_rewind_began_begins_where_it_did(lab):
    trace = start(lab)
    back(lab, trace, 3)
    [begun] = [one for one in lab.steps(trace) if one["node"] == "start" and one["ordinal"] > 1]
    back(lab, trace, begun["ordinal"])
    assert lab.runs == ["one", "two", "two", "two"]


def test_memory_goes_back_to_what_it_was_at_that_step(lab):
    trace = start(lab)
    done = rewind.rewind(lab.mesh.db, tenant="default", trace_id=trace.id, ordinal=3, by="ann")
    assert "long_term:last" in done.restored
    memory = lab.mesh.parts.sessions.memory("default", "c-1", trace.id)
    assert memory["long_term:last"] == "one"


def test_what_comes_back_is_trusted_as_far_as_it_was(lab):
    memory = lab.mesh.memory("c-1")
    memory.store("last", "a person's word", origin="person:ann", trusted=True)
    rewind.rewind(lab.mesh.db, tenant="default", trace_id=start(lab).id, ordinal=1, by="ann")
    newest = memory.history("last")[0]
    assert (newest.value, newest.origin, newest.trusted) == ("a person's word", "rewind", True)


def test_a_key_that_somebody_else_has_written_since_is_left_and_named(lab):
    trace = start(lab)
    start(lab, name="other")
    done = rewind.rewind(lab.mesh.db, tenant="default", trace_id=trace.id, ordinal=3, by="ann")
    assert done.parked == ("long_term:last",)
    assert lab.mesh.parts.sessions.memory("default", "c-1", trace.id)["long_term:last"] == "other"


def test_a_failed_trace_may_go_back_and_end_well(lab):
    trace = start(lab, fail=True)
    assert trace.status() == "failed"
    lab.rows('UPDATE mesh.traces SET payload = \'{"name": "two", "fail": false}\'')
    back(lab, trace, 3)
    assert trace.status() == "done"


def test_a_fork_begins_at_a_step_with_changed_input_and_keeps_what_was_before(lab):
    trace = start(lab)
    fork = lab.mesh.forks.fork(trace.id, 3, changes={"name": "three"}, by="ann")
    lab.drain()
    assert lab.runs == ["one", "two", "three"]
    assert fork.result(0) == {"name": "three", "n": 2, "one": "three"}
    assert trace.result(0)["name"] == "two"
    assert [one["node"] for one in lab.steps(fork)] == ["start", "one", "start", "two"]


def test_a_fork_has_the_memory_of_that_moment_in_a_context_of_its_own(lab):
    trace = start(lab)
    fork = lab.mesh.forks.fork(trace.id, 3, by="ann")
    context = lab.trace(fork)["context_id"]
    assert context != "c-1"
    assert lab.mesh.parts.sessions.memory("default", context, fork.id)["long_term:last"] == "one"


def test_a_step_that_is_not_there_is_named(lab):
    with pytest.raises(NotRewindable, match="9"):
        back(lab, start(lab), 9)


def test_what_a_reasoner_chose_is_rewound_to_the_reasoner(make_mesh, make_lab, tools):
    @register_tool("note", registry=tools)
    def note() -> int:
        return 1

    made = make_lab(define_agent("other", reasoner=lambda _session: {"answer": 1}))
    trace = made.start({"tools": ["note"]})
    made.drain()
    with pytest.raises(NotRewindable, match="step 1, which decides again"):
        back(made, trace, 2)
    back(made, trace, 1)
    assert trace.status() == "done"


SECOND = {"tool": "tell", "args": {"said": {"=": "result"}}}


@pytest.mark.parametrize(("before", "said"), [
    ({"tools": ["two", "one"]}, 1), ({"tools": ["one", "two"], "strategy": "parallel"}, {"one": 1, "two": 2}),
    ({"for_each": "[1, 2]", "tool": "one"}, [1, 1]), ({"reasoner": "mind"}, 3), ({"signal": "go"}, 4),
])  # fmt: skip
@pytest.mark.parametrize("again", [1, 2])
def test_a_rewound_step_and_a_forked_one_have_the_result_of_the_step_before(make_lab, tools, before, said, again):
    register_tool("one", registry=tools)(lambda: 1)
    register_tool("two", registry=tools)(lambda: 2)

    @register_tool("tell", registry=tools)
    def tell(said: Any) -> Any:
        return said

    lab = make_lab(chain={"chain": "c", "steps": [before, {"tools": [SECOND], "id": "tell"}]},
                   reasoners={"mind": lambda _session: {"answer": 3}})  # fmt: skip
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=trace.id, name="go", payload=4, by="ann").rings)
    lab.drain()
    for _ in range(again):
        [last] = [one["ordinal"] for one in lab.steps(trace) if one["node"] == "tell" and one["status"] != "superseded"]
        back(lab, trace, last)
    fork = lab.mesh.forks.fork(trace.id, lab.step(trace)["ordinal"], by="ann")
    lab.drain()
    assert (trace.result(0), fork.result(0)) == (said, said)
