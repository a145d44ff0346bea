"""What the measured systems share: workloads, the tool, processes, the meter and the client's loop.

A system is a module with setup(), start_worker(workload), run_workload(name, n), stop(). It gets run_workload from `drive`
by giving make_client(workload): an object with `async submit(ids, w)`, durable when it returns, and `async finished(ids)`,
the subset that has ended. `python -m bench.common SYSTEM WORKLOAD [N]` is one measurement, one JSON line on stdout.

A run is `steps` durable steps in a row, each `fan` calls of `tool` in parallel, joined: a step's results are in
PostgreSQL, fsync'd, before the next step starts.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg

PG_URL = os.environ.get("PG_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
ROOT = str(Path(__file__).parent.parent)

# fan: parallel calls joined at each step; sleep: seconds the tool sleeps. mode: bulk (submit all, wait for all), serial
# (one at a time), window (so many in flight), growth (bulk on a full database), recovery (SIGKILL at 40 % of the calls).
# kib: the payload's size; workers: processes; contexts: how many all runs share; env: what each process of the measurement is
# told. W1 to W7 are what every harness measures, the others are ours.
WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {"n": 2000, "steps": 1, "fan": 1, "sleep": 0, "mode": "bulk"},
    "W2": {"n": 500, "steps": 3, "fan": 3, "sleep": 0, "mode": "bulk"},
    "W3": {"n": 300, "steps": 10, "fan": 1, "sleep": 0, "mode": "bulk"},
    "W4": {"n": 200, "steps": 1, "fan": 1, "sleep": 0, "mode": "serial"},
    "W5": {"n": 300, "steps": 1, "fan": 3, "sleep": 0.05, "mode": "window", "window": 100},
    "W6": {"n": 2000, "steps": 1, "fan": 1, "sleep": 0, "mode": "growth", "seed": 200_000},
    "W7": {"n": 100, "steps": 10, "fan": 1, "sleep": 0, "mode": "recovery", "effects": 1},
    "W2c": {"n": 300, "steps": 3, "fan": 3, "sleep": 0, "mode": "bulk", "env": {"PEER_TOOLS": "workers"}},
    "P1": {"n": 500, "steps": 1, "fan": 1, "sleep": 0, "mode": "bulk", "kib": 1},
    "P64": {"n": 300, "steps": 1, "fan": 1, "sleep": 0, "mode": "bulk", "kib": 64},
    "P1024": {"n": 60, "steps": 1, "fan": 1, "sleep": 0, "mode": "bulk", "kib": 1024},
    "N1": {"n": 400, "steps": 3, "fan": 1, "sleep": 0, "mode": "bulk", "workers": 1},
    "N2": {"n": 400, "steps": 3, "fan": 1, "sleep": 0, "mode": "bulk", "workers": 2},
    "N4": {"n": 400, "steps": 3, "fan": 1, "sleep": 0, "mode": "bulk", "workers": 4},
    "N8": {"n": 400, "steps": 3, "fan": 1, "sleep": 0, "mode": "bulk", "workers": 8},
    "H1": {"n": 400, "steps": 3, "fan": 1, "sleep": 0, "mode": "bulk", "contexts": 1, "env": {"PEER_MEMORY": "1"}},
    "H400": {"n": 400, "steps": 3, "fan": 1, "sleep": 0, "mode": "bulk", "contexts": 400, "env": {"PEER_MEMORY": "1"}},
    "G1": {"n": 1000, "steps": 1, "fan": 1, "sleep": 0, "mode": "growth"},
}
_local = threading.local()


def db_url(name: str) -> str:
    return urlunsplit(urlsplit(PG_URL)._replace(path="/" + name))


def pg(name: str | None = None, **options: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(db_url(name) if name else PG_URL, autocommit=True, **options)


def fresh_db(name: str) -> str:
    with pg() as connection:
        connection.execute(f'drop database if exists "{name}" with (force)')
        connection.execute(f'create database "{name}"')
    return db_url(name)


@lru_cache
def _noise() -> str:
    return base64.b64encode(os.urandom(768 * 1024)).decode()


def payload(run: str, w: dict[str, Any]) -> dict[str, Any]:
    """What a run of this workload is given; its text is like no other run's, and cannot be compressed."""
    given = {"run": run, "sleep": w["sleep"], "effects": w.get("effects", 0)}
    return given | ({"text": (run + _noise())[: w["kib"] * 1024]} if w.get("kib") else {})


def tool(run: str, step: int, i: int, sleep: float = 0, effects: int = 0) -> int:
    """Nothing, or a sleep; with `effects` it counts its own execution in another database."""
    if sleep:
        threading.Event().wait(sleep)
    if effects:
        if not hasattr(_local, "effects"):
            _local.effects = pg("peer_effects", options="-c synchronous_commit=off")
        _local.effects.execute("insert into effects values (%s, %s, %s)", (run, step, i))
    return i


class Procs:
    """Worker processes, each leader of a group of its own."""

    def __init__(self) -> None:
        self.ps: list[subprocess.Popen[bytes]] = []

    def start(self, cmd: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with open(os.environ.get("PEER_LOG", os.devnull), "ab") as out:
            made = subprocess.Popen(cmd, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=out, stderr=out,
                                    start_new_session=True)  # fmt: skip
        self.ps.append(made)
        return made

    def stop(self, sig: int = signal.SIGTERM, wait: float = 8) -> None:
        for one in self.ps:
            with suppress(ProcessLookupError):
                os.killpg(one.pid, sig)
        for one in self.ps:
            try:
                one.wait(wait)
            except subprocess.TimeoutExpired:
                os.killpg(one.pid, signal.SIGKILL)
                one.wait()
        self.ps = []

    def kill9(self) -> None:
        self.stop(signal.SIGKILL)

    def tree(self) -> list[psutil.Process]:
        found = []
        for one in self.ps:
            with suppress(psutil.Error):
                process = psutil.Process(one.pid)
                found += [process, *process.children(recursive=True)]
        return found


def module_worker(name: str, *args: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; from bench import {name} as m; m.worker(*sys.argv[1:])", *args]


# --- metering


def cpu_s(processes: list[psutil.Process], *, reaped: bool = True) -> float:
    total = 0.0
    for one in processes:
        with suppress(psutil.Error):
            times = one.cpu_times()
            total += times.user + times.system + (times.children_user + times.children_system if reaped else 0)
    return total


def pss_bytes(processes: list[psutil.Process]) -> int:
    total = 0
    for one in processes:
        with suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total


def commit_ms(connection: psycopg.Connection[Any], k: int = 15) -> float:
    """What one fsync'd commit costs on this machine just now (median): it tells noise from slowness."""
    connection.execute("create table if not exists peer_probe(a int)")
    taken = []
    for _ in range(k):
        started = time.perf_counter()
        connection.execute("insert into peer_probe values (1)")
        taken.append(1000 * (time.perf_counter() - started))
    return pct(taken, 50)


def _busy_s() -> float:
    all_ = psutil.cpu_times()
    return float(all_.user + all_.nice + all_.system + all_.irq + all_.softirq + all_.steal)


class Meter:
    """CPU of workers, client, PostgreSQL and the broker; peak memory of the workers; transaction ids and WAL of the server."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.connection = pg()
        pid = self.connection.execute("select pg_backend_pid()").fetchone()[0]  # type: ignore[index]
        self.postmaster = psutil.Process(pid).parent()
        self.broker = [psutil.Process(int(one)) for one in os.environ.get("BENCH_BROKER_PIDS", "").split()]

    def _snap(self) -> dict[str, float]:
        xid, lsn = self.connection.execute(
            "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
        ).fetchone()  # type: ignore[misc]
        server = [self.postmaster, *self.postmaster.children()] if self.postmaster else []
        brokers = [child for one in self.broker for child in [one, *one.children(recursive=True)]]
        return {
            "xid": xid, "wal": lsn, "pg": cpu_s(server), "broker": cpu_s(brokers), "worker": cpu_s(self.peer.PROCS.tree()),
            "client": cpu_s([psutil.Process()], reaped=False), "busy": _busy_s(),
        }  # fmt: skip

    def __enter__(self) -> Meter:
        self.peak = 0
        self.end = threading.Event()
        self.probe = commit_ms(self.connection)
        self.before = self._snap()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        self.started = time.perf_counter()
        return self

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, pss_bytes(self.peer.PROCS.tree()))
            if self.end.wait(0.5):
                return

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.started
        after = self._snap()
        self.end.set()
        self.thread.join()
        self.probe = (self.probe + commit_ms(self.connection)) / 2
        self.used = {key: after[key] - self.before[key] for key in after}

    def report(self, n: int) -> dict[str, Any]:
        used = {key: self.used[key] for key in ("worker", "client", "pg", "broker")}
        return {
            "n": n, "wall_s": round(self.wall, 4), "runs_s": round(n / self.wall, 2),
            "commits_run": round(self.used["xid"] / n, 2), "wal_kb_run": round(self.used["wal"] / n / 1024, 2),
            "cpu_ms_run": round(1000 * sum(used.values()) / n, 3),
            "cpu_split_ms": {key: round(1000 * one / n, 3) for key, one in used.items() if one},
            "worker_mb": round(self.peak / 2**20, 1), "probe_commit_ms": round(self.probe, 2),
            "other_cores": round((self.used["busy"] - sum(used.values())) / self.wall, 2),
        }  # fmt: skip


def pct(values: list[float], p: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))]


def lat(ms: list[float], prefix: str = "lat") -> dict[str, float]:
    return {f"{prefix}_p{p}_ms": round(pct(ms, p), 2) for p in (50, 95, 99)}


# --- the client's loop


async def wait_all(client: Any, ids: list[str], timeout: float = 150) -> list[str]:
    """Watch the oldest pending 100 runs: cheap, however many are pending. Those never seen to end."""
    pending, started = list(ids), time.perf_counter()
    while pending:
        head = pending[:100]
        done = await client.finished(head)
        pending = [one for one in head if one not in done] + pending[100:]
        if len(done) < len(head):
            if time.perf_counter() - started > timeout:
                break
            await asyncio.sleep(0.01)
    return pending


class Watcher:
    """One poller for every run in flight: a run's latency costs no thread of its own."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.waiting: dict[str, asyncio.Event] = {}
        self.task: asyncio.Task[None] | None = None

    async def wait(self, run: str) -> None:
        event = self.waiting[run] = asyncio.Event()
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._loop())
        await event.wait()

    async def _loop(self) -> None:
        while self.waiting:
            for run in await self.client.finished(list(self.waiting)):
                self.waiting.pop(run).set()
            await asyncio.sleep(0.0005 if len(self.waiting) < 2 else 0.004)


class Runs:
    """One measurement of one workload."""

    def __init__(self, peer: Any, client: Any, w: dict[str, Any]) -> None:
        self.peer, self.client, self.w = peer, client, w
        self.watcher = Watcher(client)

    async def call(self, run: str) -> None:
        await self.client.submit([run], self.w)
        await self.watcher.wait(run)

    async def warm_up(self) -> None:
        ids = [f"warm{i}" for i in range(20)]
        await self.client.submit(ids, {**self.w, "effects": 0, "sleep": 0})
        if await wait_all(self.client, ids, 60):
            raise SystemExit("warm-up runs did not finish")

    async def serial(self, n: int, tag: str) -> list[float]:
        taken = []
        for k in range(n):
            started = time.perf_counter()
            await self.call(f"{tag}{k}")
            taken.append(1000 * (time.perf_counter() - started))
        return taken

    async def bulk(self, n: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        seed = int(os.environ.get("PEER_SEED", self.w.get("seed", 0)))
        if seed:
            await asyncio.to_thread(self.peer.seed_finished, seed)
        ids = [f"r{i}" for i in range(n)]
        with Meter(self.peer) as meter:
            started = time.perf_counter()
            if self.w.get("each"):  # one dispatch at a time
                for one in ids:
                    await self.client.submit([one], self.w)
            else:
                await self.client.submit(ids, self.w)
            submitted = time.perf_counter() - started
            lost = await wait_all(self.client, ids)
        found |= meter.report(n - len(lost)) | {"submit_s": round(submitted, 3), "lost": len(lost)}
        return found | lat(await self.serial(100 if self.w["mode"] == "growth" else 20, "s"), "idle")

    async def one_by_one(self, n: int) -> dict[str, Any]:
        with Meter(self.peer) as meter:
            taken = await self.serial(n, "s")
        return meter.report(n) | lat(taken)

    async def window(self, n: int) -> dict[str, Any]:
        todo, taken = iter(range(n)), []

        async def lane() -> None:
            for k in todo:
                started = time.perf_counter()
                await self.call(f"x{k}")
                taken.append(1000 * (time.perf_counter() - started))

        with Meter(self.peer) as meter:
            await asyncio.gather(*[lane() for _ in range(self.w["window"])])
        return meter.report(n) | lat(taken)

    async def recovery(self, n: int) -> dict[str, Any]:
        """SIGKILL to all workers at 40 % of the calls, new ones one second later."""
        fresh_db("peer_effects")
        effects = pg("peer_effects")
        effects.execute("create table effects(run text, step int, i int)")
        ids, total = [f"k{i}" for i in range(n)], n * self.w["steps"] * self.w["fan"]
        await self.client.submit(ids, self.w)
        while effects.execute("select count(*) from effects").fetchone()[0] < total * 0.4:  # type: ignore[index]
            await asyncio.sleep(0.002)
        killed = time.perf_counter()
        await asyncio.to_thread(self.peer.PROCS.kill9)
        await asyncio.sleep(max(0, 1 - (time.perf_counter() - killed)))
        began = time.perf_counter()
        await asyncio.to_thread(self.peer.start_worker, "W7")
        up = time.perf_counter() - began
        lost = await wait_all(self.client, ids, 90)
        taken = time.perf_counter() - killed
        rows, distinct = effects.execute("select count(*), count(distinct (run, step, i)) from effects").fetchone()  # type: ignore[misc]
        effects.close()
        return {"n": n, "recovery_s": round(taken, 2), "worker_start_s": round(up, 2), "lost": len(lost), "executed": rows,
                "repeated": rows - distinct, "missing": total - distinct}  # fmt: skip


async def _drive(peer: Any, name: str, n: int | None) -> dict[str, Any]:
    w = {**WORKLOADS[name], "name": name}
    client = await peer.make_client(w)
    runs = Runs(peer, client, w)
    await runs.warm_up()
    modes = {"bulk": runs.bulk, "growth": runs.bulk, "serial": runs.one_by_one, "window": runs.window,
             "recovery": runs.recovery}  # fmt: skip
    found = await modes[w["mode"]](n or w["n"])
    await client.close()
    return found


def drive(peer: Any) -> Any:
    """run_workload of a module that has make_client."""

    def run_workload(name: str, n: int | None = None) -> dict[str, Any]:
        return asyncio.run(_drive(peer, name, n))

    return run_workload


class PgClient:
    """`finished` as one SELECT over SQL (one array parameter)."""

    SQL = ""

    async def open(self, db: str) -> Any:
        self.c = await psycopg.AsyncConnection.connect(db_url(db), autocommit=True)
        return self

    async def finished(self, ids: list[str]) -> set[str]:
        cursor = await self.c.execute(self.SQL, (ids,))
        return {row[0] for row in await cursor.fetchall()}

    async def close(self) -> None:
        await self.c.close()


def clone_rows(db: str, table: str, n: int, where: str, **new: str) -> None:
    """n copies of the rows that match; `new` maps columns to SQL over the counter g, "-" leaves one to its default."""
    schema, name = table.split(".")
    with pg(db) as connection:
        rows = connection.execute(
            "select column_name from information_schema.columns where table_schema = %s and table_name = %s"
            " and is_generated = 'NEVER' order by ordinal_position", (schema, name)).fetchall()  # fmt: skip
        columns = [row[0] for row in rows if new.get(row[0]) != "-"]
        values = ", ".join(new.get(one, f't."{one}"') for one in columns)
        names = ", ".join(f'"{one}"' for one in columns)
        connection.execute(
            "set statement_timeout = 0; set session_replication_role = replica"
        )  # what triggers write is cloned, too
        connection.execute(
            f"insert into {table} ({names}) select {values} from generate_series(1, {n}) g"
            f" cross join lateral (select * from {table} t where {where} offset 0) t"  # one copy behind the other
        )
        connection.execute(f"vacuum analyze {table}")


def wait_ready(check: Any, seconds: float = 60, what: str = "worker") -> None:
    started = time.perf_counter()
    while True:
        with suppress(Exception):
            if check():
                return
        if time.perf_counter() - started > seconds:
            raise SystemExit(f"{what} did not become ready")
        threading.Event().wait(0.02)


def main(name: str, workload: str, n: str = "-") -> None:
    os.environ.update(WORKLOADS[workload].get("env", {}))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that stop() runs when the driver gives up
    peer = importlib.import_module(f"bench.{name}")
    try:
        peer.setup()
        peer.start_worker(workload)
        found = peer.run_workload(workload, None if n == "-" else int(n))
    finally:
        peer.stop()
    print("RESULT " + json.dumps({"system": name, "workload": workload, **found}))


if __name__ == "__main__":
    importlib.import_module("bench.common").main(*sys.argv[1:])  # under its own name, not __main__
