"""What this worker process runs, noted before each claim is sent: its own threads and its prefork children.

The notes of children lie in memory shared before the fork, and so does the worker's id, so that children follow their
parent when it registers anew. A note is compared with the rows by every beat.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator
from uuid import UUID

from agentmesh.state.traces import Holder

SLOT = 16
HEADER = 16


class Notes:
    """Claims by id. A prefork child notes in its slot of the shared memory, everything else in this process."""

    def __init__(self, *, children: int = 0) -> None:
        self._shared = mmap.mmap(-1, HEADER + SLOT * max(1, children))
        self._children = children
        self._lock = threading.Lock()
        self._claims: dict[UUID, tuple[str, UUID]] = {}
        self._slot: int | None = None

    def become_child(self, slot: int) -> None:
        """From now on this process is the pool's child number `slot`."""
        self._lock = threading.Lock()
        self._claims = {}
        self._slot = slot
        self._put(slot, bytes(SLOT))

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
        """The claim is noted until the block ends."""
        if self._slot is not None:
            self._put(self._slot, claim_id.bytes)
        else:
            with self._lock:
                self._claims[claim_id] = (kind, row_id)
        try:
            yield
        finally:
            if self._slot is not None:
                self._put(self._slot, bytes(SLOT))
            else:
                with self._lock:
                    self._claims.pop(claim_id, None)

    def claims(self) -> set[UUID]:
        """Every claim noted now."""
        with self._lock:
            mine = set(self._claims)
        for slot in range(self._children):
            at = HEADER + slot * SLOT
            noted = bytes(self._shared[at : at + SLOT])
            if any(noted):
                mine.add(UUID(bytes=noted))
        return mine

    def _put(self, slot: int, value: bytes) -> None:
        if slot < self._children:
            at = HEADER + slot * SLOT
            self._shared[at : at + SLOT] = value
