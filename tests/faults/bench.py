"""The bench for faults: servers that may be ended, links that may be spoilt, workers with armed fault points, WF.

Order of a test: load → fault → `settle`: heal everything → wait until quiet → I1 to I12, the ledger, L. What was armed
and never reached fails the test.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from agentmesh import testing
from agentmesh.infrastructure.settings import load
from agentmesh.testing import until
from agentmesh.wiring import Mesh, build
from tests import meshes
from tests.faults import figures
from tests.faults.proxy import Proxy
from tests.meshes import Process

HERE = Path(__file__).parent
SPARE_THREADS = 12  # of a worker, beside those that run tools or traces: its loops, timers and connections
PARTS = 8  # of the parallel shape
TENANTS = ("default", "acme", "globex")
SHAPES = ("serial", "parallel", "fallback", "loop", "memory", "delegate")
LEDGER = """
CREATE TABLE IF NOT EXISTS ran (kind text, trace_id uuid, name text, idem_key text, attempt int, epoch int, pid int,
  at timestamptz DEFAULT clock_timestamp())
"""
AGENTS = {
    "worker": """
        agent: worker-{tag}
        tools: [part, model, here, filed, gated, sleepy, deaf, asked, abort, greedy, big]
        grants: ["data:read"]
        policy: {{callbacks: [judge], on_fail: callback}}
        tenants: [default, acme, globex]
        reasoner: {{python: "fault_parts:Worker"}}
    """,
    "child": """
        agent: child-{tag}
        tools: []
        tenants: [default, acme, globex]
        reasoner: {{python: "fault_parts:Child"}}
    """,
}


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a tool, or one answer of a reasoner, as it noted it itself."""

    kind: str
    trace_id: UUID
    name: str
    idem_key: str
    attempt: int
    epoch: int
    pid: int


def threads(pid: int) -> int:
    """How many threads the process has; 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return 0


class Bench(meshes.Story):
    """A mesh under faults. `servers` are its own, `links` its proxies; both are healed by `settle`."""

    folder = HERE
    parts = "fault_parts"
    agents = AGENTS

    def __init__(self, kind: str, home: Path, database_url: str, broker_url: str | None, *, ledger_url: str) -> None:
        super().__init__(kind, home, database_url, broker_url)
        self.ledger_url = ledger_url
        self.links: dict[str, Proxy] = {}
        self.servers: list[Any] = []
        self.settled = False
        self.shares = True  # a broker that is not its own
        self.reached = home / "reached"
        self.reached.mkdir()
        self.reached.chmod(0o777)
        self.temporary = home / "tmp"
        self.temporary.mkdir()
        self.temporary.chmod(0o777)
        self.env["TMPDIR"] = str(self.temporary)
        self._most_threads: dict[Process, int] = {}
        self.env |= {"FAULTS_LEDGER": ledger_url, "AGENTMESH_TEST_REACHED": str(self.reached)}
        self.test = ""
        self.accepted: list[UUID] = []
        self.kills = self.messages_lost = 0  # that no process of ours shows
        self._armed: list[tuple[str, str, Process]] = []
        self._tenants: dict[str, Mesh] = {}
        with psycopg.connect(ledger_url, autocommit=True) as ledger:
            ledger.execute(LEDGER)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS filed (trace_id uuid, idem_key text)")

    # --- faults -----------------------------------------------------------------------------------------------------

    def armed(self, kind: str, faults: str, **options: Any) -> Process:
        """A worker in which these points are armed; each must be reached before the test is over."""
        made = self.worker(kind, AGENTMESH_TEST_FAULTS=faults, **options)
        for one in faults.split(","):
            point, _, action = one.partition("=")
            self._armed.append((point, action, made))
        return made

    def worker(self, kind: str, *, concurrency: int = 4, **options: Any) -> Process:
        made = super().worker(kind, concurrency=concurrency, **options)
        self._most_threads[made] = concurrency + SPARE_THREADS
        return made

    def times(self, point: str) -> int:
        """How often an armed point was reached so far."""
        return len(list(self.reached.glob(f"{point}.*")))

    def until_reached(self, point: str, times: int = 1, within: float = 20) -> None:
        until(lambda: self.times(point) >= times, within=within, what=f"{point} reached")

    def heal(self) -> None:
        """Every server runs, every link carries, every process goes on."""
        for server in self.servers:
            server.start()
        for link in self.links.values():
            link.pass_()
        for process in self.processes:
            if process.running:
                process.signal(signal.SIGCONT, tree=True)

    def loses(self) -> None:
        """The broker is about to lose what it holds."""
        self.messages_lost += sum(self.mesh.broker.depths(self.queues()).values())

    # --- load -------------------------------------------------------------------------------------------------------

    def dispatch(self, agent: str, payload: dict[str, Any], **options: Any) -> Any:
        trace = super().dispatch(agent, payload, **options)
        self.accepted.append(trace.id)
        return trace

    def start(self, shape: str, n: int = 0, **payload: Any) -> Any:
        return self.dispatch("worker", {"shape": shape, "n": n, **payload})

    def given(self, *tools: dict[str, Any], **options: Any) -> Any:
        """A trace of one step with these calls, in parallel unless told otherwise."""
        return self.start("given", tools=list(tools), **{"strategy": "parallel"} | options)

    def tenant(self, name: str) -> Mesh:
        """A producer of this tenant, in the test's own process."""
        if name == TENANTS[0]:
            return self.mesh
        if name not in self._tenants:
            environ = {key: value for key, value in self.environ().items() if key.startswith("AGENTMESH_")}
            home = self.home / name
            home.mkdir()
            made = build(load(environ=environ | {"AGENTMESH_TENANT": name}, cwd=home), root=home)
            self._tenants[name] = made
        return self._tenants[name]

    def wf(self, n: int = 40, *, seed: int = 0) -> list[tuple[str, int, Any]]:
        """n traces of every shape over three tenants, dispatched one by one; (shape, n, trace)."""
        chance = random.Random(seed)
        made = []
        for k in range(n):
            shape, tenant = SHAPES[k % len(SHAPES)], chance.choice(TENANTS)
            intent = (
                "work",
                "bench",
                self.agent("worker"),
                f"context-{chance.randrange(10)}",
                {"shape": shape, "n": k},
            )
            made.append((shape, k, self.tenant(tenant).router.dispatch(*intent)))
        self.accepted += [trace.id for _, _, trace in made]
        return made

    # --- looking ----------------------------------------------------------------------------------------------------

    def ledger(self) -> list[Any]:
        with psycopg.connect(self.ledger_url, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT kind, trace_id, name, idem_key, attempt, epoch, pid FROM ran ORDER BY at"
            ).fetchall()
        return [Ran(*row) for row in rows]

    def runs(self, name: str | None = None) -> list[Ran]:
        """The runs of tools, or of one tool."""
        return [one for one in self.ledger() if one.kind == "tool" and name in {None, one.name}]

    def until_ran(self, name: str, times: int = 1, within: float = 20) -> list[Ran]:
        return until(
            lambda: (found := self.runs(name)) and len(found) >= times and found, within=within, what=f"a run of {name}"
        )

    def outcomes(self) -> Counter[str]:
        """How the attempts of tools ended."""
        rows = self.rows("SELECT outcome, count(*) AS n FROM mesh.attempts WHERE kind = 'tool' GROUP BY 1")
        return Counter({str(row["outcome"]): row["n"] for row in rows})

    # --- the end ----------------------------------------------------------------------------------------------------

    def settle(self, *, within: float = 60) -> None:
        """Heal, wait until every trace has ended, then check what must hold."""
        self.settled = True
        self.heal()
        self.quiet(within)
        unreached = [point for point, _, _ in self._armed if not self.times(point)]
        assert unreached == [], f"armed and never reached: {unreached}"
        assert testing.broken(self.database_url) == {}
        self.check_ledger()
        self.check_leaks()
        self.note()

    def note(self) -> None:
        """What this round came to, for the table of all."""
        known = {row["id"] for row in self.rows("SELECT id FROM mesh.traces")}
        figures.note(figures.Round(
            self.test, len(known), self.killed(), self.messages_lost, len(set(self.accepted) - known),
            self.value(figures.DOUBLED), self.value(figures.RECOVERY),
        ))  # fmt: skip

    def killed(self) -> int:
        """How many processes were ended with SIGKILL so far: by the test, at a point, and children of pools."""
        whole = sum(one.ended == -signal.SIGKILL for one in self.processes)
        children = [(point, action) for point, action, owner in self._armed if action[:4] == "kill" and owner.running]
        return whole + self.kills + sum(1 if "@" in action else self.times(point) for point, action in children)

    def check_ledger(self) -> None:
        """One run an attempt, each under the key and the epoch that its attempt recorded; no success without a run.

        What a child trace did, its own calls tell."""
        runs = Counter((one.idem_key, one.attempt, one.epoch) for one in self.runs())
        assert [one for one, n in runs.items() if n > 1] == [], "an attempt ran twice"
        rows = self.rows("SELECT idem_key, n, epoch, outcome FROM mesh.attempts WHERE kind = 'tool'"
                         " AND call_id NOT IN (SELECT id FROM mesh.calls WHERE tool = 'ask_child')")  # fmt: skip
        recorded = {(row["idem_key"], row["n"], row["epoch"]): row["outcome"] for row in rows}
        assert set(runs) - set(recorded) == set(), "a run that nobody recorded"
        assert {key for key, outcome in recorded.items() if outcome == "won"} - set(runs) == set(), "a success unrun"
        filed = self.rows("SELECT idem_key, count(*) AS n FROM filed GROUP BY 1")
        assert [row for row in filed if row["n"] > 1] == [], "a transactional write was doubled"
        won = "SELECT count(*) FROM mesh.calls WHERE tool = 'filed' AND status = 'done'"
        assert len(filed) == self.value(won)

    def check_leaks(self) -> None:
        """L: no session that has been in a transaction for long, no lock that is nobody's, no thread that stayed, no file."""
        crowded = {one.name: n for one, most in self._most_threads.items() if (n := threads(one.pid)) > most}
        assert crowded == {}, f"threads that stayed: {crowded}"
        mine = "pymp-"  # a prefork pool's own
        left = {one.name: one.read_text() for one in self.temporary.iterdir() if not one.name.startswith(mine)}
        assert left == {}, f"files that stayed: {left}"
        old = """SELECT pid, state, query FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND (xact_start < now() - interval '5 s'
              OR state LIKE 'idle in transaction%%' AND state_change < now() - interval '2 s')"""
        until(lambda: not self.rows(old), within=10, what="the end of old transactions")  # the server ends them, too
        assert self.rows("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = "
                         "(SELECT oid FROM pg_database WHERE datname = current_database())") == []  # fmt: skip

    def close(self) -> None:
        super().close()
        for mesh in self._tenants.values():
            mesh.close()
            if "app" in mesh.__dict__:
                mesh.app.close()
        for link in self.links.values():
            link.close()

    def orphans(self) -> list[int]:
        """Processes of this bench that are still there after its end."""
        mark = f"STORY_TAG={self.tag}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found
