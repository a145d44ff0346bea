"""advance in plans with needs: whatever order steps end in, each node has its turn once, and the trace ends the same."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from agentmesh.execution.advance import (
    Began,
    Branch,
    CallTools,
    Decision,
    Fact,
    Fail,
    Finish,
    Rest,
    Ruled,
    Send,
    State,
    advance,
)  # fmt: skip
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.records import Failure, Json, Policy, Verdict

PAYLOAD = {"kind": "a", "items": [1, 2], "none": []}
WHENS = {"true": True, "false": False, "payload.kind == 'a'": True, "vars.deep.flag": False}
GOES_ON, GIVES_UP = Verdict(kind="continue"), Verdict(kind="abort", reason="no")


def make_plan(rng: random.Random) -> BehaviorPlan:
    nodes: list[dict[str, Any]] = []
    for place in range(rng.randint(1, 9)):
        needs = sorted(rng.sample([one["id"] for one in nodes], rng.randint(0, min(3, len(nodes)))))
        made: dict[str, Any] = {"id": f"n{place}", "needs": needs}
        if rng.random() < 0.3:
            made["when"] = rng.choice(sorted(WHENS))
        made |= rng.choice([
            {"kind": "tools", "slots": [[{"tool": "t"}]]}, {"kind": "wait", "seconds": 1}, {"kind": "signal", "signal": "s"},
            {"kind": "for_each", "items": "payload.items", "use": {"tool": "t"}}, {"kind": "set", "values": {f"v{place}": 1}},
            {"kind": "for_each", "items": "payload.none", "use": {"tool": "t"}},
            {"kind": "delegate", "errands": [{"label": "e", "agent": "o"}], "wait": rng.random() < 0.5},
        ])  # fmt: skip
        if rng.random() < 0.7:
            made["on_fail"] = "next"
        nodes.append(made)
    return BehaviorPlan.model_validate_json(json.dumps({"chain": "c", "nodes": nodes}))


@dataclass
class Told:
    """How a trace ended, the nodes that were steps, those that were sent off, and how each node ended."""

    end: str = ""
    visited: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    vars: dict[str, Json] = field(default_factory=dict)


def naive(plan: BehaviorPlan, failing: set[str]) -> Told:
    """One node after another, as they are written: each stands behind those it needs."""
    told = Told("done")
    for node in plan.nodes:
        told.marks[node.id] = "done"
        if node.when is not None and not WHENS[node.when]:
            told.marks[node.id] = "skipped"
        elif node.kind == "set":
            told.vars |= node.values
        elif node.kind == "delegate" and not node.wait:
            told.sent.append(node.id)
        elif node.kind != "for_each" or node.items == "payload.items":
            told.visited.append(node.id)
            if node.id in failing:
                told.marks[node.id] = "failed"
                told.end = told.end if node.on_fail == "next" else "failed"
    return told


def run(plan: BehaviorPlan, failing: set[str], rng: random.Random) -> Told:
    """As executors do, with what is ready taken in any order."""
    told, open_, ready = Told(), (), [("begins", None)]

    def decide(node: str, fact: Fact) -> Decision:
        variables = {"vars": told.vars, "result": None, "payload": PAYLOAD}
        return advance(plan, State(node, 1, 1, Policy(), fact, None, variables, marks=told.marks, open=open_))

    while ready:
        what, node = ready.pop(rng.randrange(len(ready)))
        if what == "begins":
            decision = decide("start", Began(node))
        elif node in failing:
            decision = decide(node, Ruled(GIVES_UP, Failure("E_X", "x")))
        else:
            decision = decide(node, Ruled(GOES_ON))
        assert isinstance(decision, CallTools | Rest | Send | Branch | Finish | Fail)
        route = decision.route
        told.sent += [one[0] for one in route.sent]
        told.vars = told.vars if route.vars is None else dict(route.vars)
        told.marks = told.marks if route.marks is None else dict(route.marks)
        open_ = open_ if route.open is None else route.open
        match decision:
            case Branch(nodes=nodes):
                ready += [("begins", one) for one in nodes]
            case CallTools(node=name) | Rest(node=name) | Send(node=name):
                told.visited.append(name)
                ready.append(("ends", name))
            case Fail():
                told.end = "failed"
                return told
            case Finish():
                assert not ready
                told.end = "done"
    return told


@pytest.mark.parametrize("block", range(4))
def test_each_node_has_its_turn_once_in_whatever_order_steps_end(block):
    for seed in range(block * 250, block * 250 + 250):
        rng = random.Random(seed)
        plan = make_plan(rng)
        failing = {one.id for one in plan.nodes if rng.random() < 0.2}
        wanted = naive(plan, failing)
        for _ in range(3):
            told = run(plan, failing, rng)
            assert told.end == wanted.end, seed
            assert len(set(told.visited)) == len(told.visited), seed
            if told.end == "done":
                seen = sorted(told.visited), sorted(told.sent), told.marks, told.vars
                assert seen == (sorted(wanted.visited), sorted(wanted.sent), wanted.marks, wanted.vars), seed


def test_a_step_that_was_to_begin_begins_though_what_it_was_conditional_on_has_changed_beside_it():
    plan = BehaviorPlan.model_validate_json(json.dumps({"chain": "c", "nodes": [
        {"id": "a", "kind": "wait", "seconds": 1, "needs": [], "when": "!has(vars.n)"},
        {"id": "b", "kind": "set", "values": {"n": 1}, "needs": []},
    ]}))  # fmt: skip
    variables = {"vars": {}, "result": None}
    decision = advance(plan, State("start", 1, 1, Policy(), Began(), None, variables))
    assert isinstance(decision, Rest)
    assert (decision.node, decision.route.vars) == ("a", {"n": 1})


def test_a_list_that_is_empty_by_the_time_its_turn_comes_ends_its_node_and_not_the_trace():
    plan = BehaviorPlan.model_validate_json(json.dumps({"chain": "c", "nodes": [
        {"id": "a", "kind": "for_each", "items": "vars.list", "use": {"tool": "t"}, "needs": []},
        {"id": "b", "kind": "wait", "seconds": 1, "needs": []},
        {"id": "c", "kind": "wait", "seconds": 1, "needs": ["a"]},
    ]}))  # fmt: skip
    variables = {"vars": {"list": []}, "result": None}
    decision = advance(plan, State("start", 1, 1, Policy(), Began("a"), None, variables, open=("a", "b")))
    assert isinstance(decision, Branch)
    assert (decision.nodes, decision.route.marks, decision.route.open) == (("c",), {"a": "done"}, ("b", "c"))
