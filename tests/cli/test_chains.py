"""agentmesh chains show and diff, and the schema for editors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from agentmesh import define_agent
from agentmesh.execution.tools import TOOLS

Cli = Callable[..., Any]
OLD = "chain: order\nsteps:\n  - {tools: [work], id: ship}\n"
NEW = "chain: order\nsteps:\n  - {approval: ship it?}\n  - {tools: [work], id: ship, timeout: 5s}\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "old.yaml").write_text(OLD)
    (tmp_path / "new.yaml").write_text(NEW)
    (tmp_path / "config/chains").mkdir(parents=True)
    (tmp_path / "config/chains/order.yaml").write_text(NEW)
    return tmp_path


def test_a_chain_is_drawn_by_its_file_or_its_name(cli: Cli, files: Path) -> None:
    drawn = cli("chains", "show", "new.yaml")
    assert (drawn.code, drawn.out) == (0, cli("chains", "show", "order").out)
    assert "● approval  approval: approve / reject\n" in drawn.out
    assert cli("chains", "show", "order", "--format", "mermaid").out.startswith("flowchart TD\n")
    assert ElementTree.fromstring(cli("chains", "show", "order", "--format", "svg").out).tag.endswith("svg")
    assert cli("chains", "show", "order", "--json").json["plan"]["nodes"][1]["id"] == "ship"


def test_a_chain_that_nobody_knows_is_not_found_and_a_wrong_one_is_told(cli: Cli, files: Path) -> None:
    assert cli("chains", "show", "ordre", "--json").problem["code"] == "E_PLAN_UNKNOWN"
    (files / "old.yaml").write_text("chain: order\nsteps: []\n")
    assert cli("chains", "show", "old.yaml", "--json").problem["code"] == "E_CHAIN_FILE"


def test_lint_knows_the_chains_it_is_given_and_those_of_the_settings(cli: Cli, files: Path) -> None:
    (files / "one.yaml").write_text("chain: one\nsteps:\n  - chain: two\n  - chain: order\n    id: last\n")
    (files / "two.yaml").write_text("chain: two\nsteps: [{finish: 2}]\n")
    assert cli("chains", "lint", "one.yaml", "two.yaml").code == 0
    assert cli("chains", "lint", "one.yaml").code == 1


def test_two_chains_are_compared_node_by_node(cli: Cli, files: Path) -> None:
    ran = cli("chains", "diff", "old.yaml", "new.yaml")
    assert ran.code == 1
    assert '~ ship.policy  null -> {"tool_timeout_s": 5.0}' in ran.out.splitlines()
    assert "+ approval" in ran.out
    assert cli("chains", "diff", "new.yaml", "order").code == 0
    same = cli("chains", "diff", "old.yaml", "new.yaml", "--json").json["changes"]
    assert [(one["kind"], one["where"]) for one in same] == [("changed", "ship.policy"), ("added", "approval")]


def test_the_plan_a_trace_is_pinned_to_is_found_by_its_hash(
    mesh_cli: Cli, make_mesh: Callable[..., Any], files: Path
) -> None:
    mesh, _ = make_mesh(define_agent("puppet", reasoner=lambda _session: 1))
    pinned = mesh.registry.get("puppet").plan.hash
    assert "the agent's reasoner" in mesh_cli("chains", "show", pinned[:12]).out
    assert mesh_cli("chains", "diff", pinned, "order").code == 1
    assert mesh_cli("chains", "show", "0123456789", "--json").problem["code"] == "E_PLAN_UNKNOWN"


def test_the_schema_of_chains_is_json(cli: Cli) -> None:
    assert json.loads(cli("schema", "chain").out)["required"] == ["chain", "steps"]


STOCK = """
tool: lint_stock
arguments: {item: {type: string}}
result: {type: object, properties: {count: {type: integer}}}
http: {url: 'https://stock.example/{item}'}
"""


def test_lint_holds_a_chain_to_the_tools_of_the_settings(cli: Cli, files: Path) -> None:
    (files / "config/tools").mkdir()
    (files / "config/tools/stock.yaml").write_text(STOCK)
    (files / "ask.yaml").write_text(
        "chain: ask\nsteps:\n  - {tools: [{tool: lint_stock, args: {item: 5}}]}\n  - {finish: {=: result.cuont}}\n"
    )
    try:
        ran, said = cli("chains", "lint", "ask.yaml", "--json"), cli("chains", "lint", "ask.yaml").err
    finally:
        TOOLS.unregister("lint_stock")
    assert (ran.code, [one["where"] for one in ran.json["files"][0]["problems"]]) == (
        1, ["ask.yaml:3:46", "ask.yaml:4:18"],
    )  # fmt: skip
    assert said.splitlines()[-1] == "    expected  one of count · did you mean count?"


def test_lint_knows_the_tools_of_modules_that_lie_here(cli: Cli, files: Path) -> None:
    code = "from agentmesh import register_tool\n@register_tool('lint_own')\ndef own(n: int) -> int: return n\n"
    (files / "lint_tools.py").write_text(code)
    (files / "agentmesh.toml").write_text('[tools]\nimports = ["lint_tools"]\n')
    (files / "ask.yaml").write_text("chain: ask\nsteps:\n  - tools: [lint_own]\n")
    try:
        ran = cli("chains", "lint", "ask.yaml")
    finally:
        TOOLS.unregister("lint_own")
    assert (ran.code, "ask.yaml:3:13" in ran.err) == (1, True)


def test_lint_reads_chains_without_tools_that_cannot_be_loaded(cli: Cli, files: Path) -> None:
    (files / "agentmesh.toml").write_text('[tools]\nimports = ["no_such_module_here"]\n')
    ran = cli("chains", "lint", "old.yaml")
    assert (ran.code, "their code cannot be loaded: ModuleNotFoundError" in ran.err) == (0, True)
