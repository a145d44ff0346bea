"""Whole meshes for stories and faults: real worker processes over a real broker, ended for real.

A story has agents, tools, queues and a database that nobody else uses. Its processes are killed by their own pids only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import kombu
import psycopg
import redis
from psycopg.rows import dict_row

from agentmesh.infrastructure.settings import load
from agentmesh.records import new_id
from agentmesh.testing import until
from agentmesh.wiring import Mesh, build

TESTS = Path(__file__).parent
RUN_WORKER = TESTS / "stories" / "run_worker.py"
RUN_PRODUCER = TESTS / "stories" / "run_producer.py"
# lease 1 s, beat 0.1 s, rescue 0.5 s: what takes seconds in production takes moments here
QUICK = {
    "AGENTMESH_LEASE_LEASE": "1s", "AGENTMESH_LEASE_BEAT": "100ms", "AGENTMESH_LEASE_RESCUE": "500ms",
    "AGENTMESH_LEASE_RING_AGAIN": "1s", "AGENTMESH_LEASE_RING_AGAIN_CAP": "2s",
}  # fmt: skip


class Process:
    """A process of a story, leader of a group of its own; `said` is its standard output."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], cwd: Path) -> None:
        self.name = name
        self.log = cwd / f"{name}.log"
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                command, env=env, cwd=cwd, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def ended(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.poll()

    def signal(self, number: int, *, tree: bool = False) -> None:
        if tree:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, to its children too."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)

    def wait(self, within: float = 20) -> int:
        return self._process.wait(within)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Story:
    """One mesh, and what a test may do to it. Its agents and tools are those of `parts`, a module beside `folder`."""

    folder: ClassVar[Path] = TESTS / "stories"
    parts: ClassVar[str] = "story_parts"
    agents: ClassVar[Mapping[str, str]] = {}

    def __init__(self, kind: str, home: Path, database_url: str, broker_url: str | None, *, named: bool = True) -> None:
        self.kind, self.home, self.database_url, self.broker_url = kind, home, database_url, broker_url
        self.tag = f"t{new_id().hex[-10:]}"
        self.processes: list[Process] = []
        self._named = named  # False: embedded as a newcomer has it, found through mesh.home
        self._mesh: Mesh | None = None
        self.env: dict[str, str] = {}
        (home / "agents").mkdir()
        for name, text in self.agents.items():
            lines = [line[8:] for line in text.format(tag=self.tag).strip("\n").splitlines()]
            (home / "agents" / f"{name}.yaml").write_text("\n".join(lines))

    # --- processes --------------------------------------------------------------------------------------------------

    def environ(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AGENTMESH_")}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # else every worker compiles all of SQLAlchemy
        given = QUICK | {
            "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "agentmesh-story-pyc"),
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(TESTS.parent)]),
            "STORY_HOME": str(self.home), "STORY_TAG": self.tag,
            "AGENTMESH_AGENTS_PATHS": str(self.home / "agents"), "AGENTMESH_TOOLS_IMPORTS": self.parts,
            "AGENTMESH_LOG_FORMAT": "text",
        }  # fmt: skip
        if self._named:
            given["AGENTMESH_DATABASE_URL"] = self.database_url
        if self.broker_url is not None:
            given["AGENTMESH_BROKER_URL"] = self.broker_url
        return kept | given | self.env | more

    def worker(
        self, kind: str, *, pool: str = "threads", concurrency: int = 4, wait: bool = True, **env: str
    ) -> Process:
        """A worker process for agents, tools or all; it beats and consumes when this returns, unless told not to wait."""
        made = self.run([str(RUN_WORKER), kind, pool, str(concurrency)], f"{kind}-{len(self.processes)}", **env)
        if wait:
            self.wait_for(made)
        return made

    def workers(self, *wanted: tuple[str, str], **env: str) -> list[Process]:
        """Several (kind, pool) at once."""
        made = [self.worker(kind, pool=pool, wait=False, **env) for kind, pool in wanted]
        for one in made:
            self.wait_for(one)
        return made

    def gateway(self, **env: str) -> tuple[str, str]:
        """A gateway process; the URL where it listens, and its start token."""
        made = self.run(["-m", "agentmesh", "gateway", "--json"], f"gateway-{len(self.processes)}",
                        **{"AGENTMESH_GATEWAY_ADDRESS": "127.0.0.1:0"} | env)  # fmt: skip

        def told() -> dict[str, str] | None:
            assert made.running, f"{made.name} ended: {made.text()[-2000:]}"
            lines = [line for line in made.text().splitlines() if line.startswith('{"schema": "agentmesh.gateway')]
            return json.loads(lines[0]) if lines else None

        said = until(told, within=30, what=f"{made.name} listening")
        assert said is not None
        return said["url"], said["token"]

    def run(self, command: list[str], name: str, **env: str) -> Process:
        made = Process(name, [sys.executable, *command], self.environ(**env), self.home)
        self.processes.append(made)
        return made

    def wait_for(self, worker: Process, within: float = 90) -> None:
        def ready() -> bool:
            assert worker.running, f"{worker.name} ended: {worker.text()[-2000:]}"
            return (self.home / f"consuming-{worker.pid}").exists() and bool(self.rows(
                "SELECT 1 FROM mesh.workers WHERE pid = %s AND state = 'alive'", worker.pid
            ))  # fmt: skip

        until(ready, within=within, what=f"{worker.name} beating and consuming")

    # --- producing and looking ----------------------------------------------------------------------------------------

    @property
    def mesh(self) -> Mesh:
        """The producer's mesh, in the test's own process."""
        if self._mesh is None:
            environ = {key: value for key, value in self.environ().items() if key.startswith("AGENTMESH_")}
            self._mesh = build(load(environ=environ, cwd=self.home), root=self.home)
        return self._mesh

    def agent(self, name: str) -> str:
        return f"{name}-{self.tag}"

    def dispatch(self, agent: str, payload: dict[str, Any], **options: Any) -> Any:
        context = options.pop("context_id", f"case-{self.tag}")
        return self.mesh.router.dispatch("work", "story", self.agent(agent), context, payload, **options)

    def tool(self, name: str, gate: str, **options: Any) -> Any:
        """One call of one tool that waits at `gate`."""
        return self.dispatch("runner", {"tools": [{"tool": name, "args": {"gate": gate}}]}, **options)

    def open(self, gate: str) -> None:
        (self.home / gate).touch()

    def ledger(self) -> list[dict[str, Any]]:
        """Every run of every tool, as the tools noted it themselves."""
        file = self.home / "ledger"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def rows(self, query: str, *params: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.database_url, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(query, params).fetchall()  # type: ignore[arg-type]

    def value(self, query: str, *params: Any) -> Any:
        rows = self.rows(query, *params)
        return next(iter(rows[0].values())) if rows else None

    def events(self, trace_id: UUID) -> list[str]:
        found = self.rows("SELECT name FROM mesh.events WHERE trace_id = %s ORDER BY seq", trace_id)
        return [row["name"] for row in found]

    def quiet(self, within: float = 30) -> None:
        """Every trace has ended."""
        open_traces = "SELECT id, agent, status FROM mesh.traces WHERE status NOT IN ('done', 'failed', 'cancelled')"
        until(lambda: not self.rows(open_traces), within=within, what="every trace's end")

    def statuses(self) -> Counter[tuple[str, str]]:
        rows = self.rows("SELECT agent, status, count(*) AS n FROM mesh.traces GROUP BY 1, 2")
        return Counter({(row["agent"].removesuffix(f"-{self.tag}"), row["status"]): row["n"] for row in rows})

    def queues(self) -> list[str]:
        return [f"tools.{self.tag}", *(f"agent.{name}-{self.tag}" for name in self.agents)]

    def close(self) -> None:
        for process in self.processes:
            if process.running:
                process.signal(signal.SIGCONT, tree=True)
            process.kill()
        if self._mesh is not None:
            self._mesh.close()
            if "app" in self._mesh.__dict__:
                self._mesh.app.close()

    def clean(self) -> None:
        """Take from the broker what this story has put there."""
        if self.kind == "amqp" and self.broker_url:
            with kombu.Connection(self.broker_url, connect_timeout=3) as connection:
                for queue in self.queues():
                    connection.default_channel.queue_delete(queue)
                    connection.default_channel.exchange_delete(queue)
        elif self.kind == "redis" and self.broker_url:
            with (
                suppress(redis.ConnectionError),
                redis.Redis.from_url(self.broker_url) as client,
            ):  # its own may be stopped
                for key in client.scan_iter(f"*{self.tag}*"):
                    client.delete(key)
