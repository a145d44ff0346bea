"""dev, demo and worker as whole processes: what starts is ended, and what was killed goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentmesh.infrastructure.postgres import EmbeddedPostgres
from agentmesh.testing import until

pytestmark = [pytest.mark.story, pytest.mark.timeout(240)]

AGENT = """
agent: greeter
tools: []
reasoner: {python: "greeter:greet"}
"""
CODE = """
def greet(session):
    return {"answer": "hello " + session.payload.get("name", "nobody")}
"""


class Home:
    """A project in an empty folder that the embedded server's account can enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "config/agents").mkdir(parents=True)
        (folder / "config/agents/greeter.yaml").write_text(AGENT)
        (folder / "greeter.py").write_text(CODE)
        self.postgres = EmbeddedPostgres(folder / ".agentmesh")
        self.started: list[subprocess.Popen[str]] = []

    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTMESH_", "DEMO_"))}
        kept.pop("PYTHONUNBUFFERED", None)  # most people's Python buffers what goes into a pipe
        return kept | {"AGENTMESH_LOG_LEVEL": "warning", "PYTHONPATH": str(self.folder)}

    def start(self, *args: str) -> subprocess.Popen[str]:
        made = subprocess.Popen(
            [sys.executable, "-m", "agentmesh", *args], cwd=self.folder, env=self.environ(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(made)
        return made

    def run(self, *args: str, within: float = 120) -> tuple[int, str, str]:
        made = self.start(*args)
        out, err = made.communicate(timeout=within)
        return made.returncode, out, err

    def dev(self, *agents: str) -> subprocess.Popen[str]:
        """`dev --json`, when its worker beats; it knows these agents and the greeter."""
        made = self.start("dev", "--json")
        first = made.stdout.readline() if made.stdout else ""
        assert first, made.communicate()
        assert json.loads(first)["agents"] == [*agents, "greeter"]
        until(lambda: self.value("SELECT 1 FROM mesh.workers WHERE pid = %s AND state = 'alive'", made.pid), within=60)
        return made

    def value(self, query: str, *params: Any) -> Any:
        with psycopg.connect(self.postgres.dsn()) as connection:
            row = connection.execute(query.encode(), params).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        for one in self.started:
            with suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.communicate()
        self.postgres.stop()


@pytest.fixture
def home() -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="amcli-"))
    folder.chmod(0o755)
    made = Home(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_dev_starts_works_stops_on_ctrl_c_keeps_its_data_and_survives_kill_9(home: Home) -> None:
    first = home.dev()
    code, out, err = home.run("submit", "greeter", "greet", "--data", '{"name": "Ada"}', "--wait", "--timeout", "30")
    assert (code, out.splitlines()[-1]) == (0, '"hello Ada"'), err
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert (first.returncode, out) == (0, ""), err
    assert "the data stays" in err
    assert not (home.postgres.data / "postmaster.pid").exists()

    second = home.dev()
    assert home.value("SELECT count(*) FROM mesh.traces WHERE status = 'done'") == 1
    postmaster = int((home.postgres.data / "postmaster.pid").read_text().split()[0])
    os.killpg(second.pid, signal.SIGKILL)
    os.kill(postmaster, signal.SIGKILL)
    second.communicate()
    until(lambda: not alive(postmaster), what="the end of the server")

    home.dev()
    code, out, err = home.run("submit", "greeter", "greet", "--wait", "--timeout", "30")
    assert (code, out.splitlines()[-1]) == (0, '"hello nobody"'), err
    assert home.run("trace", "list", "--json")[1].count('"done"') == 2


def test_the_projects_files_in_the_readme_run_as_written(home: Home) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = dict(re.findall(r"```(yaml|toml|python)\n(.*?)```", readme, re.DOTALL))
    tools = block["python"].partition("# A producer")[0].replace("    ...\n", "    return [customer, str(since)]\n")
    types = "from datetime import date\nOrder, Receipt = object, dict\n"
    for name, text in [("config/agents/complaints.yaml", block["yaml"]), ("agentmesh.toml", block["toml"]),
                       ("shop_tools.py", types + tools.replace("list[Order]", "list"))]:  # fmt: skip
        (home.folder / name).write_text(text)
    home.dev("complaints")
    command = re.search(r"`agentmesh (submit complaints[^`]*)`", readme)
    assert command
    code, out, err = home.run(*shlex.split(command[1]), "--timeout", "30")
    assert (code, out.splitlines()[-1]) == (0, '[7, "2025-04-25"]'), err


def test_dev_ephemeral_leaves_nothing(home: Home) -> None:
    made = home.start("dev", "--ephemeral", "--json")
    assert made.stdout
    assert made.stdout.readline()
    until(lambda: home.value("SELECT 1 FROM mesh.workers WHERE state = 'alive'"), within=60)
    made.send_signal(signal.SIGTERM)
    _, err = made.communicate(timeout=60)
    assert made.returncode == 0, err
    assert "the data is deleted" in err
    assert not home.postgres.home.exists()


def test_the_demo_works_messages_while_every_worker_is_killed_once(home: Home) -> None:
    code, out, err = home.run("demo", "crash", "--count", "30", "--json", within=200)
    assert code == 0, err
    seen = json.loads(out)
    assert seen["schema"] == "agentmesh.demo/1"
    assert seen["crash"]["promise"] == "30 of 30 done, 0 lost, 0 recorded twice"
    assert {one["kind"] for one in seen["crash"]["killed"]} == {"agents", "tools"}
    assert len(seen["crash"]["killed"]) == 4
    assert seen["crash"]["broken"] == {}
    assert (seen["filed"], seen["doubles"], seen["failed"]) == (30, 0, 0)
    assert seen["agreement"] > 0.6
    assert Path(seen["report"]).read_text().startswith("<!doctype html>")
    assert not (home.postgres.data / "postmaster.pid").exists()


def test_the_demo_s_workers_end_when_it_is_killed(home: Home) -> None:
    made = home.start("demo", "--count", "1000")
    said: list[str] = []
    assert made.stderr
    reader = threading.Thread(target=lambda: said.extend(made.stderr or ()), daemon=True)
    reader.start()
    until(lambda: any("first trace finished" in line for line in said), within=120, what="the first trace")
    pids = [int(row) for row in _children(made.pid)]
    assert len(pids) >= 2
    os.kill(made.pid, signal.SIGKILL)
    made.wait(10)
    until(lambda: not any(alive(pid) for pid in pids), within=40, what="the workers' end")
    reader.join(timeout=10)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_the_demo_refuses_a_file_that_is_none(home: Home) -> None:
    code, out, err = home.run("demo", "--input", "nowhere.csv", "--json")
    assert (code, out) == (2, "")
    assert json.loads(err.splitlines()[-1])["code"] == "E_USAGE"


@pytest.mark.parametrize(("entry", "kind"), [("workers.agents", "agents"), ("workers.tools", "tools")])
def test_celery_s_own_command_starts_a_worker_of_ours(home: Home, entry: str, kind: str) -> None:
    server = home.postgres
    server.start()
    assert home.run("db", "upgrade")[0] == 0
    root = Path(__file__).parent.parent.parent
    environ = home.environ() | {
        "PYTHONPATH": f"{root}:{home.folder}",
        "AGENTMESH_TOOLS_IMPORTS": "agentmesh.demo.tools",
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", entry, "worker", "--concurrency", "2"], cwd=home.folder, env=environ,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    home.started.append(worker)
    until(lambda: home.value("SELECT 1 FROM mesh.workers WHERE pid = %s AND state = 'alive'", worker.pid), within=60)
    queues = home.value("SELECT queues FROM mesh.workers WHERE pid = %s", worker.pid)
    assert queues == (["agent.greeter"] if kind == "agents" else ["tools"])
    worker.terminate()
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    assert home.value("SELECT state FROM mesh.workers WHERE pid = %s", worker.pid) == "gone"
