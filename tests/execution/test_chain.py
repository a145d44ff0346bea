"""Reading chains: the plan a text means, and every mistake with its place and its exact words."""

import textwrap

import pytest

from agentmesh.errors import BadChain
from agentmesh.execution import chain
from agentmesh.execution.chain import Known
from agentmesh.infrastructure import yamltext


def read(text, known=None):
    return chain.lint(yamltext.load(textwrap.dedent(text), source="c.yaml", error=BadChain), known)


def problems(text, known=None):
    return [str(one) for one in read(text, known)[1]]


DESIGN = """
    chain: analyze_complaint
    steps:
      - reasoner: generate_plan
      - tools: [{tool: query_db}, {tool: fetch_doc}]
        strategy: parallel
      - callback: update_memory
      - jump_if: result.low_confidence
        then: generate_plan
"""


def test_the_chain_of_the_design_is_three_nodes():
    plan, wrong = read(DESIGN)
    assert wrong == []
    assert [(one.id, one.kind, one.next) for one in plan.nodes] == [
        ("generate_plan", "reason", "tools"), ("tools", "tools", "jump"), ("jump", "jump", None),
    ]  # fmt: skip
    assert plan.node("tools").policy.callbacks == ("update_memory",)
    assert plan.node("jump").then == "generate_plan"


def test_the_same_chain_as_values_has_the_same_hash():
    values = {"chain": "analyze_complaint", "steps": [
        {"reasoner": "generate_plan"}, {"tools": ["query_db", "fetch_doc"], "strategy": "parallel"},
        {"callback": "update_memory"}, {"jump_if": "result.low_confidence", "then": "retry_reasoner"},
    ]}  # fmt: skip
    assert chain.from_values(values).hash == read(DESIGN)[0].hash


def one(step):
    return f"chain: c\nsteps:\n  - {step}\n"


KNOWN = Known(tools=["query_db", "fetch_doc"], reasoners=["think"], callbacks=["update_memory"])
MISTAKES = [
    ("[]", "c.yaml:1:1: a chain is not an object · chain: name, steps: […]"),
    ("chain: c\nsteps: []\n", "c.yaml:2:8: a chain has no steps · steps: a list of at least one step"),
    ("chain: Big\nsteps: [{finish: 1}]\n", "c.yaml:1:8: a chain has no proper name · chain: lower_case_name"),
    (one("{tool: x}"), ("c.yaml:3:5: a step is nothing that is known · one of approval, callback, chain, delegate, fail, finish,"
     " for_each, jump, jump_if, parallel, reasoner, set, signal, switch, tools, wait · did you mean tools?")),
    (one("{tools: [query_dbb]}"), ("c.yaml:3:14: a tool of this name is not known · one of fetch_doc, query_db"
     " · did you mean query_db?")),
    (one("{reasoner: thnk}"), "c.yaml:3:16: a reasoner of this name is not known · one of think · did you mean think?"),
    (one("{tools: [query_db], strategie: parallel}"), ("c.yaml:3:36: a tools step has a key that means nothing · one of id,"
     " needs, on_fail, on_timeout, policy, race, record_trace, require, retry, strategy, timeout, tools,"
     " trigger_next_action, when, write_memory · did you mean strategy?")),
    (one("{tools: [query_db], finish: 1}"), "c.yaml:3:5: a step is two things at once · one of them a step"),
    (one("{jump_if: 'true'}"), "c.yaml:3:5: jump_if does not say where to · then: the id of a step"),
    (one("{callback: update_memory}"), "c.yaml:3:5: a callback handles the result of the step before it, and there is none"),
    (one("{tools: chosen}"), "c.yaml:3:13: no reasoner stands before the tools it is to choose · a reasoner before it"),
    (one("{tools: [query_db], timeout: soon}"), "c.yaml:3:34: this is no duration · such as 30s, 5min, 2h or 3d"),
    (one("{tools: [query_db], retry: 0}"), ("c.yaml:3:5: tool_attempts is not allowed · Input should be greater than or equal"
     " to 1")),
    (one("{tools: [query_db], id: next}"), "c.yaml:3:29: this id means something else · another id"),
    (one("{wait: {until: x, cron: y}}"), "c.yaml:3:12: a wait says how long in one way · a duration, until or cron"),
    (one("{signal: paid, schema: {type: strange}}"), ("c.yaml:3:28: this is no JSON Schema: "
     '"strange" is not valid under any of the schemas listed in the \'anyOf\' keyword')),
    (one("{finish: {=: 'nobody.x'}}"), "c.yaml:3:18: the expression names something unknown"),
    (one("{for_each: payload.l, tool: query_db, args: {n: {=: 'itm'}}}"), ("c.yaml:3:57: the expression names something"
     " unknown")),
    (one("{finish: {=: item}}"), "c.yaml:3:18: item means something only in the args of a for_each"),
    (one("{delegate: {intent: x}}"), ("c.yaml:3:16: an errand does not say for whom"
     " · the name of an agent, {to: agent} or {capability: name}")),
    (one("{delegate: {to: a, capability: b}}"), ("c.yaml:3:16: an errand does not say for whom"
     " · the name of an agent, {to: agent} or {capability: name}")),
    (one("{delegate: {capability: Big}}"), "c.yaml:3:29: a capability has a name that is not allowed · a lower_case_name"),
    (one("{delegate: {capabilty: sort, to: a}}"), ("c.yaml:3:28: an errand has a key that means nothing · one of as, capability,"
     " count, intent, payload, permissions, to · did you mean capability?")),
    (one("{delegate: {to: a, count: 2}}"), "c.yaml:3:31: count means something only beside a capability"),
    (one("{delegate: {capability: a, count: 0}}"), "c.yaml:3:39: this is no number of agents · 1 to 100, or all"),
    (one("{delegate: {capability: a, count: 2, as: b}}"), ("c.yaml:3:46: several agents do not go by one name"
     " · no 'as': they go by their own")),
    (one("{delegate: [a, b], vote: result, accept: result.ok}"), ("c.yaml:3:46: answers are voted on or accepted, not both")),
    (one("{delegate: [a, b], vote: result, require: any}"), "c.yaml:3:47: require means nothing beside vote · vote alone"),
    (one("{delegate: [a, b], accept: result.ok, wait: false}"), "c.yaml:3:49: wait means nothing beside accept · accept alone"),
    (one("{delegate: a, vote: result}"), "c.yaml:3:25: one agent alone has no vote · several agents, or a count"),
    (one("{delegate: [a, b], quorum: 2}"), "c.yaml:3:32: a quorum is one of votes · vote: an expression"),
    (one("{delegate: [a, b], vote: result, quorum: most}"), ("c.yaml:3:46: this is no quorum"
     " · how many equal votes, or majority")),
    (one("{delegate: [a, b], vote: result, quorum: 3}"), "c.yaml:3:46: so many votes there are not · at most 2, or majority"),
    (one("{delegate: [a, b], vote: answr.kind}"), "c.yaml:3:30: the expression names something unknown"),
    (one("{delegate: [a, b], accept: 1 + 1}"), ("c.yaml:3:32: a condition is neither true nor false"
     " · a comparison, or a field that is true or false")),
    (one("{delegate: a, wait: false, within: 1h}"), "c.yaml:3:40: nobody waits for the answers · wait: true"),
    (one("{delegate: [a, b], within: soon}"), "c.yaml:3:32: this is no duration · such as 30s, 5min, 2h or 3d"),
    ("chain: c\nsteps:\n  - {tools: [query_db], id: a}\n  - {jump_if: '1 + 1', then: a}\n",
     "c.yaml:4:15: a condition is neither true nor false · a comparison, or a field that is true or false"),
    ("chain: c\nsteps:\n  - {tools: [query_db], id: a}\n  - {jump_if: 'true', then: b}\n",
     "c.yaml:4:29: no step has this id · one of a, compensate, end, fail, jump, next"),
    ("chain: c\nsteps:\n  - {tools: [query_db], id: a}\n  - {jump: a}\n",
     "c.yaml:3:5: no way leads from this step to an end · a condition, or an end"),
    ("chain: c\nsteps:\n  - {finish: 1}\n  - {tools: [query_db]}\n",
     "c.yaml:4:5: no way leads to this step · a jump to it, or its removal"),
    ("chain: c\nsteps:\n  - {tools: [query_db], id: a}\n  - {tools: [fetch_doc], id: a}\n",
     "c.yaml:4:30: two steps have this id · another id than at c.yaml:3:5"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_mistake_is_told_with_its_place_and_what_was_expected(text, said):
    assert problems(text, KNOWN)[0].startswith(said)


def test_every_mistake_is_told_at_once():
    text = "chain: c\nsteps:\n  - {tools: [nope], timeout: soon}\n  - {set: 1}\n  - {jump_if: 'x >', then: gone}\n"
    assert len(problems(text, KNOWN)) >= 4


def test_a_chain_that_is_wrong_is_refused_with_all_its_mistakes():
    with pytest.raises(BadChain, match=r"c\.yaml:3:5") as caught:
        chain.read(yamltext.load(one("{tool: x}"), source="c.yaml", error=BadChain))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("text", ["chain: c\nsteps: &a [*a]\n", "chain: c\nchain: d\nsteps: [{finish: 1}]\n",
                                  "chain: c\nsteps: [" + "{finish: 1}," * 40_000 + "]\n"])  # fmt: skip
def test_bombs_doubles_and_huge_files_are_refused(text):
    with pytest.raises(BadChain):
        read(text)
