"""Threads that take turns: exactly one runs at a time, and whoever holds the stage says when it may be interrupted.

A task is a thread with a baton. It gives the baton back at every `step`; the director (the thread that made the Stage)
decides who gets it next. A task that waits for a row lock of another one gives it back as well: the server is asked who
blocks whom, so that real lock waits, and what a statement sees after one, are part of the simulation.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import psycopg

GRACE_S = 0.004
PATIENCE_S = 30.0


class Killed(BaseException):
    """The process of this task is gone."""


class Stuck(RuntimeError):
    """The simulator itself does not get on: never the fault of what it simulates."""


class Task:
    """One activity of one worker, suspended at `at` until it gets the baton."""

    def __init__(self, number: int, name: str, owner: Any, run: Callable[[], Any]) -> None:
        self.number, self.name, self.owner = number, name, owner
        self.at = "start"
        self.throw: BaseException | None = None
        self.doomed = False
        self.done = False
        self.error: BaseException | None = None
        self.quiet = 0
        self.lucky = 0  # statements until the next one may meet a fault
        self.wrapped = False  # the server is committing: it does so without the client
        self.blocked_at: float | None = None
        self.behind: Task | None = None  # who waited for the same lock before
        self.parked = threading.Event()
        self.connection: Any = None  # in an open transaction
        self.pid: int | None = None  # of the backend that works for it now
        self.sql = ""
        self.until: Callable[[], bool] | None = None
        self.run = run
        self.go = threading.Semaphore(0)
        self.thread: threading.Thread | None = None

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


class Stage:
    """Where tasks take turns. All its methods but those of tasks belong to the director."""

    def __init__(self, url: str) -> None:
        self._local = threading.local()
        self._back = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._admin = psycopg.connect(url, autocommit=True)
        self._second = psycopg.connect(url, autocommit=True)
        self._number = 0
        self.tasks: list[Task] = []

    def close(self) -> None:
        self._admin.close()
        self._second.close()

    # --- the director's

    def reset(self) -> None:
        if self.tasks:
            raise Stuck(f"tasks are left over: {', '.join(map(str, self.tasks))}")
        self._number = 0

    def spawn(self, name: str, owner: Any, run: Callable[[], Any]) -> Task:
        """A task that waits for its first turn. A task may spawn others."""
        self._number += 1
        task = Task(self._number, name, owner, run)
        task.thread = threading.Thread(target=self._body, args=(task,), name=str(task), daemon=True)
        self.tasks.append(task)
        task.thread.start()
        return task

    def turn(self, task: Task) -> None:
        """Let the task run to its next step, its end, or the lock that somebody else holds."""
        task.go.release()
        self._await(task)
        self._prune()

    def kill(self, task: Task) -> None:
        """The task ends where it stands; one that waits for a lock in the server ends as soon as that is over."""
        task.doomed, task.throw, task.until = True, Killed(), None
        if task.blocked_at is None and not task.done:
            self.turn(task)

    def settle(self) -> list[Task]:
        """The tasks whose lock wait has just ended, in the order they were made."""
        freed: list[Task] = []
        while some := self._freed():  # whoever got the lock may have been what another one waited for
            freed += some
        freed.sort(key=lambda one: one.number)
        for task in freed:
            if task.doomed:
                self.turn(task)
        return freed

    def _freed(self) -> list[Task]:
        freed = []
        for task in [one for one in self.tasks if one.blocked_at is not None]:
            for _ in range(int(PATIENCE_S / GRACE_S)):
                if task.parked.is_set() or self._blockers(task.pid):
                    break
                task.parked.wait(GRACE_S)
            else:
                raise Stuck(f"{task} neither runs nor waits")
            if task.parked.is_set():
                task.blocked_at = None
                task.parked.clear()
                freed.append(task)
        return freed

    def terminate(self, task: Task) -> None:
        """Its session is ended by the server, and its transaction rolled back."""
        self._admin.execute("SELECT pg_terminate_backend(%s, 5000)", (task.connection.info.backend_pid,))
        task.connection = None

    def crowded(self, task: Task) -> bool:
        """Whether somebody else waits for what this task has just begun to wait for; then its statement is ended.

        Who of several that wait for one row comes next is PostgreSQL's choice, and not the same every time. A statement
        that is a transaction by itself is sent again when the other one has gone on; any other has run into its limit.
        """
        waiting = {one.pid: one for one in self.tasks if one.blocked_at is not None and one is not task}
        mine = self._holders(task.pid)
        before = next((one for pid, one in waiting.items() if pid in mine or mine & self._holders(pid)), None)
        if before is None:
            return False
        task.behind = before
        self.cancel(task)
        return True

    def _holders(self, pid: int | None) -> set[int]:
        found = self._admin.execute("SELECT pg_blocking_pids(%s)", (pid,)).fetchone()
        return set(found[0]) if found else set()

    def cancel(self, task: Task) -> None:
        """The statement it waits in is ended by the server."""
        self._admin.execute("SELECT pg_cancel_backend(%s)", (task.pid,))
        if not task.parked.wait(PATIENCE_S):
            raise Stuck(f"{task} cannot be cancelled")

    def _await(self, task: Task) -> None:
        for _ in range(int(PATIENCE_S / GRACE_S)):
            if self._back.acquire(timeout=GRACE_S):
                return
            with self._lock:
                if task.pid is not None and self._blockers(task.pid):
                    task.blocked_at = 0.0
                    return
        raise Stuck(f"{task} did not come back from {task.at} {task.sql}")

    def _blockers(self, pid: int | None) -> bool:
        found = self._admin.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)).fetchone()
        return bool(found and found[0])

    def _prune(self) -> None:
        for task in [one for one in self.tasks if one.done]:
            self.tasks.remove(task)
            if task.thread is not None:
                task.thread.join(PATIENCE_S)

    # --- the tasks'

    @property
    def current(self) -> Task | None:
        return getattr(self._local, "task", None)

    def step(self, at: str) -> None:
        """Others may go first here. Raises what was decided to happen at this place."""
        task = self.current
        if task is None or task.quiet:
            return
        if not task.doomed:
            task.at = at
            self._back.release()
            task.go.acquire()
        if task.throw is not None:  # also where the lock it waited for when it was killed has just been given
            thrown, task.throw = task.throw, None
            raise thrown

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """Nothing in this block is a step."""
        task = self.current
        if task is not None:
            task.quiet += 1
        try:
            yield
        finally:
            if task is not None:
                task.quiet -= 1

    def wait_until(self, condition: Callable[[], bool], at: str) -> None:
        """Go on when the condition holds."""
        task = self.current
        if task is None or task.doomed:
            return
        task.until = condition
        self.step(at)
        task.until = None

    def in_server(self, task: Task, pid: int, run: Callable[[], Any]) -> Any:
        """`run()`, a round trip of the backend `pid`, which may wait for a lock there."""
        task.pid = pid
        try:
            return run()
        finally:
            with self._lock:
                task.pid = None if task.blocked_at is None else pid
                blocked = task.blocked_at is not None
            if blocked:
                task.parked.set()
                task.go.acquire()
                task.pid = None

    def gone(self, pid: int) -> None:
        """Until this backend has ended and let go of its locks."""
        while self._second.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone():
            pass

    def _body(self, task: Task) -> None:
        task.go.acquire()
        self._local.task = task
        try:
            if not task.doomed:
                task.run()
        except Killed:
            pass
        except BaseException as exc:  # noqa: BLE001 - the director decides what it means
            task.error = exc
        finally:
            task.done = True
            self._back.release()


class Pool:
    """A thread pool whose threads are tasks of one worker."""

    def __init__(self, stage: Stage, clock: Callable[[], float]) -> None:
        self._stage, self._clock = stage, clock

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future = Turned(self._stage, self._clock)
        me = self._stage.current

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except Exception as exc:  # noqa: BLE001 - as a thread pool does
                future.set_exception(exc)

        self._stage.spawn(f"{me.name if me else 'main'}+", me.owner if me else None, run)
        return future

    def shutdown(self, **_: Any) -> None:
        """Nothing is held."""


class Turned(Future):
    """A future whose waiter lets others take their turns; its time limit is the simulation's."""

    def __init__(self, stage: Stage, clock: Callable[[], float]) -> None:
        super().__init__()
        self._stage, self._clock = stage, clock

    def result(self, timeout: float | None = None) -> Any:
        end = None if timeout is None else self._clock() + timeout
        if not self.done():
            self._stage.wait_until(lambda: self.done() or (end is not None and self._clock() >= end), "pool.result")
        return super().result(0)
