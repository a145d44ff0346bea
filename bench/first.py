"""Runs per second of a one-step run and of a run with three parallel tools, beside the same work in bare Celery.

`python -m bench.first [--broker amqp|redis|embedded]`. Ours: two worker processes (agents, tools) over PostgreSQL. Bare
Celery: two worker processes over the same broker (Redis where ours is embedded), results in Redis. The same work is, for
one step, a chord of one (decision, callback); for three tools, a task that starts a chord of three. A lone no-op task
stands beside them. 8 threads a process, interleaved rounds, medians; from the first submission to the last end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:  # as a script: make bench
    sys.path.insert(0, str(ROOT))
TAG = os.environ.setdefault("BENCH_TAG", f"b{uuid4().hex[:10]}")

import kombu  # noqa: E402
import redis  # noqa: E402

from agentmesh import testing  # noqa: E402
from agentmesh.infrastructure.postgres import EmbeddedPostgres  # noqa: E402
from bench import parts  # noqa: E402

ROUNDS = 3
TOOLS = {"one step": 0, "three tools": parts.PARTS}
WITHIN_S = 120.0


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + WITHIN_S
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"not done within {WITHIN_S:g} s")
        threading.Event().wait(0.01)


def wait_for_all(things: list[Any], ended: Callable[[list[Any]], int]) -> None:
    """All have ended. Asks for ten at a time: asking must not be the work that is measured."""
    for start in range(0, len(things), 10):
        some = things[start : start + 10]
        wait_until(lambda some=some: ended(some) == len(some))  # type: ignore[misc]


# --- what is measured: each gives the seconds that n runs took


class Ours:
    def __init__(self, environ: dict[str, str]) -> None:
        self.mesh = parts.mesh(environ)

    def run(self, n: int, tools: int) -> float:
        intents = [
            {"intent": "work", "from_id": "bench", "to_id": f"worker-{TAG}", "context_id": f"c{i}",
             "payload": {"n": i, "tools": tools}}
            for i in range(n)
        ]  # fmt: skip
        started = time.perf_counter()
        ids = [trace.id for trace in self.mesh.router.dispatch_many(intents)]
        wait_for_all(ids, self._ended)
        return time.perf_counter() - started

    def _ended(self, ids: list[Any]) -> int:
        query = "SELECT count(*) AS n FROM mesh.traces WHERE id = ANY(%(ids)s) AND status = 'done'"
        return int(self.mesh.db.once(query, {"ids": ids})[0]["n"])

    def first(self) -> float:
        """Seconds of one run with three tools, alone: from dispatch to its end."""
        started = time.perf_counter()
        trace = self.mesh.router.dispatch("work", "bench", f"worker-{TAG}", "one", {"n": 0, "tools": parts.PARTS})
        trace.result(timeout=30)
        return time.perf_counter() - started


def nothing(*_: Any, **__: Any) -> None:
    """Done instead."""


class Bare:
    def __init__(self, broker: str, backend: str) -> None:
        self.app = parts.bare(broker, backend)
        # results are looked up, not listened for: Celery's producer is spared a subscription for each
        backend_here = self.app.backend
        backend_here.on_task_call = backend_here.add_pending_result = backend_here.remove_pending_result = nothing

    def run(self, n: int, work: str) -> float:
        started = time.perf_counter()
        with self.app.producer_pool.acquire() as producer:
            ids = [parts.send(self.app, work, i, producer) for i in range(n)]
        keys = [self.app.backend.get_key_for_task(one) for one in ids]
        wait_for_all(keys, lambda some: int(self.app.backend.client.exists(*some)))
        return time.perf_counter() - started


# --- servers and workers


@contextmanager
def worker(whose: str, kind: str, environ: dict[str, str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (home / f"{whose}-{kind}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "bench.parts", whose, kind], env=environ, cwd=ROOT, stdout=log,
                                   stderr=log, start_new_session=True)  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)


@contextmanager
def database(broker: str, home: Path) -> Iterator[str]:
    """A migrated database of this run's own: on the embedded server, or on the machine's."""
    if broker != "embedded":
        with testing.database(testing.need("AGENTMESH_TEST_POSTGRES_URL")) as url:
            yield url
        return
    server = EmbeddedPostgres(home / "embedded")
    server.start()
    try:
        with testing.database(server.url().replace("+psycopg", "")) as url:
            yield url
    finally:
        server.stop()


@contextmanager
def swept(broker: str, amqp: str | None, backend: str) -> Iterator[None]:
    """Afterwards neither broker has anything of this run."""
    try:
        yield
    finally:
        with redis.Redis.from_url(backend) as client:
            for key in client.scan_iter(f"*{TAG}*"):
                client.delete(key)
        if broker == "amqp" and amqp:
            _delete_queues(amqp, (f"agent.worker-{TAG}", f"tools.{TAG}", parts.queue("agents"), parts.queue("tools")))


def _delete_queues(amqp: str, names: tuple[str, ...]) -> None:
    with kombu.Connection(amqp, connect_timeout=3) as connection:
        for name in names:
            connection.default_channel.queue_delete(name)
            connection.default_channel.exchange_delete(name)


def rates(ours: Ours, bare: Bare, sizes: dict[str, int], rounds: int) -> dict[str, Any]:
    """Median rates and their ratio for each kind of work."""
    mine: dict[str, list[float]] = {name: [] for name in sizes}
    theirs: dict[str, list[float]] = {name: [] for name in (*sizes, "task")}
    for _ in range(rounds):
        for name, n in sizes.items():
            theirs[name].append(n / bare.run(n, name))
            mine[name].append(n / ours.run(n, TOOLS[name]))
        theirs["task"].append(sizes["one step"] / bare.run(sizes["one step"], "task"))
    found: dict[str, Any] = {"task": round(statistics.median(theirs["task"]), 1)}
    for name in sizes:
        own, bares = statistics.median(mine[name]), statistics.median(theirs[name])
        found[name] = {"ours": round(own, 1), "celery": round(bares, 1), "ratio": round(own / bares, 2)}
    return found


def measure(broker: str, scale: float, rounds: int) -> dict[str, Any]:
    backend = testing.need("AGENTMESH_TEST_REDIS_URL")
    amqp = testing.need("AGENTMESH_TEST_AMQP_URL") if broker == "amqp" else None
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="ambench-"))
        home.chmod(0o755)  # the embedded server's account goes in
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        url = stack.enter_context(database(broker, home))
        stack.enter_context(swept(broker, amqp, backend))
        chosen = {"amqp": amqp, "redis": backend, "embedded": None}[broker]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("AGENTMESH_")} | {
            "BENCH_TAG": TAG, "BENCH_BROKER": chosen or backend, "BENCH_BACKEND": backend, "AGENTMESH_DATABASE_URL": url,
            "AGENTMESH_HOME": str(home / "mesh"), "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(home / "pyc"),
        }  # fmt: skip
        if chosen:
            environ["AGENTMESH_BROKER_URL"] = chosen
        for whose in ("mesh", "celery"):
            for kind in ("agents", "tools"):
                stack.enter_context(worker(whose, kind, environ, home))
        ours, bare = Ours(environ), Bare(chosen or backend, backend)
        stack.callback(bare.app.close)
        stack.callback(ours.mesh.close)
        wait_until(lambda: len(ours.mesh.db.once("SELECT 1 FROM mesh.workers WHERE state = 'alive'")) == 2)
        for name, tools in TOOLS.items():  # connections, prepared statements, imports
            bare.run(20, name)
            ours.run(40, tools)
        sizes = {"one step": int(600 * scale), "three tools": int(150 * scale)}
        found = rates(ours, bare, sizes, rounds)
        return {
            "broker": broker,
            "first_ms": round(1000 * statistics.median(ours.first() for _ in range(9)), 1),
            **found,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--broker", choices=["amqp", "redis", "embedded"], default="amqp")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="how many runs: 1 is 600 of one step, 150 of three tools"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.broker, asked.scale, asked.rounds)
    if asked.json:
        print(json.dumps({"schema": "agentmesh.bench/1", **found}))
        return 0
    beside = "Redis" if asked.broker == "embedded" else "the same broker"
    print(f"{asked.broker}: runs per second, medians of {asked.rounds}; bare Celery on {beside}, results in Redis")
    print(f"{'':12} {'agentmesh':>10} {'celery':>10} {'ratio':>7}")
    for name in ("one step", "three tools"):
        row = found[name]
        print(f"{name:12} {row['ours']:10.1f} {row['celery']:10.1f} {row['ratio']:7.2f}")
    print(f"a lone no-op task of bare Celery: {found['task']:.1f} per second")
    print(f"one run with three tools, alone: {found['first_ms']:.0f} ms from dispatch to its end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
