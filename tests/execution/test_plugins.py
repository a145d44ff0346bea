"""Parts that an installed distribution brings: its entry points of group agentmesh.plugins, where the settings list it."""

import sys

import pytest

from agentmesh.errors import BadAgentFile
from agentmesh.execution.executors import EXECUTORS
from agentmesh.execution.tools import register_tool

CAREFUL = """
from agentmesh import Executor, register_executor

@register_executor("careful")
class CarefulExecutor(Executor):
    "Tries one tool after the other until one succeeds."

    strategy = "fallback"
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The distribution careful 1.2, which declares one entry point."""
    info = tmp_path / "site" / "careful-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: careful\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[agentmesh.plugins]\ncareful = careful_executor\n")
    (info.parent / "careful_executor.py").write_text(CAREFUL)
    monkeypatch.syspath_prepend(info.parent)
    yield
    EXECUTORS.pop("careful", None)
    sys.modules.pop("careful_executor", None)


@pytest.fixture
def lab(make_lab, tools):
    for name, fails in (("first", True), ("second", False)):

        @register_tool(name, registry=tools, attempts=1, inline=True)
        def work(fails: bool = fails) -> str:
            if fails:
                raise ValueError("told to")
            return "came through"

    return make_lab


def test_an_agent_runs_on_the_executor_that_a_listed_distribution_brings(installed, lab):
    lab = lab(executor="careful", flags={"tools__plugins": "careful==1.2"})
    trace = lab.start({"tools": ["first", "second"]})
    lab.drain()
    assert trace.status() == "done"
    [chosen] = [one for one in lab.mesh.trace_writer.get(trace.id) if one["name"] == "TOOL_DISPATCH"]
    assert chosen["body"]["strategy"] == "fallback"


def test_an_executor_of_a_distribution_that_is_not_listed_is_unknown(installed, lab):
    with pytest.raises(BadAgentFile, match="names an executor that does not exist") as caught:
        lab(executor="careful")
    assert caught.value.value == "careful"
