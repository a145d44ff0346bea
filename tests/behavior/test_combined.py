"""Reasoners made of reasoners: rules before a model, vetoes after it, routes, and two beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentmesh.behavior.agents import load_agent_file
from agentmesh.behavior.combined import ReasonerRouter, Route, diff
from agentmesh.behavior.declared import Models
from agentmesh.behavior.reasoners import FunctionReasoner, ReasonerBase, RuleReasoner
from agentmesh.behavior.session import Session
from agentmesh.errors import BadAction, BadAgentFile, BadPrompt, BadRule, Forbidden, ReasonerFailed
from agentmesh.execution.router import ToolRouter
from agentmesh.execution.tools import ToolRegistry, register_tool
from agentmesh.records import Action, Policy
from tests.model_server import Step, calls, model_server, says

TOOLS = ToolRegistry()


@register_tool("pay", registry=TOOLS)
def pay(cents: int) -> int:
    return cents


@register_tool("ask_person", registry=TOOLS)
def ask_person(why: str) -> str:
    return why


DESK = ToolRouter(TOOLS, lambda _tenant: {})
HYBRID = """
agent: clerk
tools: [pay, ask_person]
reasoner:
  rules:
    - when: 'payload.kind == "greeting"'
      then: {answer: "hello"}
  llm:
    prompt: You are a clerk.
  veto:
    - when: action.tools.exists(t, t.tool == "pay" && t.args.cents > 1000)
      why: more than 10.00 needs a person
      then: {tools: [{tool: ask_person, args: {why: {"=": "payload.kind"}}}]}
    - when: action.tools.exists(t, t.tool == "pay" && t.args.cents < 1)
      why: nothing to pay
"""


def session(**given: Any) -> Session:
    fields = {"trace_id": "t", "context_id": "c", "tenant": "bank", "agent": "clerk", "intent": "i", "from_": "u",
              "tools": ("pay", "ask_person"), "payload": {"kind": "bill"}}  # fmt: skip
    return Session(**{**fields, **given})


def decide(folder: Path, *script: Step, text: str = HYBRID, seen: Session | None = None) -> tuple[Action, int]:
    """What the declared reasoner decides, and how often its model was asked."""
    (folder / "a.yaml").write_text(text)
    spec = load_agent_file(folder / "a.yaml")
    with model_server(*script) as server:
        made = spec.make_reasoner(desk=DESK, models=Models(server.url, "small"))
        action = made.select_action(seen or session())
    assert isinstance(action, Action)
    return action, len(server.asked)


def tool(action: Action) -> tuple[str, dict[str, Any]]:
    use = action.slots[0][0]
    return use.tool, use.args


# --- hybrid


def test_rules_decide_when_they_can_and_the_model_is_not_asked(tmp_path: Path) -> None:
    action, asked = decide(tmp_path, says("never"), seen=session(payload={"kind": "greeting"}))
    assert (action.answer, action.candidates, asked) == ("hello", ("rule 1",), 0)


def test_the_model_decides_when_no_rule_matches(tmp_path: Path) -> None:
    action, asked = decide(tmp_path, calls(("pay", '{"cents": 500}')))
    assert (tool(action), asked) == (("pay", {"cents": 500}), 1)


def test_a_veto_with_another_action_has_the_last_word(tmp_path: Path) -> None:
    action, asked = decide(tmp_path, calls(("pay", '{"cents": 5000}')))
    assert (tool(action), asked) == (("ask_person", {"why": "bill"}), 1)
    assert action.candidates == ("veto: more than 10.00 needs a person", "pay")


def test_a_veto_without_one_is_said_to_the_model_once(tmp_path: Path) -> None:
    action, asked = decide(tmp_path, calls(("pay", '{"cents": 0}')), calls(("pay", '{"cents": 1}')))
    assert (tool(action), asked) == (("pay", {"cents": 1}), 2)
    with pytest.raises(Forbidden, match="this is vetoed: nothing to pay"):
        decide(tmp_path, calls(("pay", '{"cents": 0}')))


# --- routes

ROUTED = """
agent: clerk
tools: [pay]
reasoner:
  route:
    - name: refunds
      when: intent == "refund"
      rules: [{then: {answer: "rules"}}]
    - name: bank
      when: tenant == "bank" && policy.max_steps < 50 && has(payload.long)
      llm: {prompt: You are brief.}
    - name: rest
      python: mesh_test_route:decide
"""


def test_the_first_route_that_fits_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mesh_test_route.py").write_text("def decide(session):\n    return {'answer': 'python'}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = [
        session(intent="refund"),
        session(payload={"long": 1}, policy=Policy(max_steps=9)),
        session(payload={"long": 1}),
        session(payload={"long": 1}, policy=Policy(max_steps=9), tenant="shop"),
    ]
    decided = [decide(tmp_path, says("model"), text=ROUTED, seen=one) for one in seen]
    assert [(action.answer, asked) for action, asked in decided] == [
        ("rules", 0), ("model", 1), ("python", 0), ("python", 0),
    ]  # fmt: skip
    versions = [str(action.policy_version) for action, _ in decided]
    assert (versions[0], versions[1][:11], versions[2]) == ("refunds", "bank/small@", "rest")


def test_a_session_that_no_route_fits_is_a_failure() -> None:
    router = ReasonerRouter([])
    with pytest.raises(ReasonerFailed, match="no route fits intent i"):
        router.select_action(session())


def test_a_routed_reasoner_is_prompted_as_it_wants() -> None:
    class Prompted(ReasonerBase):
        def select_action(self, session: Session) -> dict[str, Any]:
            return {"answer": len(session.notes)}

    assert ReasonerRouter([Route("only", None, Prompted())]).select_action(session()).answer == 1


# --- what a file may say


@pytest.mark.parametrize(
    ("reasoner", "place", "error"),
    [
        ("{llm: {prompt: P}, python: 'a:b'}", "2:11", BadAgentFile),
        ("{rules: [{then: {answer: 1}}], veto: [{when: 'true', why: w}]}", "2:48", BadAgentFile),
        ("{llm: {prompt: P, promt: x}}", "2:36", BadAgentFile),
        ("{llm: {prompt: {file: nowhere.md}}}", "2:17", BadAgentFile),
        ("{llm: {prompt: 'a {{ payload }}'}}", "2:17", BadPrompt),
        ("{llm: {prompt: P, base_url: 'http://user@host/v1'}}", "2:39", BadAgentFile),
        ("{llm: {prompt: P, answer: {type: nothing}}}", "2:17", BadAgentFile),
        ("{llm: {prompt: P}, veto: [{when: 'action.x +', why: w}]}", "2:44", BadRule),
        ("{llm: {prompt: P}, veto: [{when: 'true', why: w, then: {tool: t}}]}", "2:66", BadAction),
        ("{route: []}", "2:19", BadAgentFile),
        ("{route: [{name: a, when: 'nobody', rules: [{then: {answer: 1}}]}]}", "2:36", BadRule),
        ("{route: [{name: a}]}", "2:20", BadAgentFile),
    ],
)  # fmt: skip
def test_a_mistake_in_a_reasoner_names_its_place(
    tmp_path: Path, reasoner: str, place: str, error: type[Exception]
) -> None:
    (tmp_path / "a.yaml").write_text(f"agent: a\nreasoner: {reasoner}\n")
    with pytest.raises(error, match=rf"a\.yaml:{place}\b"):
        load_agent_file(tmp_path / "a.yaml")


# --- two beside each other


def test_two_reasoners_are_compared_at_one_point() -> None:
    loud = FunctionReasoner(lambda seen: seen.note("REASONER_PROMPT", {"n": 1}) or {"answer": seen.payload["kind"]})
    seen = session()
    same = diff(seen, loud, RuleReasoner([{"then": {"answer": {"=": "payload.kind"}}}]))
    other = diff(seen, loud, RuleReasoner([{"then": {"tools": ["pay"]}}]))
    failed = diff(seen, loud, RuleReasoner([{"when": "false", "then": {"answer": 1}}]))
    assert (same.same, other.same, failed.same) == (True, False, False)
    assert other.second.said() == {"tools": [{"tool": "pay", "args": {}}], "strategy": "serial", "require": "all"}
    assert failed.second.said()["code"] == "E_REASONER"
    assert [len(one.notes) for one in (same.first, same.second)] == [1, 0]
    assert seen.notes == []
