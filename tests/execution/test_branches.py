"""Chains with `needs`: branches side by side, joins, and what becomes of the others when one ends the trace."""

import pytest

from agentmesh.errors import BadChain, NotRewindable
from agentmesh.execution import chain
from agentmesh.execution.tools import register_tool
from agentmesh.state import children, retry, rewind, signals, steering


@pytest.fixture
def lab(make_lab, tools):
    """A lab whose chain the test gives; `run` notes each call, and fails where its name is in `lab.broken`."""
    seen, broken = [], set()

    def declare(name, **more):
        @register_tool(name, registry=tools, attempts=1, **more)
        def run(name: str, of: dict | None = None) -> str:
            seen.append(name)
            if name in broken:
                raise ValueError(name)
            return name.upper()

    declare("out")
    declare("here", inline=True)

    def make(*steps, **payload):
        made = make_lab(chain={"chain": "c", "steps": list(steps)})
        made.seen, made.broken = seen, broken
        made.t = made.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload)
        return made

    make.broken = broken
    return make


def step(name, *needs, tool="out", **more):
    return {"id": name, "tools": [{"tool": tool, "args": {"name": name}}], "needs": list(needs), **more}


DIAMOND = (step("a"), step("b", "a"), step("c", "a", tool="here"), step("d", "b", "c"))


def test_branches_begin_when_their_needs_have_ended_and_meet_again(lab):
    lab = lab(*DIAMOND)
    lab.drain()
    assert (lab.seen[0], sorted(lab.seen[1:3]), lab.seen[3:]) == ("a", ["b", "c"], ["d"])
    assert lab.t.result(0) == "D"


def test_branches_are_open_at_the_same_time(lab):
    lab = lab({"id": "one", "signal": "one", "needs": []}, {"id": "two", "signal": "two", "needs": []},
              {"id": "last", "finish": {"=": "steps.one + steps.two"}, "needs": ["one", "two"]})  # fmt: skip
    lab.drain()
    assert [one["node"] for one in lab.steps(lab.t) if one["status"] == "waiting"] == ["one", "two"]
    for name in ("two", "one"):
        sent = signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name=name, payload=name, by="ann")
        lab.bells.ring(sent.rings)
        lab.drain()
    assert lab.t.result(0) == "onetwo"


def test_a_step_that_is_passed_over_counts_as_ended_for_those_that_need_it(lab):
    lab = lab(step("a"), step("b", "a", when="false"), step("c", "b"))
    lab.drain()
    assert lab.seen == ["a", "c"]


def test_a_branch_that_fails_ends_the_trace_and_closes_the_others(lab):
    lab.broken.add("bad")
    lab = lab(step("bad"), {"id": "slow", "wait": "1d", "needs": []}, step("last", "bad", "slow"))
    lab.drain()
    assert lab.t.status() == "failed"
    assert {one["node"]: one["status"] for one in lab.steps(lab.t) if one["kind"] != "start"} == {
        "bad": "failed", "slow": "cancelled",
    }  # fmt: skip


def test_a_branch_that_may_fail_lets_the_others_go_on(lab):
    lab.broken.add("bad")
    lab = lab(step("bad", on_fail="skip"), step("good"), step("last", "bad", "good"))
    lab.drain()
    assert (lab.t.result(0), sorted(lab.seen)) == ("LAST", ["bad", "good", "last"])


def test_a_paused_trace_begins_no_branch_until_it_is_resumed(lab):
    lab = lab(*DIAMOND)
    lab.answer()
    steering.pause(lab.mesh.db, tenant="default", trace_id=lab.t.id, by="ann")
    lab.drain()
    assert lab.seen == ["a"]
    lab.bells.ring(steering.resume(lab.mesh.db, tenant="default", trace_id=lab.t.id, by="ann").rings)
    lab.drain()
    assert lab.t.result(0) == "D"


def test_branches_may_send_children(lab):
    branches = {"x": [{"finish": 1}], "y": [{"finish": 2}]}
    lab = lab(step("a"), {"id": "both", "parallel": branches, "needs": ["a"]}, step("c", "a"),
              {"id": "last", "finish": {"=": "steps.both"}, "needs": ["both", "c"]})  # fmt: skip
    lab.drain()
    assert lab.t.result(0) == {"x": 1, "y": 2}
    assert children.unwanted(lab.mesh.db, batch=5) == []


def test_a_failed_branch_is_retried_with_those_it_had_closed(lab):
    lab.broken.add("bad")
    lab = lab(step("bad"), {"id": "other", "signal": "go", "needs": []}, step("last", "bad", "other"))
    lab.drain()
    lab.broken.clear()
    lab.bells.ring(retry.retry(lab.mesh.db, tenant="default", trace_id=lab.t.id, by="ann"))
    lab.drain()
    lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", by="ann").rings)
    lab.drain()
    assert lab.t.result(0) == "LAST"


def test_a_trace_with_branches_is_rewound_as_a_whole(lab):
    lab = lab(*DIAMOND)
    lab.drain()
    with pytest.raises(NotRewindable, match="step 1"):
        rewind.rewind(lab.mesh.db, tenant="default", trace_id=lab.t.id, ordinal=3, by="ann")
    lab.bells.ring(rewind.rewind(lab.mesh.db, tenant="default", trace_id=lab.t.id, ordinal=1, by="ann").rings)
    lab.drain()
    assert sorted(lab.seen) == sorted(["a", "b", "c", "d"] * 2)


@pytest.mark.parametrize(("steps", "said"), [
    ([step("a", "b"), step("b", "a")], "these steps need one another"),
    ([step("a", "z")], "no step has this id"),
    ([step("a"), step("b", "a"), {"jump_if": "true", "then": "a"}], "nothing jumps in a chain with needs"),
])  # fmt: skip
def test_needs_that_cannot_be_met_are_mistakes(steps, said):
    with pytest.raises(BadChain, match=said):
        chain.from_values({"chain": "c", "steps": steps})
