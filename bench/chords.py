"""Bare Celery chords on Redis, broker and results: what W2c stands beside. Nothing of it is durable between steps.

A run is a chain of chords of calls, each joined by a task, as Celery's own canvas has it. Tools and joins run on two tool
worker processes with a threads pool, like ours; a chord's body that is lost with its message stays lost.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

import redis
from celery import Celery, chain, chord

from bench import common as C  # noqa: N812 - as in every module of a system

PROCS = C.Procs()

app = Celery("chords", broker=C.REDIS_URL, backend=C.REDIS_URL, set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True, worker_send_task_events=False, result_expires=3600,
    worker_prefetch_multiplier=64,
)  # fmt: skip


@app.task(name="tool")
def tool(run: str, step: int, i: int, sleep: float, effects: int) -> int:
    return C.tool(run, step, i, sleep, effects)


@app.task(name="join")
def join(results: list[int]) -> list[int]:
    return results


def canvas(run: str, w: dict[str, Any]) -> Any:
    """The run as a canvas whose last task has the run's id."""
    parts = []
    for step in range(w["steps"]):
        body = join.s().set(task_id=run) if step == w["steps"] - 1 else join.s()
        calls = [tool.si(run, step, i, w["sleep"], w.get("effects", 0)) for i in range(w["fan"])]
        parts.append(chord(calls, body, app=app))
    return parts[0] if len(parts) == 1 else chain(*parts, app=app)


def setup() -> None:
    redis.Redis.from_url(C.REDIS_URL).flushdb()


def worker(number: str) -> None:
    made = app.Worker(
        hostname=f"w{number}@bench", pool="threads", concurrency=16, loglevel="WARNING", without_gossip=True,
        without_mingle=True, without_heartbeat=True,
    )  # fmt: skip
    made.start()
    raise SystemExit(made.exitcode or 0)


def start_worker(workload: str = "W2c") -> None:
    number = C.WORKLOADS[workload].get("workers", 2)
    for n in range(number):
        PROCS.start(C.module_worker("chords", str(n)))
    C.wait_ready(lambda: len(app.control.ping(timeout=0.3)) >= number)


class Client:
    def __init__(self) -> None:
        self.redis = redis.asyncio.Redis.from_url(C.REDIS_URL)

    async def submit(self, ids: list[str], w: dict[str, Any]) -> None:
        def all_of_them() -> None:
            with app.producer_or_acquire() as producer:
                for run in ids:
                    canvas(run, w).apply_async(producer=producer)

        await asyncio.to_thread(all_of_them)

    async def finished(self, ids: list[str]) -> set[str]:
        values = await self.redis.mget([f"celery-task-meta-{run}" for run in ids])
        return {run for run, value in zip(ids, values, strict=True) if value and b'"SUCCESS"' in value}

    async def close(self) -> None:
        with suppress(Exception):
            await self.redis.aclose()


async def make_client(_: dict[str, Any]) -> Any:
    return Client()


def seed_finished(_: int) -> None:
    raise SystemExit("W6 is about a database")


def stop() -> None:
    PROCS.stop()


run_workload = C.drive(sys.modules[__name__])
os.environ.setdefault("C_FORCE_ROOT", "1")
