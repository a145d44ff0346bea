"""What a worker process starts and stops with Celery's worker: a life of ours beside its pool.

`start` runs when the pool is there and before the first message is consumed; `child` runs in every prefork child, with
its number in the pool.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps, signals


def add_life(
    app: Celery, *, start: Callable[[], None], stop: Callable[[], None], child: Callable[[int], None]
) -> None:
    """Tie our life to that of the app's worker."""

    class Life(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:  # noqa: ARG002 - Celery's signature
            start()

    def forked(**_: Any) -> None:
        from billiard.process import current_process  # noqa: PLC0415 - only in a child

        child(current_process().index or 0)

    def ended(**_: Any) -> None:
        stop()  # the pool has drained by now: until then the worker beats for what it runs

    app.steps["worker"].add(Life)
    signals.worker_shutdown.connect(ended, weak=False)
    signals.worker_process_init.connect(forked, weak=False)


def run_worker(app: Celery, *, name: str, queues: list[str], pool: str, concurrency: int) -> int:
    """Consume `queues` in this process until it is told to stop; Celery's exit code."""
    warnings.filterwarnings("ignore", "You're running the worker with superuser privileges")
    worker = app.Worker(
        hostname=f"{name}@{socket.gethostname()}", quiet=True, pool=pool, concurrency=concurrency, queues=queues, without_gossip=True,
        without_mingle=True, without_heartbeat=False, loglevel="WARNING", optimization="fair",
    )  # fmt: skip
    worker.start()
    code: int = worker.exitcode or 0
    return code
