"""How far one trace goes, and what waiting costs: each bench prints a table of its own.

deep: steps in one trace. wide: calls in one step. nested: levels of sub-chains. waiting: traces that ask a person, as rows.
idle: a cluster with nothing to do. In deep and nested this process is the worker, so that nothing hides a step's cost.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from agentmesh import ToolContext, ToolRegistry, define_agent, register_tool
from agentmesh.infrastructure import database, logging
from agentmesh.infrastructure.settings import load
from agentmesh.testing import database as fresh
from agentmesh.testing import hand_mesh
from agentmesh.wiring import Mesh, build
from bench import common
from bench.servers import home

BLOCK = 1000
LEVELS = 200
CALLS, SPREAD = 1000, 300
WAITING = 10_000
ASK = {"chain": "ask", "steps": [{"approval": "shall it go on?"}, {"finish": {"=": "result.by"}}]}


def table(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    print(f"\n{title}\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{one:.2f}" if isinstance(one, float) else str(one) for one in row) + " |", flush=True)


class RoundTrips:
    """Counts those of this process to PostgreSQL."""

    def __init__(self) -> None:
        self.n = 0
        wait = database.Connection.wait

        def counted(connection: Any, *args: Any, **options: Any) -> Any:
            self.n += 1
            return wait(connection, *args, **options)

        database.Connection.wait = counted  # type: ignore[method-assign]


class Clock:
    """Where time and memory stand: wall, CPU of this process and of PostgreSQL, round trips, resident memory."""

    def __init__(self, trips: RoundTrips) -> None:
        with common.pg() as connection:
            pid = connection.execute("select pg_backend_pid()").fetchone()[0]  # type: ignore[index]
            self._postmaster = psutil.Process(pid).parent()
        self._trips = trips

    def read(self) -> tuple[float, ...]:
        server = common.cpu_s([self._postmaster, *self._postmaster.children()])
        return (
            time.perf_counter(),
            time.process_time(),
            server,
            self._trips.n,
            psutil.Process().memory_info().rss / 2**20,
        )


# --- deep


def deep(_: dict[str, str], *, quick: bool) -> None:
    steps = 10 * BLOCK if quick else 100 * BLOCK
    rows: list[tuple[Any, ...]] = []
    for what, looks in (("looks at nothing", False), ("looks at memory, results and steps", True)):
        stamps = _deep(steps, looks=looks)
        for name, (a, b) in (("first 1,000", stamps[:2]), ("last 1,000", stamps[-2:])):
            wall, cpu, server, trips, _ = (x - y for x, y in zip(b, a, strict=True))
            rows.append(
                (what, name, wall * 1000 / BLOCK, cpu * 1000 / BLOCK, server * 1000 / BLOCK, trips / BLOCK, b[4])
            )
    head = ("the reasoner", "steps", "ms a step", "CPU ms", "PostgreSQL ms", "round trips", "resident MB")
    table(f"{steps:,} steps in one trace", head, rows)


def _deep(steps: int, *, looks: bool) -> list[tuple[float, ...]]:
    stamps: list[tuple[float, ...]] = []
    clock = Clock(RoundTrips())
    tools = ToolRegistry()

    @register_tool("tick", inline=True, registry=tools)
    def tick(ctx: ToolContext) -> int:  # noqa: ARG001
        return 1

    def decide(session: Any) -> dict[str, Any]:
        if session.step >= len(stamps) * BLOCK:
            stamps.append(clock.read())
        if looks:
            len(session.memory), len(session.results), len(session.steps)
        return {"answer": session.step} if session.step >= steps else {"tools": ["tick"]}

    policy = {"max_steps": 2 * steps, "trigger_next_action": True}
    agent = define_agent("deep", reasoner=decide, tools=["tick"], policy=policy)
    with in_hand(tools, agent) as (mesh, bells):
        trace = mesh.router.dispatch("work", "bench", "deep", "one", {})
        bells.drain(mesh)
        assert trace.status() == "done", trace.status()
    return stamps


@contextmanager
def in_hand(tools: ToolRegistry, *agents: Any, **flags: Any) -> Iterator[tuple[Mesh, Any]]:
    logging.configure(format="text", level="error")
    flags.setdefault("limits.steps", 1_000_000)
    with home() as folder, fresh(common.PG_URL) as url:
        given = {one.agent: one for one in agents}
        mesh, bells = hand_mesh(url, root=folder, tools=tools, agents=given, flags=flags)
        try:
            yield mesh, bells
        finally:
            mesh.close()


# --- nested


def nested(_: dict[str, str], *, quick: bool) -> None:
    depth = LEVELS // 4 if quick else LEVELS
    with home() as folder:
        for level in range(depth):
            step = "finish: {n: 1}" if level == depth - 1 else f"chain: level-{level + 1}"
            (folder / f"level-{level}.yaml").write_text(f"chain: level-{level}\nsteps:\n  - {step}\n")
        agent = define_agent("deep", chain="level-0", reasoner=None)
        trips = RoundTrips()
        with in_hand(ToolRegistry(), agent, **{"agents.chains": str(folder)}) as (mesh, bells):
            clock = Clock(trips)
            trace = mesh.router.dispatch("work", "bench", "deep", "one", {})
            stamps = [clock.read()]
            while bells.waiting:
                bells.ring(mesh.controller.run_once(bells.waiting.popleft()))
                stamps.append(clock.read())
            assert trace.status() == "done", trace.status()
    rows = []
    down, up = stamps[: depth + 1], stamps[depth:]
    for name, some in (("down, first tenth", down[: depth // 10]), ("down, last tenth", down[-depth // 10 :]),
                       ("up, first tenth", up[: depth // 10]), ("up, last tenth", up[-depth // 10 :])):  # fmt: skip
        wall, cpu, server, n, _ = (x - y for x, y in zip(some[-1], some[0], strict=True))
        levels = len(some) - 1
        rows.append((name, wall * 1000 / levels, cpu * 1000 / levels, server * 1000 / levels, n / levels))
    table(f"{depth} levels of sub-chains", ("", "ms a level", "CPU ms", "PostgreSQL ms", "round trips"), rows)


# --- with worker processes


def fan_mesh(url: str) -> Mesh:
    tools = ToolRegistry()

    @register_tool("double", registry=tools)
    def double(ctx: ToolContext, n: int) -> int:  # noqa: ARG001
        return 2 * n

    def decide(session: Any) -> dict[str, Any]:
        return {
            "tools": [{"tool": "double", "args": {"n": n}, "as": f"r{n}"} for n in range(session.payload["n"])],
            "strategy": "parallel",
        }

    given = {"AGENTMESH_DATABASE_URL": url, "AGENTMESH_HOME": str(Path(os.environ["BENCH_HOME"]) / "mesh")}
    for kind in ("REDIS", "AMQP"):
        if os.environ.get("PEER_BROKER") == kind.lower():
            given["AGENTMESH_BROKER_URL"] = os.environ[f"{kind}_URL"]
    agents = {"fan": define_agent("fan", reasoner=decide, tools=["double"], policy={"write_memory": False}),
              "clerk": define_agent("clerk", chain=ASK)}  # fmt: skip
    return build(load(environ=given, cwd=Path(os.environ["BENCH_HOME"])), tools=tools, agents=agents)


def worker(url: str, kind: str) -> None:
    logging.configure(format="text", level="warning")
    sys.exit(fan_mesh(url).work(kind, pool="threads", concurrency=8))  # type: ignore[arg-type]


@contextmanager
def cluster(*kinds: str) -> Iterator[tuple[Mesh, common.Procs, psycopg.Connection[Any]]]:
    processes = common.Procs()
    with home() as folder, fresh(common.PG_URL) as url, psycopg.connect(url, autocommit=True) as connection:
        os.environ["BENCH_HOME"] = str(folder)
        made = fan_mesh(url)
        try:
            for kind in kinds:
                processes.start(common.module_worker("limits", url, kind))
            alive = "select count(*) from mesh.workers where state = 'alive'"
            common.wait_ready(lambda: connection.execute(alive).fetchone()[0] == len(kinds))  # type: ignore[index]
            yield made, processes, connection
        finally:
            processes.stop()
            made.close()


def wide(_: dict[str, str], *, quick: bool) -> None:
    taken: dict[str, list[float]] = {"one step": [], f"{SPREAD} steps": []}
    with cluster("agents", "tools") as (mesh, _processes, connection):
        _fan(mesh, connection, [3] * 20)
        for _round in range(1 if quick else 5):
            taken["one step"].append(_fan(mesh, connection, [CALLS]))
            narrow = CALLS // SPREAD
            extra = CALLS - narrow * SPREAD
            taken[f"{SPREAD} steps"].append(_fan(mesh, connection, [narrow + (n < extra) for n in range(SPREAD)]))
    rates = {name: CALLS / statistics.median(some) for name, some in taken.items()}
    ratio = rates["one step"] / rates[f"{SPREAD} steps"]
    rows = [(name, rate, ratio if name == "one step" else 1.0) for name, rate in rates.items()]
    table(f"{CALLS:,} calls on a tool worker", ("in", "calls/s", "ratio"), rows)


def _fan(mesh: Mesh, connection: psycopg.Connection[Any], sizes: list[int]) -> float:
    started = time.perf_counter()
    made = mesh.router.dispatch_many([
        {"intent": "work", "from_id": "bench", "to_id": "fan", "context_id": f"c{n}", "payload": {"n": size}}
        for n, size in enumerate(sizes)
    ])  # fmt: skip
    ids = [one.id for one in made]
    done = "select count(*) from mesh.traces where id = any(%s) and status = 'done'"
    common.wait_ready(lambda: connection.execute(done, (ids,)).fetchone()[0] == len(ids), 120, "the traces")  # type: ignore[index]
    return time.perf_counter() - started


def waiting(_: dict[str, str], *, quick: bool) -> None:
    number = WAITING // 10 if quick else WAITING
    rows: list[tuple[Any, ...]] = []
    with cluster("agents") as (mesh, processes, connection):
        _ask(mesh, connection, 20)  # what a worker grows to at its first work
        rows.append((20, *_rest(processes, connection, mesh, 10 if quick else 30)))
        _ask(mesh, connection, number)
        rows.append((number + 20, *_rest(processes, connection, mesh, 10 if quick else 30)))
    kib = (rows[1][1] - rows[0][1]) * 1024 / number
    head = ("waiting", "worker MB", "connections", "messages", "statements/min", "WAL KiB/min", "CPU ms/min")
    table(f"{number:,} traces that wait: {kib:.2f} KiB of the worker's memory each", head, rows)


def _ask(mesh: Mesh, connection: psycopg.Connection[Any], number: int) -> None:
    before = connection.execute("select count(*) from mesh.traces where status = 'waiting'").fetchone()[0]  # type: ignore[index]
    for at in range(0, number, 500):
        mesh.router.dispatch_many([
            {"intent": "work", "from_id": "bench", "to_id": "clerk", "context_id": f"c{n}", "payload": {}}
            for n in range(at, min(number, at + 500))
        ])  # fmt: skip
    count = "select count(*) from mesh.traces where status = 'waiting'"
    common.wait_ready(lambda: connection.execute(count).fetchone()[0] == before + number, 600, "the traces")  # type: ignore[index]


def _rest(processes: common.Procs, connection: psycopg.Connection[Any], mesh: Mesh, seconds: float) -> tuple[Any, ...]:
    """A worker at rest: memory, connections, messages; statements, WAL and CPU a minute."""
    threading.Event().wait(15)  # what was written is analysed, sealed and vacuumed
    mine = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    messages = sum(mesh.broker.depths(["agent.clerk", "agent.fan", "tools.tools"]).values())
    mesh.broker.close()
    mesh.db.close()
    open_ = connection.execute(mine).fetchone()[0]  # type: ignore[index]
    before = _spent(connection), common.cpu_s(processes.tree())
    threading.Event().wait(seconds)
    after = _spent(connection), common.cpu_s(processes.tree())
    a_minute = 60 / seconds
    statements, wal = ((x - y) * a_minute for x, y in zip(after[0], before[0], strict=True))
    return (common.pss_bytes(processes.tree()) / 2**20, open_, messages, round(statements), wal / 1024,
            (after[1] - before[1]) * 1000 * a_minute)  # fmt: skip


def _spent(connection: psycopg.Connection[Any]) -> tuple[float, float]:
    """Transactions of this database so far, which are statements where nothing else is done, and WAL of the server."""
    connection.execute("select pg_stat_clear_snapshot()")
    row = connection.execute(
        "select xact_commit + xact_rollback, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8"
        " from pg_stat_database where datname = current_database()"
    ).fetchone()
    return float(row[0]) - 0.0, float(row[1])  # type: ignore[index]


def idle(_: dict[str, str], *, quick: bool) -> None:
    rows = []
    seen: tuple[Any, ...] | None = None
    for kinds in (("agents",), ("agents", "agents"), ("agents", "tools")):
        with cluster(*kinds) as (mesh, processes, connection):
            found = _rest(processes, connection, mesh, 15 if quick else 60)
        seen = seen or found
        rows.append((" + ".join(kinds), *found[3:], *(x - y for x, y in zip(found[3:], seen[3:], strict=True))))
    head = ("workers", "statements/min", "WAL KiB/min", "CPU ms/min", "of the second: statements", "WAL KiB", "CPU ms")
    table("a cluster with nothing to do; the first worker leads", head, rows)


BENCHES: dict[str, Callable[..., None]] = {
    "deep": deep, "wide": wide, "nested": nested, "waiting": waiting, "idle": idle,
}  # fmt: skip
