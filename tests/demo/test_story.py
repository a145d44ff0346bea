"""The demo on the real engine: every case is worked, delegated and filed once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import psycopg
import pytest

from agentmesh.behavior.agents import load_agents
from agentmesh.demo import agents, data, tables
from agentmesh.demo import tools as _registered  # noqa: F401 - importing registers the tools
from agentmesh.demo.keywords import UNKNOWN, categories
from agentmesh.demo.report import render_html
from agentmesh.demo.summary import Timing, summarise
from agentmesh.execution.tools import TOOLS, ToolRegistry
from agentmesh.testing import Bells
from agentmesh.wiring import Mesh
from tests.model_server import Answering, calls, model_server


@pytest.fixture
def tools() -> ToolRegistry:
    return ToolRegistry(TOOLS.list())


@pytest.fixture
def mesh(make_mesh: Any, database_url: str) -> tuple[Mesh, Bells]:
    with psycopg.connect(database_url) as connection:
        tables.prepare(connection)
    return make_mesh(*load_agents([agents.HOME]).values())  # type: ignore[no-any-return]


def test_every_case_is_worked_and_filed_once(
    mesh: tuple[Mesh, Bells], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEMO_MODEL_URL", raising=False)
    running, bells = mesh
    messages = data.load_test_messages(30)
    traces = [running.router.dispatch(**intent) for intent in data.intents(messages, run="run-1")]
    bells.drain(running)
    answers = [trace.result(0) for trace in traces]
    with psycopg.connect(database_url) as connection:
        cases = tables.filed(connection, "run-1")
        told = connection.execute(
            "SELECT name, count(*) FROM mesh.events WHERE trace_id = %s GROUP BY name", (traces[0].id,)
        ).fetchall()
        ended = connection.execute("SELECT agent, status, count(*) FROM mesh.traces GROUP BY 1, 2")
        assert sorted(ended.fetchall()) == [
            ("complaint_analysis_agent", "done", 30),
            ("report_agent", "done", 30),
        ]
    assert Counter(case["case"] for case in cases) == Counter(one.case for one in messages)
    assert sorted(answers, key=str) == sorted(cases, key=str)
    assert {case["rounds"] for case in cases} == {1, 2}
    assert {case["method"] for case in cases} == {"vote"}
    events = dict(told)
    assert events["TOOL_FAIL"] >= 1  # the model that is not there
    assert events["EXEC_DELEGATE"] == events["EXEC_DONE"] == 1
    summary = summarise(cases, data.labels(messages), Timing(30, 30, 0, 1.0))
    assert summary.agreement is not None
    assert summary.agreement > 0.6
    assert "30 cases need a person" in render_html(summary).replace("</strong>", "")


def test_a_message_like_no_past_case_falls_back_to_keywords(mesh: tuple[Mesh, Bells], database_url: str) -> None:
    running, bells = mesh
    odd = data.Message("input-1", "zzyzx qwxyz", None, 3, 0)
    (intent,) = data.intents([odd], run="run-2")
    trace = running.router.dispatch(**intent)
    bells.drain(running)
    answer = trace.result(0)
    assert (answer["method"], answer["rounds"]) == ("keywords", 2)
    assert answer["reason"] == "nothing says what it is about"
    with psycopg.connect(database_url) as connection:
        assert tables.filed(connection, "run-2") == [answer]


def nearest(to: Answering) -> None:
    """Answers as a model that believes the most similar case, and is sure of it."""
    data_told = to.server.asked[-1].messages[1]["content"]
    cases = json.loads(data_told.split("similar cases: ")[1].splitlines()[0])
    calls(("answer", json.dumps({"answer": {"category": cases[0]["category"], "confidence": 0.9}})))(to)


def test_with_a_model_rules_gather_and_the_model_decides(make_mesh: Any, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tables.prepare(connection)
    messages = data.load_test_messages(5)
    with model_server(nearest) as server:
        specs = load_agents(agents.WITH_MODEL)
        running, bells = make_mesh(*specs.values(), llm__base_url=server.url, llm__model="small")
        traces = [running.router.dispatch(**intent) for intent in data.intents(messages, run="run-3")]
        bells.drain(running)
        answers = [trace.result(0) for trace in traces]
    assert [one["method"] for one in answers] == ["model"] * 5
    assert len(server.asked) == 5  # the first round is the rules' alone
    enum = {one["function"]["name"]: one for one in server.asked[0].body["tools"]}["answer"]["function"]["parameters"]
    known = enum["properties"]["answer"]["properties"]["category"]["enum"]
    assert sorted(known) == sorted([*categories(), UNKNOWN])
    with psycopg.connect(database_url) as connection:
        assert sorted(tables.filed(connection, "run-3"), key=str) == sorted(answers, key=str)
