"""Every message of the language of chains, word for word; a message that no text here or in test_chain.py meets fails."""

import ast
import inspect
import re

import pytest

from agentmesh.errors import BadChain
from agentmesh.execution import chain, chainparts, chainsteps
from agentmesh.execution.chain import Known
from agentmesh.infrastructure import yamltext
from tests.execution.test_chain import KNOWN, MISTAKES
from tests.execution.test_chaintypes import table

OTHERS = {
    "other": "chain: other\nsteps: [{finish: 1}]\n", "loop": "chain: loop\nsteps: [{chain: loop}]\n",
    "bad": "chain: bad\nsteps: [{wait: soon}]\n",
}  # fmt: skip
CHAINS = {name: yamltext.load(text, source=f"{name}.yaml", error=BadChain) for name, text in OTHERS.items()}
WHOLE = Known(KNOWN.tools, KNOWN.reasoners, KNOWN.callbacks, CHAINS)

TOLD = table(r"""
chain: c\nstepz: []\nsteps: [{finish: 1}]\n
    c.yaml:2:8: a chain has a key that means nothing · one of chain, description, input, on_fail, policy, steps · did you
    mean steps?
5
    c.yaml:3:5: a step is not an object · one of reasoner, tools, callback, set, for_each, jump_if, jump, switch, wait,
    signal, approval, delegate, chain, parallel, finish, fail
{tools: [query_db], id: Big}
    c.yaml:3:29: a step has no proper id · a lower_case_name
{tools: [query_db], policy: {max_stepz: 5}}
    c.yaml:3:45: a policy has a key that means nothing · one of backoff, callback_attempts, callback_timeout_s, callbacks,
    max_losses, max_steps, on_callback_fail, on_fail, reasoner_attempts, reasoner_timeout_s, record_trace, tool_attempts,
    tool_timeout_s, trigger_next_action, webhook, write_memory · did you mean max_steps?
{tools: [query_db], policy: {max_steps: 0}}
    c.yaml:3:45: max_steps is not allowed · Input should be greater than or equal to 1
{tools: [query_db], retry: {attemptz: 5}}
    c.yaml:3:43: retry has a key that means nothing · one of attempts, backoff · did you mean attempts?
{tools: [query_db], on_fail: retry_reasoner}
    c.yaml:3:34: no reasoner stands before this step
{tools: [query_db], on_fail: 5}
    c.yaml:3:34: this is no step to go to · the id of a step, or next, end, fail
{tools: [query_db], on_fail: nowhere}
    c.yaml:3:34: no step has this id · one of compensate, end, fail, next, tools
{tools: [query_db], needs: 5}
    c.yaml:3:32: this is no step to need · the ids of steps
{tools: [query_db], needs: [gone]}
    c.yaml:3:33: no step has this id · one of tools
{tools: [query_db], id: a, needs: b}  ;  {tools: [query_db], id: b, needs: a}
    c.yaml:3:5: these steps need one another · an order
{tools: [query_db], id: a}  ;  {jump_if: 'true', then: a, id: j}  ;  {tools: [query_db], id: b, needs: a}
    c.yaml:4:15: nothing jumps in a chain with needs · when: on the steps themselves, or a chain of its own for the loop
{tools: [query_db], id: a, on_fail: b}  ;  {tools: [query_db], id: b, needs: a}
    c.yaml:3:41: nothing jumps in a chain with needs · when: on the steps themselves, or a chain of its own for the loop
{finish: 1, when: 5}
    c.yaml:3:23: an expression is not text · CEL in quotes
{finish: 1, when: 'payload.x >'}
    c.yaml:3:23: the expression cannot be read at 1:12 · a value, a name or a bracket
{finish: {=: 5}}
    c.yaml:3:18: an expression is not text · CEL in quotes
{jump_if: '5', then: end}
    c.yaml:3:15: a condition is neither true nor false · a comparison, or a field that is true or false
{callback: Update}
    c.yaml:3:5: a callback handles the result of the step before it, and there is none
{tools: [query_db]}  ;  {callback: updat}
    c.yaml:4:16: a callback of this name is not known · one of update_memory
{tools: [{tool: query_db, agrs: {}}]}
    c.yaml:3:13: a tool has keys that mean nothing · only tool, args, as, for
{tools: []}
    c.yaml:3:13: an action has no tools · a list of at least one tool
{tools: [query_db], strategy: fast}
    c.yaml:3:13: an action names no strategy · one of serial, parallel, fallback, mixed
{tools: [query_db], require: most}
    c.yaml:3:13: an action has a wrong require · Input should be 'all', 'any' or 'each'
{for_each: payload.l, tool: query_db, args: [1]}
    c.yaml:3:49: the args of a tool are not an object
{for_each: payload.l, tool: query_db, limit: 0}
    c.yaml:3:50: limit is not allowed · Input should be greater than or equal to 1
{for_each: payload.l}
    c.yaml:3:5: a tool has a name that is not allowed · a lower_case_name
{set: 5}
    c.yaml:3:11: set does not say which variables · set: {name: value}
{switch: 5}
    c.yaml:3:14: a switch has no cases · switch: [{when, then}]
{switch: [5]}
    c.yaml:3:15: a case is not {when, then} · {when, then}
{wait: {until: x, hours: 3}}
    c.yaml:3:30: a wait has a key that means nothing · one of cron, seconds, timezone, until
{wait: 400d}
    c.yaml:3:12: this is no duration · such as 30s, 5min, 2h or 3d
{signal: 5}
    c.yaml:3:14: signal is not allowed · Input should be a valid string
{signal: paid, within: soon}
    c.yaml:3:28: this is no duration · such as 30s, 5min, 2h or 3d
{approval: x, options: [yes]}
    c.yaml:3:28: options is not allowed · Tuple should have at least 2 items after validation, not 1
{approval: x, reason: maybe}
    c.yaml:3:27: reason is neither required nor optional
{approval: x, escalate: boss}
    c.yaml:3:29: escalate is not {after, who} · {after: 1d, who: [name]}
{delegate: Helper}
    c.yaml:3:16: an agent has a name that is not allowed · a lower_case_name
{delegate: [{intent: x}]}
    c.yaml:3:17: an errand does not say for whom · the name of an agent, {to: agent} or {capability: name}
{delegate: [{to: a, itent: x}]}
    c.yaml:3:32: an errand has a key that means nothing · one of as, capability, count, intent, payload, permissions, to
    · did you mean intent?
{delegate: [a, a]}
    c.yaml:3:16: two errands would go by one name · a different 'as' for each
{delegate: []}
    c.yaml:3:16: delegate is not allowed · Tuple should have at least 1 item after validation, not 0
{chain: c}
    c.yaml:3:13: a chain of this name is not known · one of bad, loop, other
{chain: loop}
    loop.yaml:2:17: a chain holds itself · delegate to the agent for a recursion
{delegate: [a, b], for_each: payload.l}
    c.yaml:3:34: one errand is done for each · one agent, capability or chain
{delegate: a, for_each: payload.l, wait: false}
    c.yaml:3:29: wait means nothing beside for_each · the list of all results
{chain: othr}
    c.yaml:3:13: a chain of this name is not known · one of bad, loop, other · did you mean other?
{chain: bad}
    bad.yaml:2:16: this is no duration · such as 30s, 5min, 2h or 3d
{parallel: {}}
    c.yaml:3:16: there are no branches · parallel: {name: [steps], name: [steps]}
{parallel: {left: [{wait: soon}]}}
    c.yaml:3:31: this is no duration · such as 30s, 5min, 2h or 3d
{fail: x, code: 5}
    c.yaml:3:21: code is not allowed · Input should be a valid string
chain: c\ninput: {type: strange}\nsteps: [{finish: 1}]\n
    c.yaml:2:8: this is no JSON Schema: "strange" is not valid under any of the schemas listed in the 'anyOf' keyword
chain: c\non_fail: gone\nsteps: [{finish: 1}]\n
    c.yaml:2:10: no step has this id · one of compensate, end, fail, finish, next
chain: c\npolicy: {max_steps: many}\nsteps: [{finish: 1}]\n
    c.yaml:2:21: max_steps is not allowed · Input should be a valid integer
{set: {n: 1}, id: a}  ;  {jump: a}
    c.yaml:3:5: no way leads from this step to an end · a condition, or an end
{chain: five}
    c.yaml:3:13: a chain of this name is not known · one of bad, loop, other
{tools: [query_db]}  ;  {callback: [Update]}
    c.yaml:4:16: a callback has a name that is not allowed · a lower_case_name
{tools: [quer]}
    c.yaml:3:14: a tool of this name is not known · one of fetch_doc, query_db · did you mean query_db?
{for_each: payload.l, tool: quer}
    c.yaml:3:33: a tool of this name is not known · one of fetch_doc, query_db · did you mean query_db?
{delegate: [{to: 5}]}
    c.yaml:3:22: an agent has a name that is not allowed · a lower_case_name
""")
"""Steps of a chain, or a whole one, and the first mistake in it."""

REFUSED = table(r"""
chain: c\nsteps: &a [*a]\n
    c.yaml:2:8 has an anchor · the value without &name
chain: c\nsteps: [*a]\n
    c.yaml:2:9 has an alias · the value written out
chain: c\nchain: d\nsteps: [{finish: 1}]\n
    c.yaml:2:1 has the key 'chain' twice · each key once
chain: c\n<<: {on_fail: end}\n
    c.yaml:2:1 has a merge key · the keys written out
chain: c\nsteps: !!python/object:os.system {}\n
    c.yaml:2:8 has the tag tag:yaml.org,2002:python/object:os.system · a plain value
chain: c\n5: 1\n
    c.yaml:2:1 has the key 5 · a key that is text (quote it)
chain: c\nsteps: [{finish: .nan}]\n
    c.yaml:2:18 has .nan · a finite number, or text in quotes
chain: c\n---\nchain: d\n
    c.yaml:2:1 has a second document · one document
chain: [c\n
    c.yaml:2:1 is not YAML: expected ',' or ']', but got '<stream end>' · YAML 1.2
""")


def problems(text):
    return chain.lint(yamltext.load(text, source="c.yaml", error=BadChain), WHOLE)[1]


def written(text):
    return (
        text.replace(r"\n", "\n")
        if text.startswith("chain:")
        else f"chain: c\nsteps:\n  - {text.replace('  ;  ', chr(10) + '  - ')}\n"
    )


@pytest.mark.parametrize(("text", "said"), TOLD, ids=[text for text, _ in TOLD])
def test_a_mistake_is_told_word_for_word(text, said):
    assert str(problems(written(text))[0]) == said


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[text for text, _ in REFUSED])
def test_what_is_no_plain_yaml_is_refused_word_for_word(text, said):
    with pytest.raises(BadChain) as caught:
        problems(written(text))
    assert f"{caught.value.what} · {caught.value.expected}" == said


def test_what_is_too_large_or_too_deep_is_refused_before_it_is_read():
    for text, said in (
        ("chain: c\nsteps: [" + "{finish: 1}," * 40_000 + "]\n", "c.yaml is too large · at most 262144 bytes"),
        ("chain: c\nsteps: " + "[" * 70 + "]" * 70 + "\n", "c.yaml:2:72 has too deep a value · at most 64 levels"),
    ):
        with pytest.raises(BadChain) as caught:
            problems(text)
        assert f"{caught.value.what} · {caught.value.expected}" == said


def test_files_that_name_no_chain_or_the_same_one_are_told(tmp_path):
    for name, text in (("a", "chain: x\nsteps: []\n"), ("b", "chain: x\nsteps: []\n"), ("c", "steps: []\n")):
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(BadChain) as caught:
        chain.load([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert caught.value.what == "two files hold chain x"
    with pytest.raises(BadChain) as caught:
        chain.load([tmp_path / "c.yaml"])
    assert caught.value.what == f"{tmp_path}/c.yaml:1:1: a chain has no name"


def test_a_chain_cannot_be_held_where_no_other_is_known():
    [problem] = chain.lint(yamltext.load(written("{chain: other}"), source="c.yaml"))[1]
    assert str(problem) == f"c.yaml:3:13: {NOT_HERE}"


NOT_HERE = "a chain of this name is not known here"


def messages():
    """What every `wrong` of the readers says, as a pattern."""
    nodes = [node for one in (chain, chainparts, chainsteps) for node in ast.walk(ast.parse(inspect.getsource(one)))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    for said in (call.args[1] for call in calls if call.func.attr == "wrong"):
        if isinstance(said, ast.Constant):
            yield re.escape(str(said.value))
        elif isinstance(said, ast.JoinedStr):
            yield "".join(re.escape(one.value) if isinstance(one, ast.Constant) else ".+" for one in said.values)


def test_no_message_is_left_untold():
    texts = [*(written(text) for text, _ in TOLD), *(text for text, _ in MISTAKES)]
    whats = [NOT_HERE, *(one.what for text in texts for one in problems(text))]
    patterns = sorted(set(messages()))
    assert len(patterns) > 40
    assert [one for one in patterns if not any(re.fullmatch(one, what) for what in whats)] == []
