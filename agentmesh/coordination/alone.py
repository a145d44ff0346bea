"""Suspects run alone: what was lost with its worker is worked by a process that runs nothing else meanwhile.

Such a process is this worker's own command, started again with two pipes: it takes one ring at a time, works it as a
worker of its own (so its death is found like any other), says meanwhile that it is there and at last that it is done,
and ends when its worker does. One that survived goes on with the next suspect; one that falls silent is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import IO
from uuid import UUID

import structlog

from agentmesh.records import Ring

log = structlog.get_logger("agentmesh.alone")

VARIABLE = "AGENTMESH_ALONE"
"""Set for such a process: the two ends of its pipes."""
AT_ONCE = 2
MISSES = 5
HERE, DONE = b".", b"!"


class LoneProcesses:
    """The lone processes of one worker, each started when it is first needed."""

    def __init__(self, *, silence_s: float, argv: Sequence[str] | None = None, at_once: int = AT_ONCE) -> None:
        self._silence_s = silence_s
        self._argv = list(argv or [sys.executable, *sys.orig_argv[1:]])
        self._free = threading.BoundedSemaphore(at_once)
        self._lock = threading.Lock()
        self._idle: list[_Lone] = []
        self._pid = os.getpid()

    def run(self, ring: Ring) -> bool:
        """True when a lone process has worked the row of this ring; False when it died over it."""
        if self._pid != os.getpid():  # a prefork child: those are its parent's
            self._pid, self._idle = os.getpid(), []
            self._lock, self._free = threading.Lock(), threading.BoundedSemaphore(AT_ONCE)
        with self._free:
            with self._lock:
                lone = self._idle.pop() if self._idle else None
            lone = lone or _Lone(self._argv)
            log.info("runs alone", kind=ring.kind, id=str(ring.id), pid=lone.process.pid)
            survived = lone.work(ring, self._silence_s)
            if survived:
                with self._lock:
                    self._idle.append(lone)
            return survived

    def close(self) -> None:
        """Afterwards none of them waits for work."""
        with self._lock:
            idle, self._idle = self._idle, []
        for lone in idle:
            lone.end()


class _Lone:
    def __init__(self, argv: Sequence[str]) -> None:
        its_in, our_out = os.pipe()
        our_in, its_out = os.pipe()
        self.process = subprocess.Popen(  # noqa: S603 - our own command line
            argv,
            env=os.environ | {VARIABLE: f"{its_in},{its_out}"},
            stdin=subprocess.DEVNULL,
            pass_fds=(its_in, its_out),
        )
        os.close(its_in)
        os.close(its_out)
        self._ask: IO[str] = os.fdopen(our_out, "w")
        self._hear: IO[bytes] = os.fdopen(our_in, "rb", buffering=0)

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
        for pipe in (self._ask, self._hear):
            with contextlib.suppress(OSError):
                pipe.close()
        self.process.wait()


def pipes(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """The pipes of this process when it is a lone one; None in any other."""
    given = environ.get(VARIABLE)
    if given is None:
        return None
    its_in, its_out = given.split(",")
    return int(its_in), int(its_out)


def serve(ends: tuple[int, int], handle: Callable[[Ring], object], *, ours: Callable[[], bool], look_s: float) -> None:
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
