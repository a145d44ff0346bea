"""Suspects run alone: what was lost with its worker is worked by a process that runs nothing else meanwhile.

Such a process has two pipes to this worker: it takes one ring at a time, works it as a worker of its own (so its death is
found like any other), says meanwhile that it is there and at last that it is done, and ends when its worker does. The
first ones are forked while their worker is still young, and cost little until they are needed; one that died is replaced
by this worker's own command, started again. One that survived goes on with the next suspect; one that falls silent is
killed. Nobody waits for them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Protocol
from uuid import UUID

import structlog

from agentmesh.records import Ring

log = structlog.get_logger("agentmesh.alone")

VARIABLE = "AGENTMESH_ALONE"
"""Set for such a process where it was not forked: the two ends of its pipes."""
AT_ONCE = 2
MOST = 1000
"""So many suspects wait here at most; the others are rung again."""
MISSES = 5
HERE, DONE = b".", b"!"

Ends = tuple[int, int]
"""What a lone process reads, and what it writes."""


class LoneProcesses:
    """The lone processes of one worker."""

    def __init__(self, *, silence_s: float, argv: Sequence[str] | None = None, at_once: int = AT_ONCE) -> None:
        self._silence_s = silence_s
        self._argv = list(argv or [sys.executable, *sys.orig_argv[1:]])
        self._at_once = at_once
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[_Lone] = []
        self._known: set[_Lone] = set()
        self._closed = False
        self._handed: set[tuple[UUID, int]] = set()
        self._threads = ThreadPoolExecutor(self._at_once, thread_name_prefix="alone")

    def keep_warm(self, serve: Callable[[Ends], object]) -> None:
        """Fork the lone processes now: from a process that has the user's code, and neither threads nor connections yet.

        Each is in `serve` from when it is first asked for something.
        """
        if sys.platform != "linux":  # elsewhere system libraries do not survive a fork
            return
        gc.collect()
        gc.freeze()  # what a collection writes to is no longer shared
        while len(self._idle) < self._at_once:
            self._idle.append(_Lone(lambda ends, one: _fork(serve, ends, [*self._idle, one])))
        self._known.update(self._idle)

    def after_fork(self) -> None:
        """In a prefork child: they are its parent's, whose end they hear when nobody else holds their pipes."""
        for lone in self._known:
            lone.forget()
        self._begin()

    def hand(self, ring: Ring) -> None:
        """A lone process works the row of this ring as soon as one is free. What is dropped (too much waits already, or
        this worker ends) is rung again."""
        if self._pid != os.getpid():
            self.after_fork()
        key = (ring.id, ring.epoch)
        with self._lock:
            if key in self._handed or len(self._handed) >= MOST:
                return
            with contextlib.suppress(RuntimeError):  # closed
                self._threads.submit(self._take, ring)
                self._handed.add(key)

    def _take(self, ring: Ring) -> None:
        try:
            self.run(ring)
        except OSError as exc:
            log.warning("no lone process could be started", kind=ring.kind, id=str(ring.id), error=str(exc))
        finally:
            with self._lock:
                self._handed.discard((ring.id, ring.epoch))

    def run(self, ring: Ring) -> bool:
        """True when a lone process has worked the row of this ring; False when it died over it."""
        with self._lock:
            lone = self._idle.pop() if self._idle else None
        lone = lone or _Lone(lambda ends, _: _command(self._argv, ends))
        with self._lock:
            self._known.add(lone)
        log.info("runs alone", kind=ring.kind, id=str(ring.id), pid=lone.process.pid)
        survived = lone.work(ring, self._silence_s)
        with self._lock:
            idle = survived and not self._closed
            self._idle += [lone] if idle else []
            if not idle:
                self._known.discard(lone)
        if survived and not idle:
            lone.end()
        return survived

    def close(self) -> None:
        """Afterwards none of them waits for work, and what waited for one does not."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for lone in idle:
            lone.end()


class _Process(Protocol):
    pid: int
    returncode: int | None

    def kill(self) -> None: ...
    def wait(self) -> int: ...


class _Lone:
    """One lone process, and our ends of its pipes."""

    def __init__(self, begin: Callable[[Ends, _Lone], _Process]) -> None:
        its_in, our_out = os.pipe()
        our_in, its_out = os.pipe()
        self._ask: IO[str] = os.fdopen(our_out, "w")
        self._hear: IO[bytes] = os.fdopen(our_in, "rb", buffering=0)
        self.process = begin((its_in, its_out), self)
        os.close(its_in)
        os.close(its_out)

    def work(self, ring: Ring, silence_s: float) -> bool:
        """True when it has worked the row. Once it has spoken, it is killed after `silence_s` without a word: what it
        runs lets no other thread of it run."""
        heard, patience_s = HERE, None
        try:
            self._ask.write(json.dumps(asdict(ring), default=str) + "\n")
            self._ask.flush()
            while heard.endswith(HERE):
                spoke, _, _ = select.select([self._hear], [], [], patience_s)
                heard, patience_s = self._hear.read(64) if spoke else b"", silence_s
        except OSError:
            heard = b""
        if not heard:
            self.process.kill()
            self.end()
            log.warning("a lone process ended", kind=ring.kind, id=str(ring.id), code=self.process.returncode)
        return bool(heard)

    def end(self) -> None:
        self.forget()
        self.process.wait()

    def forget(self) -> None:
        for pipe in (self._ask, self._hear):
            with contextlib.suppress(OSError):
                pipe.close()


def _command(argv: Sequence[str], ends: Ends) -> _Process:
    environ = os.environ | {VARIABLE: f"{ends[0]},{ends[1]}"}
    return subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, pass_fds=ends)  # noqa: S603 - our own command line


class _Forked:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def _fork(serve: Callable[[Ends], object], ends: Ends, lones: Sequence[_Lone]) -> _Process:
    """`lones`: those whose pipes the child has from its parent, its own among them."""
    if pid := os.fork():
        return _Forked(pid)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for its worker, whose end it follows
        for lone in lones:
            lone.forget()
        if _is_asked(ends[0]):
            serve(ends)
    except BaseException:
        log.exception("a lone process failed")
        raise
    finally:
        os._exit(0)


def _is_asked(end: int) -> bool:
    """Whether something is asked at last; False where whoever could have done so is gone."""
    waiting = select.poll()
    waiting.register(end, select.POLLIN)
    [(_, event)] = waiting.poll()
    return bool(event & select.POLLIN)


def pipes(environ: Mapping[str, str]) -> Ends | None:
    """The pipes of this process when it is a lone one; None in any other."""
    given = environ.get(VARIABLE)
    if given is None:
        return None
    its_in, its_out = given.split(",")
    return int(its_in), int(its_out)


def serve(ends: Ends, handle: Callable[[Ring], object], *, ours: Callable[[], bool], look_s: float) -> None:
    """Work one ring after the other until the worker that started this process is gone.

    When what it runs is no longer `ours` (timed out, cancelled, given to others), nobody waits for it: the process ends.
    """
    os.environ.pop(VARIABLE, None)  # what a tool starts is no lone process
    with os.fdopen(ends[0]) as asked:
        for line in asked:
            fields = json.loads(line)
            over = threading.Event()
            watch = threading.Thread(target=_watch, args=(over, ours, look_s, ends[1]), name="alone-watch", daemon=True)
            watch.start()
            handle(Ring(**fields | {"id": UUID(fields["id"]), "trace_id": UUID(fields["trace_id"])}))
            over.set()
            watch.join()
            _say(ends[1], DONE)


def _say(end: int, word: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(end, word)


def _watch(over: threading.Event, ours: Callable[[], bool], look_s: float, end: int) -> None:
    held, missed = False, 0
    while not over.wait(look_s):
        _say(end, HERE)
        held, missed = held or ours(), 0 if ours() else missed + held
        if missed > MISSES:
            os._exit(1)
