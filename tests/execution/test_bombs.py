"""S53: loops and bombs are refused where they would be accepted, say how they came about, and leave their neighbours alone."""

import pytest

from agentmesh.behavior.agents import define_agent
from agentmesh.behavior.router import make_intent
from agentmesh.errors import Backlogged
from agentmesh.execution.callbacks import HANDLERS, register_callback
from agentmesh.execution.tools import register_tool
from agentmesh.records import Verdict
from tests.conftest import Lab, do_as_told


@pytest.fixture
def pingpong():
    """A callback that hands every trace on to the other of two agents."""

    @register_callback("pass-on")
    def pass_on(result, session):
        return Verdict(kind="delegate", to={"ping": "pong", "pong": "ping"}[session.agent], intent="go", payload={})

    yield "pass-on"
    HANDLERS.pop("pass-on")


def test_s53_agents_that_hand_on_to_one_another_end_with_the_chain_of_hops(make_lab, tools, pingpong):
    both = [
        define_agent(name, reasoner=lambda s: {"answer": 1}, policy={"callbacks": [pingpong]})
        for name in ("ping", "pong")
    ]
    lab = make_lab(*both)
    lab.mesh.router.dispatch("go", "tester", "ping", "c-1", {})
    neighbour = lab.start({"answer": "well"})
    lab.drain()
    traces = lab.rows("SELECT agent, depth, status, error FROM mesh.traces WHERE agent <> 'puppet' ORDER BY depth")
    assert [one["depth"] for one in traces] == list(range(17))
    error = traces[-1]["error"]
    assert (traces[-1]["status"], error["code"]) == ("failed", "E_DEPTH")
    assert error["message"].partition(": ")[2].split(" → ") == ["ping", "pong"] * 9
    assert neighbour.result(0) == "well"


def test_s53_a_trigger_that_triggers_itself_ends_at_its_steps(make_lab, tools):
    register_tool("work", registry=tools)(lambda: 1)
    spin = define_agent("spin", reasoner=lambda s: {"tools": ["work"]}, tools=["work"],
                        policy={"trigger_next_action": True, "max_steps": 12})  # fmt: skip
    lab = make_lab(spin)
    trace = lab.mesh.router.dispatch("go", "tester", "spin", "c-1", {})
    neighbour = lab.start({"tools": ["work"]})
    lab.drain()
    row = lab.trace(trace)
    assert (row["status"], row["error"]["code"]) == ("failed", "E_STEP_LIMIT")
    assert len(lab.steps(trace)) <= 12
    assert neighbour.result(0) == 1


def test_s53_an_action_of_too_many_calls_makes_none(make_lab, tools):
    register_tool("work", registry=tools)(lambda: 1)
    lab = make_lab()
    trace = lab.start({"tools": ["work"] * 10_001, "strategy": "parallel"})
    neighbour = lab.start({"tools": ["work"]})
    lab.drain()
    row = lab.trace(trace)
    assert (row["status"], row["error"]["code"], lab.calls(trace)) == ("failed", "E_ACTION", [])
    assert neighbour.result(0) == 1


def test_s53_a_tenant_whose_traces_pile_up_is_refused_more_and_another_is_not(make_mesh, database_url):
    """Dispatches and forks alike; what has begun makes room."""
    puppet = define_agent("puppet", reasoner=do_as_told, tenants=["default", "acme"])
    lab = Lab(database_url, *make_mesh(puppet, limits__backlog=5))
    first = lab.start()
    lab.drain()
    for _ in range(5):
        lab.start()
    with pytest.raises(Backlogged, match="wait to begin") as refused:
        lab.start()
    with pytest.raises(Backlogged):
        lab.mesh.forks.fork(first.id, 1, by="tester")
    assert (refused.value.exit_code, refused.value.after_s > 0) == (4, True)
    theirs = lab.mesh.client_of("acme").send(make_intent("work", "tester", "puppet", "c-1", {"do": []}))
    lab.drain()
    assert theirs.status() == "done"
    lab.mesh.client._agents.clear()  # what a refused client remembers for seconds is over
    assert lab.start().status() == "queued"
