"""What this process and its prefork children have done so far, counted for figures that no row shows.

The counts of children lie in memory shared before the fork, so that the parent tells them with its own beats. Nothing
decides by them.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

TRANSITIONS = ("dispatch", "claim", "take", "commit", "call_claim", "call_end", "beat", "look", "other")
REFUSALS = (
    "algorithm", "audience", "auth_token", "claims", "early", "expired", "fields", "form", "header", "json", "key", "life",
    "revoked", "row", "signature", "tenant", "trace", "arguments", "other",
)  # fmt: skip
NAMES = (
    "rings.new", "rings.again", "rings.refused", "fenced", "deliveries.done", "deliveries.retried", "deliveries.failed",
    *(f"round_trips.{one}" for one in TRANSITIONS), *(f"refused.{one}" for one in REFUSALS),
)  # fmt: skip
CHILDREN = 512
"""Children beyond these are not counted."""


class Counts:
    """One number for each of NAMES, and each process that was forked from this one."""

    def __init__(self) -> None:
        self._shared = memoryview(mmap.mmap(-1, (CHILDREN + 1) * len(NAMES) * 8)).cast("Q")
        self._places = {name: n for n, name in enumerate(NAMES)}
        self._base: int | None = 0
        self.unlock()

    def unlock(self) -> None:
        """Forget whoever counted when this process was forked."""
        self._lock = threading.Lock()

    def become_child(self, number: int) -> None:
        """From now on this process counts as the pool's child of this number."""
        self._base = (number + 1) * len(NAMES) if number < CHILDREN else None

    def add(self, name: str, n: int = 1) -> None:
        if self._base is None:
            return
        place = self._base + self._places[name]
        with self._lock:
            self._shared[place] += n

    def totals(self) -> dict[str, int]:
        """Of this process and its children together; what never happened is left out."""
        sums = {name: sum(self._shared[n :: len(NAMES)]) for name, n in self._places.items()}
        return {name: n for name, n in sums.items() if n}


COUNTS = Counts()
os.register_at_fork(after_in_child=COUNTS.unlock)
_doing = threading.local()


def transition(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """The round trips within this function are this transition's."""

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def run(*args: P.args, **keys: P.kwargs) -> T:
            before, _doing.name = getattr(_doing, "name", "other"), name
            try:
                return function(*args, **keys)
            finally:
                _doing.name = before

        return run

    return wrap


def round_trip() -> None:
    """The database was asked once."""
    COUNTS.add(f"round_trips.{getattr(_doing, 'name', 'other')}")
