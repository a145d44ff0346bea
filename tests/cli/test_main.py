"""The door itself: help, usage errors, unexpected errors, and what it costs to start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmesh.cli import config

Cli = Callable[..., Any]


def test_help_names_every_verb_and_exit_code(cli: Cli) -> None:
    ran = cli("--help")
    assert ran.code == 0
    for verb in [
        "dev",
        "demo",
        "worker",
        "submit",
        "trace",
        "agents",
        "tools",
        "keys",
        "memory",
        "db",
        "config",
        "doctor",
        "flower",
    ]:
        assert re.search(rf"^\s+{verb}\s", ran.out, re.MULTILINE)
    assert "130 interrupted" in ran.out


def test_an_unknown_verb_is_a_usage_error_in_the_one_shape(cli: Cli) -> None:
    ran = cli("nope")
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("E_USAGE  No such command 'nope'\n")
    assert "  next      agentmesh --help" in ran.err


@pytest.mark.parametrize("group", [(), ("trace",), ("db",)])
def test_a_group_without_its_verb_prints_its_help_as_help(cli: Cli, group: tuple[str, ...]) -> None:
    ran = cli(*group)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == cli(*group, "--help").out


def test_a_missing_argument_names_the_help_of_its_verb(cli: Cli) -> None:
    ran = cli("submit", "--json")
    assert ran.code == 2
    assert ran.problem["schema"] == "agentmesh.problem/1"
    assert ran.problem["next"] == "agentmesh submit --help"


def test_an_unexpected_error_is_saved_to_a_file_that_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("token=abcdef1234567890")

    monkeypatch.setattr(config, "settings_of", broken)
    ran = cli("config", "show", "--json")
    saved = Path(ran.problem["value"])
    text = saved.read_text()
    saved.unlink()
    assert ran.code == 1
    assert ran.problem["code"] == "E_INTERNAL"
    assert "Traceback" not in ran.err
    assert "Traceback" in text
    assert "abcdef1234567890" not in text


def test_debug_shows_the_traceback(cli: Cli) -> None:
    assert "Traceback" in cli("--debug", "--config", "nowhere.toml", "config", "show").err


def test_ctrl_c_exits_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "settings_of", interrupted)
    assert cli("config", "show").code == 130


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, agentmesh.cli.main; print([m for m in sys.modules if '.' not in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"celery", "kombu", "sqlalchemy", "psycopg", "pydantic", "structlog", "rich", "flower"}
    assert heavy.isdisjoint(json.loads(loaded.replace("'", '"')))


def test_python_m_agentmesh_is_the_command_line() -> None:
    ran = subprocess.run([sys.executable, "-m", "agentmesh", "--version"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "0.1.0\n")
