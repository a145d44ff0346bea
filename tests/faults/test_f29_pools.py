"""F29: connections run out, in the pool and on the server; strangers hold locks and idle in transactions."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from agentmesh.errors import PoolTimeout
from agentmesh.infrastructure.database import Database
from tests.faults.bench import Bench

FAULTY = pytest.mark.faults


def test_f29_forty_threads_at_a_pool_of_two_wait_no_longer_than_told(database_url: str) -> None:
    db = Database(database_url, pool_size=2, max_overflow=0, pool_timeout_s=0.5)
    holding = threading.Barrier(3)
    letting_go = threading.Event()

    def hold() -> None:
        with db.checkout():
            holding.wait(10)
            letting_go.wait(10)

    def ask(_: int) -> float:
        began = time.monotonic()
        with pytest.raises(PoolTimeout, match="no database connection became free in time"):
            db.once("SELECT 1")
        return time.monotonic() - began

    holders = [threading.Thread(target=hold) for _ in range(2)]
    for one in holders:
        one.start()
    holding.wait(10)
    with ThreadPoolExecutor(40) as threads:
        waits = list(threads.map(ask, range(40)))
    letting_go.set()
    for one in holders:
        one.join()
    assert max(waits) < 3
    assert db.once("SELECT 1 AS n") == [{"n": 1}]
    db.close()


@FAULTY
def test_f29_workers_with_few_connections_starve_no_beat(make_bench: Any, seed: int) -> None:
    bench: Bench = make_bench("redis")
    bench.env |= {"AGENTMESH_DATABASE_POOL_SIZE": "1", "AGENTMESH_DATABASE_MAX_OVERFLOW": "0"}
    workers = [bench.worker("agents", concurrency=8, wait=False), bench.worker("tools", concurrency=8, wait=False)]
    for one in workers:
        bench.wait_for(one)
    made = bench.wf(24, seed=seed)
    bench.settle()
    assert {trace.status() for _, _, trace in made} == {"done"}
    assert bench.value("SELECT count(*) FROM mesh.workers WHERE state <> 'alive'") == 0


@FAULTY
def test_f29_a_server_filled_by_strangers_is_survived(make_bench: Any, own_postgres: Any) -> None:
    server = own_postgres(max_connections="40")
    bench: Bench = make_bench("redis", server=server)
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    bench.start("serial", 1).result(timeout=20)
    with contextlib.ExitStack() as strangers:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                strangers.enter_context(psycopg.connect(bench.database_url))
        traces = [bench.start("parallel", n) for n in range(4)]
        threading.Event().wait(3)
    assert [len(trace.result(timeout=40)) for trace in traces] == [8] * 4
    bench.settle()
    assert all(worker.running for worker in workers)


@FAULTY
def test_f29_strangers_who_hold_every_row_only_delay_the_work(make_bench: Any) -> None:
    bench: Bench = make_bench("redis")
    bench.workers(("agents", "threads"), ("tools", "threads"))
    trace = bench.given({"tool": "gated", "args": {"gate": "gate", "n": 3}}, {"tool": "part", "args": {"n": 2}})
    bench.until_ran("gated")
    with psycopg.connect(bench.database_url) as stranger:
        for table in ("traces", "steps", "calls"):
            stranger.execute(f"SELECT 1 FROM mesh.{table} FOR UPDATE")
        bench.open("gate")
        threading.Event().wait(4.5)  # longer than the lock time limit
        stranger.rollback()
    assert trace.result(timeout=30) == {"gated": 9, "part": 4}
    bench.settle()
    assert bench.outcomes()["won"] == 2
