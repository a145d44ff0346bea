"""What can never fit is told before a trace meets it: fields, comparisons, conditions and arguments, by known schemas."""

import re
import textwrap
from typing import Literal

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from agentmesh.errors import BadChain
from agentmesh.execution import builder, chain
from agentmesh.execution.advance import Began, Fail, State, advance
from agentmesh.execution.chain import Known
from agentmesh.execution.tools import TOOLS, ToolRegistry, register_tool
from agentmesh.infrastructure import yamltext
from agentmesh.records import Policy

TOOLBOX = ToolRegistry()


class Order(BaseModel):
    cents: int
    state: Literal["open", "paid"]
    note: str | None = None


class Line(TypedDict):
    name: str
    count: int


@register_tool("order", registry=TOOLBOX)
def order(number: int, *, deep: bool = False) -> Order:
    return Order(cents=number, state="open")


@register_tool("lines", registry=TOOLBOX)
def lines(names: list[str]) -> list[Line]:
    return []


@register_tool("free", registry=TOOLBOX)
def free(anything: object = None) -> dict:
    return {}


KNOWN = Known(signature=TOOLBOX.signature)


def problems(text, known=KNOWN):
    read = yamltext.load(textwrap.dedent(text), source="c.yaml", error=BadChain)
    return [f"{one.where}: {one.what} (got {one.value}) · {one.expected}" for one in chain.lint(read, known)[1]]


ORDER = "{tools: [{tool: order, args: {number: 1}}], id: find}"


def after(condition, first=ORDER):
    return f'chain: c\nsteps:\n  - {first}\n  - finish: 1\n    when: "{condition}"\n  - finish: 2\n'


def table(text):
    """Pairs of a line and what is said of it, which stands indented under it."""
    parts = [part.split("\n", 1) for part in re.split(r"\n(?=\S)", text.strip())]
    return [(head, " ".join(said.split())) for head, said in parts]


CAN_NEVER_BE = table("""
result.cent > 1
    the expression reads a field that result does not have at 1:8 (got cent) · one of cents, note, state · did you mean
    cents?
has(result.stat)
    the expression reads a field that result does not have at 1:12 (got stat) · one of cents, note, state · did you mean
    state?
steps.find.cent > 1
    the expression reads a field that steps.find does not have at 1:12 (got cent) · one of cents, note, state · did you
    mean cents?
steps.fnd == 1
    the expression reads a field that steps does not have at 1:7 (got fnd) · one of find · did you mean find?
results['ordr'].cents > 1
    the expression reads a field that results does not have at 1:9 (got ordr) · one of order · did you mean order?
vars.n > 1
    the expression reads a field that vars does not have at 1:6 (got n) · one of none
policy.max_step > 1
    the expression reads a field that policy does not have at 1:8 (got max_step) · one of backoff, callback_attempts,
    callback_timeout_s, callbacks, given, max_losses, max_steps, on_callback_fail, on_fail, reasoner_attempts,
    reasoner_timeout_s, record_trace, tool_attempts, tool_timeout_s, trigger_next_action, webhook, write_memory · did you
    mean max_steps?
result.cents.euro == 1
    the expression reads a field of a number at 1:14 (got euro) · an object
result.cents[0] == 1
    the expression looks into a number at 1:14 (got a number) · a list or an object
result.cents == '1'
    the expression compares what can never match at 1:1 (got a number == text) · two values of one type
1 + 1 != intent
    the expression compares what can never match at 1:1 (got a number != text) · two values of one type
result.cents == null
    the expression compares what can never match at 1:1 (got a number == null) · two values of one type
result.state == 'payed'
    the expression compares with what it never is at 1:1 (got payed) · one of open, paid · did you mean paid?
result.cents < '1'
    the expression orders what has no order at 1:1 (got a number < text) · two numbers or two texts
'x' in result.note
    the expression looks for something in what holds nothing at 1:1 (got text in null or text) · a list or an object
    (text.contains(part) looks into text)
result.cents in ['a', 'b']
    the expression looks for what is never in the list at 1:1 (got a number in a list of text) · one of a, b
result.state + 1 == 1
    the expression reckons with what does not go together at 1:1 (got text + a number) · numbers, or two texts, or two
    lists (string(x) and double(x) convert)
-result.state == 1
    the expression takes minus of text at 1:1 (got text) · a number
!result.cents
    the expression negates a number at 1:2 (got a number) · true or false
result.cents && true
    the expression joins by && a number at 1:1 (got a number) · true or false
result.cents ? true : false
    the expression chooses by a number at 1:1 (got a number) · true or false
result.cents.startsWith('1')
    the expression asks startsWith of a number at 1:1 (got a number) · text
size(result.cents) > 1
    the expression asks size of a number at 1:1 (got a number) · text or a list or an object
result.cents.exists(x, x > 1)
    the expression runs exists over a number at 1:1 (got a number) · a list or an object
[1, 2].all(x, x)
    the expression tests all by a number at 1:15 (got a number) · true or false
result.cents
    a condition is neither true nor false (got a number) · a comparison, or a field that is true or false
result
    a condition is neither true nor false (got an object) · a comparison, or a field that is true or false
result.cents > 0 ? result.state : 'x'
    a condition is neither true nor false (got text) · a comparison, or a field that is true or false
""")


@pytest.mark.parametrize(("condition", "said"), CAN_NEVER_BE, ids=[one for one, _ in CAN_NEVER_BE])
def test_a_condition_that_can_never_be_is_told_with_its_place(condition, said):
    assert problems(after(condition)) == [f"c.yaml:5:11: {said}"]


@pytest.mark.parametrize("condition", [
    "result.cents > 1.5", "result.note == null || result.note != 'x'", "result.state == 'paid' && !(result.cents in [1, 2])",
    "steps.find == null || steps['find'].cents > 1", "payload.anything.at.all == 3", "memory['long_term:x'] == 1",
    "size(result) == 3 || int(result.note) > 1", "[result].exists(o, o.cents > 1)", "result.cents + 1 > 2.0",
    "'a' + result.state == 'apaid'", "timestamp('2030-01-01T00:00:00Z') - duration('1h') > timestamp(result.note)",
    "policy.max_steps > 5 && policy.tool_timeout_s == null",
])  # fmt: skip
def test_what_may_be_is_left_to_the_trace(condition):
    assert problems(after(condition)) == []


FOUND = [
    ("{approval: ship it?, options: [ship, keep, stop]}", "result.choice == 'shop'",
     "the expression compares with what it never is at 1:1 (got shop) · one of keep, ship, stop · did you mean stop?"),
    ("{signal: paid, schema: {type: object, properties: {cents: {type: integer}}}}", "result.cent == 1",
     "the expression reads a field that result does not have at 1:8 (got cent) · one of cents · did you mean cents?"),
    ("{tools: [{tool: order, args: {number: 1}, as: a}, {tool: free, as: b}], strategy: parallel}", "result.a.x == result.more",
     "the expression reads a field that result.a does not have at 1:10 (got x) · one of cents, note, state"),
    ("{tools: [{tool: order, args: {number: 1}}, {tool: order, args: {number: 2}}], strategy: fallback}", "result.x == 1",
     "the expression reads a field that result does not have at 1:8 (got x) · one of cents, note, state"),
    ("{for_each: payload.numbers, tool: order, args: {number: {=: item}}}", "result[0].cent == 1",
     "the expression reads a field that is not there at 1:11 (got cent) · one of cents, note, state · did you mean cents?"),
    ("{tools: [{tool: order, for: [{number: 1}]}]}", "result.cents == 1",
     "the expression reads a field of a list at 1:8 (got cents) · an object"),
    ("{set: {n: 1, who: {=: intent}}}", "vars.who > vars.n",
     "the expression orders what has no order at 1:1 (got text > a number) · two numbers or two texts"),
    ("{wait: 5}", "result.x", "the expression reads a field of null at 1:8 (got x) · an object"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "condition", "said"), FOUND)
def test_what_each_kind_of_step_comes_to_is_known(first, condition, said):
    assert problems(after(condition, first)) == [f"c.yaml:5:11: {said}"]


def test_a_result_that_may_be_that_of_several_steps_is_either_of_theirs():
    text = """
    chain: c
    steps:
      - {tools: [{tool: order, args: {number: 1}}], id: a, when: payload.a, on_fail: next}
      - {signal: s, id: b, schema: {type: object, properties: {cents: {type: string}, way: {type: string}}}, when: payload.b}
      - finish: {=: "result.way"}
        when: result.cents == 1 || result.cents == 'x'
      - finish: {=: "result.zz"}
    """
    assert problems(text) == []  # nobody can say: neither a nor b may have run
    assert problems(text.replace(", when: payload.a, on_fail: next", "")) == [
        "c.yaml:8:17: the expression reads a field that result does not have at 1:8 (got zz) · one of cents, note, state, way"
    ]


def test_a_callback_may_lead_anywhere_so_that_its_result_may_be_seen_there():
    text = """
    chain: c
    steps:
      - {tools: [free], id: a}
      - callback: rule
      - {tools: [{tool: order, args: {number: 1}}], id: b}
      - {finish: {=: result.cent}}
    """
    assert problems(text) == []
    assert len(problems(text.replace("      - callback: rule\n", ""))) == 1


def test_an_answer_that_is_counted_is_an_agents_and_the_names_of_chosen_agents_are_nobodys():
    text = """
    chain: c
    steps:
      - {tools: [{tool: order, args: {number: 1}}], id: find}
      - set: {n: 1, who: {=: intent}}
      - delegate: [{capability: sort, count: 2}]
        vote: result.kind
      - finish: {=: "results.whoever"}
    """
    assert problems(text) == []
    assert problems(text.replace("result.kind", "vars.who > vars.n")) == [
        "c.yaml:7:11: the expression orders what has no order at 1:1 (got text > a number) · two numbers or two texts"
    ]


def test_the_payload_is_known_by_the_input_of_the_chain():
    text = """
    chain: c
    input: {type: object, required: [id], properties: {id: {type: integer}, of: {$ref: '#/$defs/who'}}, $defs: {who:
      {type: object, properties: {name: {type: string}, boss: {$ref: '#/$defs/who'}}}}}
    steps:
      - finish: {=: "payload.of.boss.name"}
        when: payload.xx == 1
      - finish: {=: "payload.of.xx"}
    """
    assert problems(text) == [
        "c.yaml:7:11: the expression reads a field that payload does not have at 1:9 (got xx) · one of id, of",
        "c.yaml:8:17: the expression reads a field that payload.of does not have at 1:12 (got xx) · one of boss, name",
    ]


def test_a_chain_within_is_given_what_its_input_asks_for():
    text = "chain: in\ninput: {type: object, required: [id], properties: {id: {type: integer}}}\nsteps: [{finish: 1}]\n"
    known = Known(chains={"in": yamltext.load(text, source="in.yaml")})
    for payload, said in (
        ("{id: 1, more: 2}", []), ("{=: payload}", []), ("{id: {=: payload.x}}", []),
        ("{id: {=: intent}}", ["31: chain in does not take this as id (got text) · a number"]),
        ("{more: 2}", ["26: chain in is not given id (got None) · id: …"]),
    ):  # fmt: skip
        assert problems(f"chain: c\nsteps:\n  - {{chain: in, payload: {payload}}}\n", known) == [
            f"c.yaml:3:{one}" for one in said
        ]


def test_a_trace_whose_payload_does_not_fit_the_input_fails_before_it_begins():
    plan = builder.chain("c", builder.finish(1), input={"type": "object", "properties": {"id": {"type": "integer"}}})
    begun = State("start", 1, 1, Policy(), Began(), variables={"payload": {"id": "x"}})
    decision = advance(plan, begun)
    assert isinstance(decision, Fail)
    assert decision.failure.as_json() == {
        "code": "E_PAYLOAD", "message": 'the payload does not fit the input of c: id: "x" is not of type "integer"',
    }  # fmt: skip
    assert plan.opening == ("start", "start")


NOT_INTEGER = 'order does not take these arguments: number: "x" is not of type "integer" (got x) · None'
ARGUMENTS = [
    ("{tools: [{tool: order, args: {number: x}}]}", ["43: " + NOT_INTEGER]),
    ("{tools: [{tool: order, args: {numbr: 1}}]}", [
        "34: order is not given number (got None) · number: …",
        "42: order takes no such argument (got numbr) · one of deep, number · did you mean number?"]),
    ("{tools: [order]}", ["14: order is not given number (got None) · number: …"]),
    ("{tools: [{tool: order, args: {number: {=: intent}}}]}", [
        "43: order does not take this as number (got text) · a number"]),
    ("{for_each: '[\"a\"]', tool: order, args: {number: {=: item}}}", [
        "53: order does not take this as number (got text) · a number"]),
    ("{for_each: intent, tool: order, args: {number: 1}}", ["16: for_each goes over what is no list (got text) · a list"]),
    ("{tools: [{tool: order, for: [{number: x}], args: {deep: true}}]}", ["54: " + NOT_INTEGER]),
    ("{tools: [{tool: lines, args: {names: [a, {=: step}]}}, free, {tool: order, args: {=: payload}}]}", []),
    ("{tools: [{tool: nobody, args: {x: 1}}]}", []),
]  # fmt: skip


@pytest.mark.parametrize(("step", "said"), ARGUMENTS, ids=[one for one, _ in ARGUMENTS])
def test_arguments_are_held_to_what_the_tool_takes(step, said):
    assert problems(f"chain: c\nsteps:\n  - {step}\n") == [f"c.yaml:3:{one}" for one in said]


def test_the_builder_knows_the_tools_of_its_process():
    register_tool("typed_here")(order)
    try:
        with pytest.raises(BadChain, match="typed_here takes no such argument"):
            builder.chain("c", builder.tools(builder.tool("typed_here", {"number": 1, "dep": True})))
    finally:
        TOOLS.unregister("typed_here")


def test_a_bomb_of_definitions_is_read_so_far_and_no_further():
    bomb = {f"d{n}": {"properties": {key: {"$ref": f"#/$defs/d{n + 1}"} for key in "abcdefgh"}} for n in range(60)}
    bomb["d60"] = {"type": "string"}
    plan = builder.chain(
        "c", builder.finish(builder.cel("[payload.a, payload.b]")), input={"$ref": "#/$defs/d0", "$defs": bomb}
    )
    assert plan.input is not None
