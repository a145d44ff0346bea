"""What a worker process starts and stops with Celery's worker: a life of ours beside its pool.

`start` runs when the pool is there and before the first message is consumed; `child` runs in every prefork child, with
its number in the pool. A worker that is told to end lets running work finish for a while, then leaves it to others;
one that is to be replaced does the same, and then its process begins anew.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import Celery, bootsteps, concurrency, signals

from agentmesh.errors import MeshError


def add_life(
    app: Celery, *, start: Callable[[], None], stop: Callable[[], None], child: Callable[[int], None],
    spent: Callable[[], bool], drain_s: float,
) -> Callable[[], None]:  # fmt: skip
    """Tie our life to that of the app's worker. Told to end, it has `drain_s` to finish, or until it is `spent`; told
    again, no time at all. What is returned replaces it: it ends in the same way, and then its process begins anew.
    """
    leaving = _Leaving(stop, spent, drain_s)

    class Life(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            leaving.worker = worker
            start()

        def stop(self, _: Any) -> None:
            leaving.closed = True

    def forked(**_: Any) -> None:
        from billiard.process import current_process  # noqa: PLC0415 - only in a child

        child(current_process().index or 0)

    def ended(**_: Any) -> None:
        stop()  # the pool has drained by now: until then the worker beats for what it runs
        leaving.begin_anew()

    app.steps["worker"].add(Life)
    signals.worker_shutdown.connect(ended, weak=False)
    signals.worker_shutting_down.connect(leaving.asked, weak=False)
    signals.worker_process_init.connect(forked, weak=False)
    return leaving.replace


class _Leaving:
    """The end of a worker that does not end: what it still runs becomes its successors'."""

    def __init__(self, stop: Callable[[], None], spent: Callable[[], bool], drain_s: float) -> None:
        self._stop, self._spent, self._drain_s = stop, spent, drain_s
        self._asked = self._anew = False
        self.worker: Any = None
        self.closed = False  # it takes no more messages

    def replace(self) -> None:
        """Drain, then begin anew; nothing for a worker that is ending already."""
        if not self._asked and not self._anew:
            self._anew = True
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, **_: Any) -> None:
        """In a signal's handler: only start a thread."""
        self._anew = self._anew and not self._asked  # told again: it shall end
        patience_s = 0 if self._asked else self._drain_s
        threading.Thread(target=self._leave, args=(patience_s,), name="leaving", daemon=True).start()
        self._asked = True

    def begin_anew(self) -> None:
        """Where this worker is to be replaced: its own command, in its own process. Every thread ends with that."""
        if self._anew:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - as it was started

    def _leave(self, patience_s: float) -> None:
        end = time.monotonic() + patience_s
        spent = 0
        while time.monotonic() < end and spent < 3:  # what its pool has just begun has not been noted yet
            threading.Event().wait(0.05)
            spent = spent + 1 if self.closed and self._spent() else 0
        self._stop()  # the row says that this worker is gone: others take what names it within a second
        pool = getattr(getattr(self.worker, "pool", None), "_pool", None)
        for child in getattr(pool, "_pool", ()):
            with suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)
        self.begin_anew()
        os._exit(0)


def on_boot(
    app: Celery, *, queues: list[str], pool: str, at_once: int, prepare: Callable[[str, str, int], None]
) -> None:
    """For workers that Celery's own command starts: where it names none, these queues, this pool and so many at once.

    `prepare(name, pool, concurrency)` runs before such a worker makes its pool; what it raises ends the process.
    """
    app.conf.update(
        task_queues={one: {"exchange": one, "routing_key": one} for one in queues}, worker_pool=pool,
        worker_concurrency=at_once,
    )  # fmt: skip

    def booting(sender: Any, **_: Any) -> None:
        if sender.app is not app:
            return
        kind = concurrency.get_implementation(sender.pool_cls).__module__.rpartition(".")[2]
        try:
            prepare(sender.hostname.partition("@")[0], {"thread": "threads"}.get(kind, kind), sender.concurrency)
        except MeshError as exc:
            raise SystemExit(str(exc)) from exc  # a signal's handler may raise nothing less: Celery would go on

    signals.worker_init.connect(booting, weak=False)


def run_worker(app: Celery, *, name: str, queues: list[str], pool: str, concurrency: int) -> int:
    """Consume `queues` in this process until it is told to stop; Celery's exit code."""
    warnings.filterwarnings("ignore", "You're running the worker with superuser privileges")
    worker = app.Worker(
        hostname=f"{name}@{socket.gethostname()}", quiet=True, pool=pool, concurrency=concurrency, queues=queues,
        without_gossip=True, without_mingle=True, without_heartbeat=False, loglevel="WARNING", optimization="fair",
    )  # fmt: skip
    sys.__stdout__ = sys.__stderr__  # type: ignore[misc]  # Celery talks there when it ends, and stdout is data
    worker.start()
    code: int = worker.exitcode or 0
    return code
