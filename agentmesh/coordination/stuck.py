"""What runs on although no row names it any more: code that heeds neither its time limit nor a cancel.

A prefork child that does so is killed after a while. A thread cannot be killed: it is counted, and a worker that has
lost half of its threads is replaced. The row went on without it long before.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

import structlog

from agentmesh.coordination import process
from agentmesh.coordination.notes import Notes

log = structlog.get_logger("agentmesh.stuck")

LOOKS = 500  # a millisecond each, for a child to stop


class Stuck:
    """The claims of one worker process that ran on for `grace_s` and longer after their row had left them."""

    def __init__(
        self, notes: Notes, *, grace_s: float, threads: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._notes, self._grace_s, self._threads = notes, grace_s, threads
        self.full: Callable[[], None] = lambda: None
        """What is done about half of the threads being stuck."""
        self._monotonic = monotonic
        self._left: dict[UUID, float] = {}
        self._stuck: set[UUID] = set()

    def __len__(self) -> int:
        """How many threads are stuck."""
        return len(self._stuck)

    def look(self, noted: dict[UUID, int | None], named: set[UUID]) -> None:
        """Told of every claim that is noted, and of those that a row still names: kill, or count, what is over its grace."""
        now = self._monotonic()
        self._left = {claim: self._left.get(claim, now) for claim in noted if claim not in named}
        late = {claim for claim, since in self._left.items() if now - since >= self._grace_s}
        for claim in late:
            child = noted[claim]
            if child is not None:
                self._kill(child, claim)
        self._count({claim for claim in late if noted[claim] is None})

    def nothing_else(self) -> bool:
        """Whether all that is noted is stuck: nobody needs this process any more."""
        return bool(self._stuck) and self._stuck >= self._notes.claims().keys()

    def _count(self, stuck: set[UUID]) -> None:
        new, self._stuck = stuck - self._stuck, stuck
        if new:
            log.warning("threads are stuck", stuck=len(stuck), of=self._threads)
        if 2 * len(stuck) >= max(2, self._threads):
            self.full()

    def _kill(self, pid: int, claim: UUID) -> None:
        """Stopped first: what it has gone on to meanwhile shall not die for what it ran before."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            if self._stopped(pid) and self._notes.claims().get(claim) == pid:
                log.warning("a child runs what is nobody's any more: killed", child=pid)
                os.kill(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGCONT)

    def _stopped(self, pid: int) -> bool:
        for _ in range(LOOKS):
            if process.stopped(pid, parent=os.getpid()):
                return True
            threading.Event().wait(0.001)
        return False
