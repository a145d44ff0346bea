"""What `import agentmesh` costs, and which names it promises."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import agentmesh

PUBLIC = [
    "ACPClient", "ACPGateway", "ACPServer", "Action", "AgentCall", "AgentController", "AgentLifecycle", "AgentRegistry",
    "AgentRuntime", "AuditPipeline",
    "BIRRouter", "BehaviorChainEngine", "BehaviorPlan", "CallbackHandler", "ConditionalExecutor", "ContextBinder", "DAGExecutor",
    "DataAdapter", "Executor", "HybridReasoner",
    "LLMReasoner", "Later", "MemoryEngine", "MemoryEntry", "ParallelExecutor", "RLPolicyReasoner", "ReasonerBase",
    "ReasonerRouter", "RuleReasoner", "RuntimeContainer", "Scheduler", "SequentialExecutor", "SessionBuilder", "SessionManager",
    "TaskManager", "ToolContext", "ToolRegistry", "ToolRouter", "Trace", "TraceWriter", "Verdict", "define_agent",
    "register_callback", "register_embedder", "register_executor", "register_session_strategy", "register_tool",
]  # fmt: skip
HEAVY = {"celery", "kombu", "sqlalchemy", "psycopg", "pydantic", "pydantic_core", "structlog", "cryptography", "joserfc",
         "alembic", "typer", "rich", "redis", "yaml", "fastapi", "httpx", "asyncio", "importlib.metadata"}  # fmt: skip
MEASURE = """
import json, sys, threading, time
before = set(sys.modules)
opened = []
sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name in ("open", "socket.connect") else None)
started = time.thread_time()
import agentmesh
spent = time.thread_time() - started
json.dump({"spent": spent, "new": sorted(set(sys.modules) - before), "opened": opened,
           "threads": threading.active_count()}, sys.stdout)
"""


def imported(code: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_importing_agentmesh_loads_nothing_heavy() -> None:
    found = imported(MEASURE)
    new = found["new"]
    assert isinstance(new, list)
    assert not HEAVY & {name for module in new for name in (module, module.partition(".")[0])}
    assert [module for module in new if module.startswith("agentmesh.")] == []
    assert found["threads"] == 1


def test_importing_agentmesh_reads_no_file_but_its_own_code() -> None:
    opened = imported(MEASURE)["opened"]
    assert isinstance(opened, list)
    home = str(Path(agentmesh.__file__).parent)
    code = [one for one in opened if one.endswith((".py", ".pyc")) or ".pyc." in one]
    assert [one for one in opened if one not in code] == []
    assert any(one.startswith(home) or "__init__" in one for one in code)


def test_importing_agentmesh_costs_less_than_a_seventh_of_a_second() -> None:
    # processor time, which other processes do not lengthen; the best of three, which compiling does not lengthen
    spent = min(float(str(imported(MEASURE)["spent"])) for _ in range(3))
    assert spent < 0.15


def test_the_public_names_are_these() -> None:
    assert sorted(agentmesh.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_loads_where_it_says(name: str) -> None:
    found = getattr(agentmesh, name)
    assert found.__name__ == name
    assert found.__module__ == agentmesh._HOMES[name]


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonesuch'"):
        _ = agentmesh.Nonesuch


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    declared = project.get("version", agentmesh.__version__)
    assert agentmesh.__version__ == declared == version("agentmesh")
