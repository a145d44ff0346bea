"""Agent files and policy files: what they say, and what a mistake in one gets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from agentmesh.behavior import agents
from agentmesh.behavior.reasoners import ReasonerBase, RuleReasoner
from agentmesh.behavior.session import Session
from agentmesh.errors import BadAction, BadAgentFile, BadPolicy, BadRule
from agentmesh.records import Backoff, Policy, PolicyPatch

ROOT = Path(__file__).parents[2]
RULES = "reasoner: {rules: [{then: {answer: 1}}]}\n"
SEEN = Session(trace_id="t", context_id="c", tenant="default", agent="a", intent="i", from_="u")


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def refusal(folder: Path, text: str, **given: Any) -> BadAgentFile:
    with pytest.raises(BadAgentFile) as caught:
        agents.load_agent_file(write(folder, text), **given)
    return caught.value


def test_a_name_and_a_reasoner_are_enough(tmp_path: Path) -> None:
    spec = agents.load_agent_file(write(tmp_path, "agent: sums\n" + RULES))

    assert (spec.agent, spec.queue, spec.intents, spec.tenants) == (
        "sums",
        "agent.sums",
        None,
        ("default",),
    )
    assert spec.accepts("anything")
    assert spec.default_strategy == "serial"
    assert spec.effective_policy() == PolicyPatch()
    assert isinstance(spec.make_reasoner(), RuleReasoner)


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
agent: complaints
version: "2.1"
description: works complaints
intents: [analyze, solve]
tools: [query_db, fetch_doc]
grants: ["db:read", "mail:*"]
policy: {max_steps: 7, backoff: {base_s: 2.0}, callbacks: [tell]}
executor: parallel
max_steps: 9
session: {strategy: structured, options: {memory_keys: ["long:name"]}}
tenants: [bank, shop]
group: slow
"""
    spec = agents.load_agent_file(write(tmp_path, text + RULES))

    assert (spec.version, spec.intents, spec.tools) == (
        "2.1",
        ("analyze", "solve"),
        ("query_db", "fetch_doc"),
    )
    assert (spec.grants, spec.tenants, spec.queue) == (
        ("db:read", "mail:*"),
        ("bank", "shop"),
        "agents.slow",
    )
    assert (spec.default_strategy, spec.accepts("analyze"), spec.accepts("other")) == (
        "parallel",
        True,
        False,
    )
    assert spec.effective_policy() == PolicyPatch(max_steps=9, backoff=Backoff(base_s=2.0), callbacks=("tell",))
    assert spec.session.options == {"memory_keys": ["long:name"]}


def test_a_spec_survives_json(tmp_path: Path) -> None:
    spec = agents.load_agent_file(write(tmp_path, "agent: sums\ngrants: ['a:*']\n" + RULES))
    again = agents.AgentSpec.model_validate_json(spec.model_dump_json())
    assert again.model_dump() == spec.model_dump()


def test_a_policy_is_named_or_written_out(tmp_path: Path) -> None:
    careful = PolicyPatch(max_steps=3)
    named = agents.load_agent_file(
        write(tmp_path, "agent: a\npolicy: careful\n" + RULES), policies={"careful": careful}
    )
    assert named.policy == careful


def test_an_agent_that_names_no_policy_gets_the_default_file(tmp_path: Path) -> None:
    given = {"default": PolicyPatch(max_steps=3)}
    assert agents.load_agent_file(write(tmp_path, "agent: a\n" + RULES), policies=given).policy.max_steps == 3


@pytest.mark.parametrize(
    ("text", "place", "value", "says"),
    [
        ("agent: a\ntoolz: [x]\n" + RULES, "2:8", "toolz", "did you mean tools?"),
        (
            "agent: a\npolicy: {max_stepz: 1}\n" + RULES,
            "2:21",
            "max_stepz",
            "did you mean max_steps?",
        ),
        (
            "agent: a\npolicy: {backoff: {bose_s: 1}}\n" + RULES,
            "2:28",
            "bose_s",
            "did you mean base_s?",
        ),
        ("agent: a\npolicy: carefull\n" + RULES, "2:9", "carefull", "did you mean careful?"),
        ("agent: a\nreasoner: {ruels: []}\n", "2:19", "ruels", "did you mean rules?"),
        ("agent: A b\n" + RULES, "1:8", "A b", "pattern"),
        ("agent: a\nversion: 1.10\n" + RULES, "2:10", "1.1", "string"),
        ("agent: a\nintents: analyze\n" + RULES, "2:10", "analyze", "array"),
        ("agent: a\ntools: [x, Y]\n" + RULES, "2:12", "Y", "pattern"),
        ("agent: a\nmax_steps: 0\n" + RULES, "2:12", "0", "greater"),
        ("agent: a\nmax_steps: '5'\n" + RULES, "2:12", "5", "integer"),
        ("agent: a\ngrants: ['DB:READ']\n" + RULES, "2:9", "DB:READ", "object:verb"),
        ("agent: a\ngrants: ['*:read']\n" + RULES, "2:9", "*:read", "object:verb"),
        ("agent: a\ntenants: []\n" + RULES, "2:10", "[]", "at least 1"),
        ("version: '1'\n" + RULES, "1:1", "agent", "agent: …"),
        ("agent: a\n", "1:1", None, "one of rules, python, llm, policy, route"),
        ("agent: a\nreasoner: {}\n", "2:11", None, "one of rules, python, llm, policy, route"),
        ("agent: a\nreasoner: {python: os.system}\n", "2:20", "os.system", "pattern"),
        ("- agent: a\n", "1:1", "[{'agent': 'a'}]", "agent: name"),
    ],
)
def test_a_mistake_names_place_value_and_what_was_expected(
    tmp_path: Path, text: str, place: str, value: str | None, says: str
) -> None:
    error = refusal(tmp_path, text, policies={"careful": PolicyPatch()})
    assert f"a.yaml:{place}" in error.what
    assert error.value == value
    assert says in error.expected


def test_a_mistake_in_a_rule_names_its_place(tmp_path: Path) -> None:
    text = "agent: a\nreasoner:\n  rules:\n    - when: paylod.x\n      then: {answer: 1}\n"
    with pytest.raises(BadRule, match=r"a\.yaml:4:13: .* at 1:1"):
        agents.load_agent_file(write(tmp_path, text))


def test_a_mistake_in_an_argument_names_its_place(tmp_path: Path) -> None:
    argument = "{tool: t, args: {x: {'=': '1 +'}}}"
    text = f"agent: a\nreasoner:\n  rules:\n    - then:\n        tools: [{argument}]\n"
    with pytest.raises(BadRule, match=r"a\.yaml:5:43: "):
        agents.load_agent_file(write(tmp_path, text))


def test_a_mistake_in_an_action_names_its_rule(tmp_path: Path) -> None:
    text = "agent: a\nreasoner:\n  rules:\n    - then: {tool: t}\n"
    with pytest.raises(BadAction, match=r"a\.yaml:4:13: "):
        agents.load_agent_file(write(tmp_path, text))


def test_s28_an_alias_in_an_agent_file_is_refused(tmp_path: Path) -> None:
    assert "an anchor" in refusal(tmp_path, "agent: &a b\n" + RULES).what


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAgentFile, match="not there"):
        agents.load_agents([tmp_path / "none.yaml"])


def test_a_folder_is_read_in_order_and_a_missing_one_has_no_agents(tmp_path: Path) -> None:
    write(tmp_path, "agent: b\n" + RULES, "1.yaml")
    write(tmp_path, "agent: a\n" + RULES, "2.yml")
    write(tmp_path, "not yaml: [", "notes.txt")
    assert list(agents.load_agents([tmp_path, tmp_path / "none"])) == ["b", "a"]


def test_two_files_cannot_declare_one_agent(tmp_path: Path) -> None:
    write(tmp_path, "agent: a\n" + RULES, "1.yaml")
    write(tmp_path, "agent: a\n" + RULES, "2.yaml")
    with pytest.raises(BadAgentFile, match="two files declare agent a"):
        agents.load_agents([tmp_path])


def test_the_shipped_agents_and_policies_load() -> None:
    policies = agents.load_policies([ROOT / "config/policies"])
    found = agents.load_agents([ROOT / "config/agents"], policies=policies)

    decided = (
        found["report_agent"]
        .make_reasoner()
        .select_action(
            Session(
                **{
                    **{f: getattr(SEEN, f) for f in ("trace_id", "context_id", "tenant", "agent", "from_")},
                    "intent": "generate_report",
                    "payload": {"date": "2025-04-25", "project": "AlphaX"},
                }
            )
        )
    )

    assert set(policies) >= {"default", "careful"}
    assert decided.answer["project"] == "AlphaX"  # type: ignore[union-attr]


def test_the_shipped_default_policy_says_what_is_built_in() -> None:
    default = agents.load_policies([ROOT / "config/policies/default.yaml"])["default"]
    assert Policy(**default.model_dump(exclude_none=True)) == Policy()


def test_a_mistake_in_a_policy_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(BadPolicy, match=r"p\.yaml:2:10: on_fail is not allowed"):
        agents.load_policies([write(tmp_path, "# c\non_fail: explode\n", "p.yaml")])


# --- in Python


def test_the_same_keys_are_arguments_in_python() -> None:
    spec = agents.define_agent(
        "sums",
        reasoner=lambda seen: {"answer": seen.intent},
        tools=["t"],
        policy=PolicyPatch(max_steps=2),
    )
    assert (spec.tools, spec.effective_policy().max_steps) == (("t",), 2)
    assert spec.make_reasoner().select_action(SEEN) == {"answer": "i"}


def test_a_wrong_argument_in_python_is_refused_like_a_wrong_key() -> None:
    with pytest.raises(BadAgentFile) as caught:
        agents.define_agent("sums", reasoner={"rules": [{"then": {"answer": 1}}]}, toolz=["t"])
    assert "did you mean tools?" in caught.value.expected


def test_an_argument_that_json_cannot_say_is_refused() -> None:
    with pytest.raises(BadAgentFile, match="agent sums"):
        agents.define_agent("sums", reasoner=lambda _: {}, tools={1})


def test_what_cannot_decide_is_no_reasoner() -> None:
    with pytest.raises(BadAgentFile, match="the reasoner is none"):
        agents.define_agent("sums", reasoner=5)  # type: ignore[arg-type]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    code = """
from agentmesh.behavior.reasoners import ReasonerBase
class Mine(ReasonerBase):
    def select_action(self, session):
        return {"answer": self.memory}
def decide(session):
    return {"answer": "f"}
number = 5
"""
    write(tmp_path, code, "mesh_test_reasoners.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mesh_test_reasoners"
    sys.modules.pop("mesh_test_reasoners", None)


def test_a_class_named_by_a_file_is_made_with_its_parts(tmp_path: Path, module: str) -> None:
    spec = agents.load_agent_file(write(tmp_path, f"agent: a\nreasoner: {{python: '{module}:Mine'}}\n"))
    made = spec.make_reasoner("memory", "tools", "trace")
    assert isinstance(made, ReasonerBase)
    assert made.select_action(SEEN) == {"answer": "memory"}


def test_a_function_named_by_a_file_decides(tmp_path: Path, module: str) -> None:
    spec = agents.load_agent_file(write(tmp_path, f"agent: a\nreasoner: {{python: '{module}:decide'}}\n"))
    assert spec.make_reasoner().select_action(SEEN) == {"answer": "f"}


@pytest.mark.parametrize("name", ["mesh_test_reasoners:nope", "no_such_module:x", "mesh_test_reasoners:number"])
def test_code_that_is_no_reasoner_is_refused_when_it_is_wanted(tmp_path: Path, module: str, name: str) -> None:
    spec = agents.load_agent_file(write(tmp_path, f"agent: a\nreasoner: {{python: '{name}'}}\n"))
    with pytest.raises(BadAgentFile):
        spec.make_reasoner()


def test_s55_reading_an_agent_file_imports_nothing(tmp_path: Path, module: str) -> None:
    agents.load_agent_file(write(tmp_path, f"agent: a\nreasoner: {{python: '{module}:decide'}}\n"))
    assert module not in sys.modules
