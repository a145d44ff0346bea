"""agentmesh feedback and agents diff: a decision is rewarded, and asked of another reasoner without anything running."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.model_server import calls, model_server

Cli = Callable[..., Any]
AGENT = """
agent: puppet
tools: [work]
reasoner: {rules: [{then: {tools: [{tool: work, args: {n: {"=": payload.n}}}]}}]}
"""


def test_feedback_rewards_the_decision_and_says_which(mesh_cli: Cli, lab: Any) -> None:
    trace = lab.start({"answer": 1})
    lab.drain()
    ran = mesh_cli("feedback", trace.id, "0.5", "--note", "helpful", "--key", "k", "--json")
    assert (ran.code, ran.json["step"], ran.json["repeated"]) == (0, 1, False)
    assert "had this reward already" in mesh_cli("feedback", "@last", "0.5", "--key", "k").err
    assert "step 1 earned -1" in mesh_cli("feedback", "@last", "--", "-1").err
    (first, _) = lab.rows("SELECT reward, body FROM mesh.rewards ORDER BY at")
    assert first == {"reward": 0.5, "body": {"by": getpass.getuser(), "note": "helpful"}}
    assert mesh_cli("feedback", trace.id, "nan").code == 2


def test_rewards_teach_a_policy_that_an_agent_file_can_name(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    assert mesh_cli("agents", "learn", "puppet").code == 3
    for name, other, reward in (("good", "bad", 1), ("bad", "good", 0)):
        trace = lab.start(
            {"answer": name, "candidates": [name, other], "propensity": 0.5, "policy_version": "untaught"}
        )
        lab.drain()
        trace.feedback(reward)
    taught = mesh_cli("agents", "learn", "puppet")
    assert taught.json["values"] == {"good": 1.0, "bad": 0.0}
    (tmp_path / "policy.json").write_text(taught.out)
    choices = "{good: {answer: good}, bad: {answer: bad}}"
    policy = f"{{choices: {choices}, file: policy.json, explore: 0}}"
    (tmp_path / "taught.yaml").write_text(f"agent: puppet\nreasoner: {{policy: {policy}}}\n")
    (chosen, _) = mesh_cli("agents", "diff", "@last", "taught.yaml", "--json").json["decisions"]
    assert chosen["decision"]["answer"] == "good"


def test_feedback_on_an_undecided_trace_exits_3(mesh_cli: Cli, lab: Any) -> None:
    trace = lab.start({"answer": 1})
    assert mesh_cli("feedback", trace.id, "1", "--json").problem["code"] == "E_DECISION_UNKNOWN"


def test_another_reasoner_is_asked_the_same_and_nothing_is_written(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    trace = lab.start({"tools": [{"tool": "work", "args": {"n": 3}}]}, {"answer": 4}, payload={"n": 3})
    lab.drain()
    before = lab.everything()
    (tmp_path / "same.yaml").write_text(AGENT)
    (tmp_path / "other.yaml").write_text(AGENT.replace("payload.n", "payload.n + 1"))
    same = mesh_cli("agents", "diff", trace.id, "same.yaml", "--step", "2", "--json")
    assert (same.code, same.json["same"], same.json["step"]) == (0, True, 1)
    other = mesh_cli("agents", "diff", trace.id, "same.yaml", "other.yaml", "--json")
    assert (other.code, [one["decision"]["tools"][0]["args"] for one in other.json["decisions"]]) == (
        1,
        [{"n": 3}, {"n": 4}],
    )
    assert "different" in mesh_cli("agents", "diff", trace.id, "other.yaml").err
    (tmp_path / "diff_mind.py").write_text("def decide(session):\n    return {'answer': session.payload['n'] + 1}\n")
    (tmp_path / "python.yaml").write_text("agent: puppet\nreasoner: {python: 'diff_mind:decide'}\n")
    mine = mesh_cli("agents", "diff", trace.id, "python.yaml", "--json").json["decisions"][0]
    assert mine["decision"]["answer"] == 4
    assert lab.everything() == before


def test_a_model_is_asked_the_same_and_what_it_cost_is_shown(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    trace = lab.start({"answer": 1}, payload={"n": 3})
    lab.drain()
    (tmp_path / "model.yaml").write_text("agent: puppet\nreasoner: {llm: {prompt: You work.}}\n")
    with model_server(calls(("nothing", "{}"))) as server:
        environ = {"AGENTMESH_LLM_BASE_URL": server.url, "AGENTMESH_LLM_MODEL": "m"}
        ran = mesh_cli("agents", "diff", trace.id, "model.yaml", "--json", **environ)
    asked, recorded = ran.json["decisions"]
    assert (ran.code, asked["decision"]["code"], recorded["decision"]["answer"]) == (1, "E_TOOL_UNKNOWN", 1)
    assert [note["output_tokens"] for note in asked["notes"]] == [7, 7]
