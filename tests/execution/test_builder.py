"""Chains in Python are the chains of files, byte for byte."""

import pytest

from agentmesh.errors import BadChain
from agentmesh.execution import builder as b
from agentmesh.execution import chain
from agentmesh.infrastructure import yamltext

EVERY = """
chain: every
on_fail: compensate
steps:
  - reasoner: think
  - tools: chosen
  - callback: [update_memory]
  - set: {n: {=: "1 + 1"}}
  - tools: [{tool: query_db, args: {id: {=: payload.id}}, as: one}, fetch_doc]
    strategy: parallel
    require: any
    retry: 2
  - for_each: payload.items
    tool: fetch_doc
    args: {n: {=: item}}
    limit: 3
    require: each
  - wait: 5min
  - signal: paid
    within: 2d
    on_timeout: next
  - approval: ship it?
    who: [ann]
    within: 1d
    escalate: {after: 1h, who: [boss]}
  - delegate: helper
    wait: false
  - delegate: {capability: sort, as: sorter}
    intent: sort
  - delegate: [helper, {capability: sort, count: all}]
    vote: result.kind
    quorum: 2
    within: 1h
  - delegate: [{capability: sort, count: 2, payload: 1}]
    accept: result.price < 5
  - parallel: {left: [{finish: 1}], right: [{finish: 2}]}
  - switch: [{when: payload.a == 1, then: give-up}]
    else: next
  - jump_if: result.low_confidence
    then: think
    limit: 4
  - finish: {=: result}
    when: payload.ok
  - fail: no way
    code: E_NO
"""


def test_every_step_in_python_is_what_it_is_in_yaml():
    made = b.chain(
        "every", b.reason("think"), b.tools(), b.callback("update_memory"), b.assign(n=b.cel("1 + 1")),
        b.tools(b.tool("query_db", {"id": b.cel("payload.id")}, as_="one"), "fetch_doc", strategy="parallel", require="any",
                retry=2),
        b.for_each("payload.items", "fetch_doc", {"n": b.cel("item")}, limit=3, require="each"), b.wait("5min"),
        b.signal("paid", within="2d", on_timeout="next"),
        b.approval("ship it?", who=["ann"], within="1d", escalate={"after": "1h", "who": ["boss"]}),
        b.delegate("helper", wait=False), b.delegate(b.any_of("sort", as_="sorter"), intent="sort"),
        b.delegate(["helper", b.any_of("sort", count="all")], vote="result.kind", quorum=2, within="1h"),
        b.delegate([b.any_of("sort", count=2, payload=1)], accept="result.price < 5"),
        b.parallel(left=[b.finish(1)], right=[b.finish(2)]),
        b.switch(("payload.a == 1", "give-up"), otherwise="next"),
        b.jump_if("result.low_confidence", then="think", limit=4), b.finish(b.cel("result"), when="payload.ok"),
        b.fail("no way", code="E_NO"), on_fail="compensate",
    )  # fmt: skip
    read = chain.read(yamltext.load(EVERY, source="every.yaml"))
    assert (made.body(), made.hash) == (read.body(), read.hash)


def test_a_mistake_in_python_is_told_as_in_yaml():
    with pytest.raises(BadChain, match="no step has this id"):
        b.chain("c", b.jump_if("true", then="nowhere"))


def test_a_plan_that_no_file_names_is_executed_on_an_agent(lab):
    plan = b.chain("made", b.tools(b.tool("quick", {"n": b.cel("payload.n")})), b.finish({"got": b.cel("result")}))
    trace = lab.mesh.engine.execute(plan, agent="puppet", payload={"n": 4})
    lab.drain()
    assert trace.result(0) == {"got": 5}
    assert lab.trace(trace)["plan_hash"] == plan.hash


def test_a_trace_whose_doorbells_were_lost_goes_on_by_hand(lab):
    trace = lab.start({"tools": ["work"]})
    lab.bells.waiting.clear()
    lab.mesh.engine.resume(trace.id)
    lab.drain()
    assert trace.status() == "done"


def test_a_conditional_agent_tries_tools_in_order_and_an_own_executor_is_chosen_by_name(make_lab, lab):
    from agentmesh import ConditionalExecutor
    from agentmesh.execution.executors import EXECUTORS, register_executor

    @register_executor("careful")
    class Careful(ConditionalExecutor):
        """The last resort of a test."""

    try:
        for name in ("conditional", "careful"):
            made = make_lab(executor=name)
            trace = made.start({"tools": ["boom", "work"]})
            made.drain()
            assert trace.status() == "done"
    finally:
        del EXECUTORS["careful"]
