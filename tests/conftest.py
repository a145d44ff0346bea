"""What every test may ask for: a server, a fresh database that keeps its promises, a mesh whose doorbells ring by hand.

`lab` is such a mesh with one agent, `puppet`, that does what its intent's payload says: tests of rows use it to get
rows into the state they need, and to hold locks and move the database's clock.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from agentmesh import testing
from agentmesh.behavior.agents import define_agent
from agentmesh.coordination.heartbeat import here
from agentmesh.execution.tools import ToolRegistry, register_tool
from agentmesh.infrastructure import faults
from agentmesh.records import Ring, new_id
from agentmesh.state import calls, leases
from agentmesh.state.traces import Holder
from agentmesh.testing import Bells
from agentmesh.wiring import Mesh
from tests.faults import figures

ROUNDS = {
    "f03": 2, "f04": 2, "f05_a_redis": 3, "f05_a_truncated": 5, "f07": 2, "f09": 2, "f10_links_cut": 5, "f11_a_holder": 2,
    "f12_a_tool": 3, "f12_an_agent": 5, "f12_a_frozen": 3, "f13_messages": 5, "f14": 3, "f15": 2, "f16_poison": 3, "f18": 3,
    "f19_a_deaf_thread": 3, "f19_a_cancel": 3, "f20": 3, "f21": 2, "f23_timers": 2, "f24_a_thousand": 3, "f25": 5, "f26": 3,
    "f28": 10, "f29": 3, "f30": 2,
}  # fmt: skip
"""How often `make faults` repeats these tests, beside their variants and what they do several times themselves."""

NUMBERED = re.compile(r"test_(f\d\d_\w+)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = NUMBERED.match(metafunc.function.__name__)
    if found is None or not os.environ.get("AGENTMESH_TEST_ROUNDS"):
        return
    rounds = next((n for name, n in ROUNDS.items() if found[1].startswith(name)), 1)
    if rounds > 1:
        metafunc.fixturenames.append("_round")
        metafunc.parametrize("_round", range(rounds), ids=[f"round{n}" for n in range(1, rounds + 1)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NUMBERED.match(item.name):
            item.add_marker("numbered")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for number, line in enumerate(figures.table()):
        if number == 0:
            terminalreporter.section("figures of the fault tests")
        terminalreporter.line(line)


@pytest.fixture(scope="session")
def postgres() -> str:
    """A PostgreSQL server where databases may be made."""
    return testing.need("AGENTMESH_TEST_POSTGRES_URL")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the accounts of servers can enter."""
    made = Path(tempfile.mkdtemp(prefix="amtest-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres: str) -> Iterator[str]:
    with testing.database(postgres) as url:
        yield url.rpartition("/")[2]


@pytest.fixture(scope="session")
def wiped(postgres: str, template: str) -> Iterator[str]:
    """One database for the tests of a run: making one takes ten times as long as emptying it."""
    with testing.database(postgres, template=template) as url:
        yield url


@pytest.fixture
def database_url(wiped: str) -> Iterator[str]:
    """A migrated, empty database; afterwards I1 to I12 must hold in it."""
    empty(wiped)
    yield wiped
    assert testing.broken(wiped) == {}


@pytest.fixture
def own_database(postgres: str, template: str) -> Iterator[str]:
    """A migrated database that the test may do anything to."""
    with testing.database(postgres, template=template) as url:
        yield url


TIME = """
CREATE OR REPLACE FUNCTION mesh.mesh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';
CREATE OR REPLACE FUNCTION mesh.mesh_asof() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT statement_timestamp()';
"""


def empty(url: str) -> None:
    """Afterwards nobody is connected, no row is left, and time is the server's again."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        tables = connection.execute(
            "SELECT 'mesh.' || tablename FROM pg_tables WHERE schemaname = 'mesh'"
            " AND tablename NOT IN ('alembic_version', 'events_default') ORDER BY 1"
        ).fetchall()
        deletes = ";".join(f"DELETE FROM {name}" for (name,) in tables)
        connection.execute("SET session_replication_role = replica")  # past the guard of the audit table
        connection.execute(TIME + deletes)


@pytest.fixture
def tools() -> ToolRegistry:
    return ToolRegistry()


@pytest.fixture
def make_mesh(database_url: str, tools: ToolRegistry, tmp_path: Path) -> Iterator[Callable[..., tuple[Mesh, Bells]]]:
    """make_mesh(*agents, **flags) -> (mesh, bells): these agents and the `tools` fixture, hosted in this process."""
    made: list[Mesh] = []

    def make(*agents: Any, **flags: object) -> tuple[Mesh, Bells]:
        known = {one.agent: one for one in agents}
        dotted = {name.replace("__", "."): value for name, value in flags.items()}
        mesh, bells = testing.hand_mesh(database_url, root=tmp_path, flags=dotted, tools=tools, agents=known)
        made.append(mesh)
        return mesh, bells

    yield make
    for mesh in made:
        mesh.close()


def do_as_told(session: Any) -> Any:
    """The puppet's mind: the next of `payload.do`, and when there is none left the results as its answer."""
    told = session.payload.get("do", [])
    return told[session.iteration] if session.iteration < len(told) else {"answer": dict(session.results)}


class Lab:
    """A mesh with the agent `puppet`, doorbells by hand, and a look at every row."""

    def __init__(self, url: str, mesh: Mesh, bells: Bells) -> None:
        self.url, self.mesh, self.bells = url, mesh, bells
        self.hand = mesh.notes.holder()

    # --- work

    def start(self, *actions: Any, **options: Any) -> Any:
        """A dispatched trace that is to take these actions in turn."""
        context = options.pop("context_id", "c-1")
        payload = {"do": list(actions), **options.pop("payload", {})}
        return self.mesh.router.dispatch("work", "tester", "puppet", context, payload, **options)

    def open(self, *tools: Any, **options: Any) -> Any:
        """A trace whose tools step is open and whose calls nobody has claimed; their doorbells wait in `bells`."""
        action = {"tools": list(tools)} | {key: options.pop(key) for key in ("strategy", "require") if key in options}
        trace = self.start(action, **options)
        self.bells.ring(self.mesh.controller.run_once(self.bells.waiting.pop()))
        return trace

    def answer(self) -> None:
        """Answer the oldest doorbell."""
        self.bells.ring(self.mesh.controller.run_once(self.bells.waiting.popleft()))

    def drain(self) -> int:
        return self.bells.drain(self.mesh)

    # --- rows

    def rows(self, sql: str, **params: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(sql, params)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def trace(self, trace: Any) -> dict[str, Any]:
        return self.rows("SELECT * FROM mesh.traces WHERE id = %(id)s", id=trace.id)[0]

    def steps(self, trace: Any) -> list[dict[str, Any]]:
        return self.rows(
            "SELECT * FROM mesh.steps WHERE trace_id = %(id)s AND kind <> 'group' ORDER BY ordinal", id=trace.id
        )

    def step(self, trace: Any) -> dict[str, Any]:
        """Its newest step."""
        return self.steps(trace)[-1]

    def calls(self, trace: Any) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM mesh.calls WHERE trace_id = %(id)s ORDER BY slot, idx", id=trace.id)

    def attempts(self, trace: Any, kind: str = "tool") -> list[dict[str, Any]]:
        return self.rows(
            "SELECT * FROM mesh.attempts WHERE trace_id = %(id)s AND kind = %(kind)s ORDER BY started_at, n",
            id=trace.id,
            kind=kind,
        )

    def outcomes(self, trace: Any, kind: str = "tool") -> list[str | None]:
        return [one["outcome"] for one in self.attempts(trace, kind)]

    def events(self, trace: Any) -> list[str]:
        return [one["name"] for one in self.mesh.trace_writer.get(trace.id)]

    def everything(self) -> dict[str, list[str]]:
        """Every row of every table that a transition may write, as text: what must not differ after a loser."""
        tables = ("traces", "steps", "calls", "attempts", "events", "effects", "memory", "contexts", "envelopes")
        return {
            table: sorted(row["row"] for row in self.rows(f"SELECT t::text AS row FROM mesh.{table} t"))
            for table in tables
        }

    # --- workers, leaves

    def worker(self, name: str = "other", *, pid: int | None = None, lease_s: float = 10) -> Holder:
        """Another live worker; with `pid` its process is that one (and 0 as its start, which is never right)."""
        made = here(name=name, queues=[], agents=[], tools=[], version="1", lease_s=lease_s)
        if pid is not None:
            made = replace(made, pid=pid, pid_started=1)
        leases.register(self.mesh.db, made)
        return Holder(made.id)

    def kill(self, holder: Holder) -> None:
        """The worker is dead from now on, as others see it."""
        self.rows("UPDATE mesh.workers SET state = 'dead' WHERE id = %(id)s", id=holder.worker_id)

    def claim(self, call: dict[str, Any], holder: Holder | None = None, *, alone: bool = True) -> Any:
        return calls.claim(
            self.mesh.db, call["id"], call["epoch"], task=call["task"], holder=holder or self.hand, attempt_id=new_id(),
            alone=alone,
        )  # fmt: skip

    def settle(self, claimed: Any, outcome: str = "won", **more: Any) -> Any:
        with self.mesh.db.checkout() as tx:
            return calls.settle(tx, claimed.row, worker_id=claimed.holder.worker_id, outcome=outcome, **more)  # type: ignore[arg-type]

    def ring(self, trace: Any) -> Ring:
        """The doorbell of the newest step of the trace."""
        return self.ring_of(self.step(trace), trace)

    def ring_of(self, step: dict[str, Any], trace: Any) -> Ring:
        return Ring("step", step["id"], step["epoch"], step["queue"], f"agent.{step['agent']}", trace.id)

    # --- forcing

    @contextmanager
    def held(self, table: str, row_id: UUID) -> Iterator[None]:
        """The row is locked by a stranger until the block ends."""
        with psycopg.connect(self.url) as connection:
            connection.execute(f"SELECT 1 FROM mesh.{table} WHERE id = %s FOR NO KEY UPDATE", (row_id,))
            yield
            connection.rollback()

    def until_blocked(self, number: int) -> None:
        """Until `number` sessions of this database wait for a lock."""
        testing.until(
            lambda: self.rows(
                "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )[0]["n"] >= number,
            within=5, what=f"{number} sessions waiting for a lock",
        )  # fmt: skip

    def at_lock(self, table: str, row_id: UUID, *functions: Callable[[], Any]) -> list[Any]:
        """What the functions return when all of them have to wait for this row first; None for one that raised."""
        outcomes: list[Any] = [None] * len(functions)

        def run(place: int) -> None:
            try:
                outcomes[place] = functions[place]()
            except Exception as exc:  # noqa: BLE001 - handed to the test
                outcomes[place] = exc

        threads = [threading.Thread(target=run, args=(place,)) for place in range(len(functions))]
        with self.held(table, row_id):
            for thread in threads:
                thread.start()
            self.until_blocked(len(threads))
        for thread in threads:
            thread.join(timeout=20)
        return outcomes

    def shift(self, seconds: float) -> None:
        """Move the database's time: from now on it is this much later than the server's clock."""
        testing.shift(self.url, seconds)


PUPPET_TOOLS = ("work", "twice", "boom", "fallible", "lasting", "quick", "shaky")


@pytest.fixture
def lab(make_mesh: Callable[..., tuple[Mesh, Bells]], database_url: str, tools: ToolRegistry) -> Iterator[Lab]:
    """work: n + 1 · twice: effect once · boom: always fails, one attempt · fallible: three attempts, no back-off ·
    lasting: three attempts, back-off 100 s · quick: inline · shaky: inline, fails, two attempts, back-off 0."""
    from agentmesh.records import Backoff

    at_once, slow = Backoff(base_s=0, cap_s=0), Backoff(base_s=100, cap_s=1000)

    @register_tool("work", registry=tools, attempts=1)
    def work(n: int = 0) -> int:
        return n + 1

    @register_tool("twice", registry=tools, effect="once")
    def twice(n: int = 0) -> int:
        return n

    @register_tool("boom", registry=tools, attempts=1)
    def boom() -> int:
        raise ValueError("boom")

    @register_tool("fallible", registry=tools, attempts=3, backoff=at_once)
    def fallible() -> int:
        raise ValueError("again")

    @register_tool("lasting", registry=tools, attempts=3, backoff=slow)
    def lasting() -> int:
        raise ValueError("later")

    @register_tool("quick", registry=tools, inline=True)
    def quick(n: int = 0) -> int:
        return n + 1

    @register_tool("shaky", registry=tools, inline=True, attempts=2, backoff=at_once)
    def shaky() -> int:
        raise ValueError("shaky")

    mesh, bells = make_mesh(define_agent("puppet", reasoner=do_as_told, tools=list(PUPPET_TOOLS)))
    yield Lab(database_url, mesh, bells)
    faults.disarm()


@pytest.fixture
def make_lab(make_mesh: Callable[..., tuple[Mesh, Bells]], database_url: str, tools: ToolRegistry) -> Iterator[Any]:
    """make_lab(*others, flags, **agent keys) -> Lab whose puppet may use every tool registered by now, beside other agents."""

    def make(*others: Any, flags: dict[str, object] | None = None, **keys: Any) -> Lab:
        names = [one.name for one in tools.list()]
        puppet = define_agent("puppet", **{"reasoner": do_as_told, "tools": names, "grants": ["*"]} | keys)
        mesh, bells = make_mesh(puppet, *others, **(flags or {}))
        return Lab(database_url, mesh, bells)

    yield make
    faults.disarm()
