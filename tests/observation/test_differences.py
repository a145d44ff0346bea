"""What differs between two plans, and nothing where nothing does."""

import random

from agentmesh.execution import chain
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.observation.differences import Change, differences
from tests.execution.random_plans import make_plan

OLD = chain.from_values({"chain": "c", "steps": [
    {"tools": ["query_db"], "id": "ask"}, {"wait": "1h"}, {"parallel": {"left": [{"tools": ["query_db"]}]}},
]})  # fmt: skip


def test_each_change_names_its_node_and_the_smallest_value_that_differs():
    new = chain.from_values({"chain": "c", "on_fail": "compensate", "steps": [
        {"tools": [{"tool": "fetch_doc", "args": {"n": 1}}], "id": "ask", "timeout": "5s"},
        {"parallel": {"left": [{"tools": ["query_db"], "strategy": "parallel"}]}}, {"finish": 1},
    ]})  # fmt: skip
    found = differences(OLD, new)
    assert [one for one in found if one.kind == "changed"] == [
        Change("changed", "plan.on_fail", None, "compensate"),
        Change("changed", "ask.next", "wait", "parallel"),
        Change("changed", "ask.slots[0][0].tool", "query_db", "fetch_doc"),
        Change("changed", "ask.slots[0][0].args.n", None, 1),
        Change("changed", "ask.policy", None, {"tool_timeout_s": 5.0}),
        Change("changed", "parallel.next", None, "finish"),
        Change("changed", "parallel-left/tools.strategy", "serial", "parallel"),
    ]
    assert [(one.kind, one.where) for one in found if one.kind != "changed"] == [
        ("removed", "wait"),
        ("added", "finish"),
    ]


def test_nodes_in_another_order_differ():
    nodes = OLD.nodes
    other = BehaviorPlan(chain="c", nodes=(nodes[1], nodes[0], nodes[2]), chains=OLD.chains)
    assert differences(OLD, other) == [
        Change("changed", "order", ["ask", "wait", "parallel"], ["wait", "ask", "parallel"])
    ]


def test_there_are_changes_exactly_where_the_hashes_differ():
    plans = [make_plan(random.Random(seed).choice) for seed in range(40)]
    for a in plans:
        for b in plans:
            assert (differences(a, b) == []) == (a.hash == b.hash)
