"""What this worker process runs, noted before each claim is sent: its own threads and its prefork children.

The notes of children lie in memory shared before the fork, and so does the worker's id, so that children follow their
parent when it registers anew. A note is compared with the rows by every beat, so that work without one would be given
back while it runs.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any
from uuid import UUID

from agentmesh.errors import BadSettings
from agentmesh.records import new_id
from agentmesh.state.traces import Holder

SLOT = 24  # a claim and the pid of its child
HEADER = 16
CHILDREN = 4096
"""The most children a pool may have. Each has its slot from the start: a pool may grow, shared memory does not."""


class Notes:
    """Claims by id. A prefork child notes in its slot of the shared memory, everything else in this process.

    Raises BadSettings for more `children` than there are slots; a child of a pool that grew past them can claim nothing.
    """

    def __init__(self, *, children: int = 0) -> None:
        if children > CHILDREN:
            raise _too_many(children)
        self._shared = mmap.mmap(-1, HEADER + SLOT * CHILDREN)
        self._lock = threading.Lock()
        self._claims: dict[UUID, tuple[str, UUID]] = {}
        self._slot: int | None = None

    def become_child(self, slot: int) -> None:
        """From now on this process is the pool's child number `slot`."""
        self._lock = threading.Lock()
        self._claims = {}
        self._slot = slot
        if slot < CHILDREN:
            self._put(slot, bytes(16) + os.getpid().to_bytes(8))

    @property
    def worker_id(self) -> UUID:
        return UUID(bytes=bytes(self._shared[:HEADER]))

    def rename(self, worker_id: UUID) -> None:
        """The worker is known by this id now, in its children too."""
        self._shared[:HEADER] = worker_id.bytes

    def holder(self) -> Holder:
        """Who a claim made here names."""
        return Holder(self.worker_id, None if self._slot is None else os.getpid())

    @contextlib.contextmanager
    def note(self, kind: str, row_id: UUID, claim_id: UUID) -> Iterator[None]:
        """The claim is noted until the block ends. Raises BadSettings in a child that has no slot."""
        if self._slot is not None:
            self._put(self._slot, claim_id.bytes)
        else:
            with self._lock:
                self._claims[claim_id] = (kind, row_id)
        try:
            yield
        finally:
            if self._slot is not None:
                self._put(self._slot, bytes(16))
            else:
                with self._lock:
                    self._claims.pop(claim_id, None)

    def overrun(self, future: Future[Any]) -> None:
        """A thread runs this although nobody waits for it any more: it is noted until it ends, so that it counts as stuck."""
        claim_id = new_id()
        with self._lock:
            self._claims[claim_id] = ("inline", claim_id)

        def forget(_: Future[Any]) -> None:
            with self._lock:
                self._claims.pop(claim_id, None)

        future.add_done_callback(forget)

    def claims(self) -> dict[UUID, int | None]:
        """Every claim noted now, and the pid of the child that noted it; None: a thread of this process did."""
        with self._lock:
            noted: dict[UUID, int | None] = dict.fromkeys(self._claims)
        slots = bytes(self._shared[HEADER:])
        for at in range(0, len(slots), SLOT):
            claim = slots[at : at + 16]
            if any(claim):
                noted[UUID(bytes=claim)] = int.from_bytes(slots[at + 16 : at + SLOT])
        return noted

    def _put(self, slot: int, value: bytes) -> None:
        if slot >= CHILDREN:
            raise _too_many(slot + 1)
        at = HEADER + slot * SLOT
        self._shared[at : at + len(value)] = value


def _too_many(children: int) -> BadSettings:
    return BadSettings("a prefork pool has too many children", value=children, expected=f"at most {CHILDREN}",
                       next="agentmesh worker --help")  # fmt: skip
