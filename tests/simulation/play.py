"""Plays schedules in processes of their own, each with a database of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

from agentmesh import testing
from tests.simulation.base import Base
from tests.simulation.plan import Outcome, Plan
from tests.simulation.shrink import shrink
from tests.simulation.world import World

_bases: list[Base] = []


@contextlib.contextmanager
def players(server: str, *, number: int | None = None) -> Iterator[Players]:
    """So many processes that play schedules (None: one a core); their databases are dropped afterwards."""
    number = number or os.cpu_count() or 1
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        urls: Any = spawn.Queue()
        for _ in range(number):
            root = stack.enter_context(tempfile.TemporaryDirectory())
            urls.put((stack.enter_context(testing.database(server)), root))
        pool = ProcessPoolExecutor(number, mp_context=spawn, initializer=_open, initargs=(urls,))
        try:
            yield Players(pool, number)
        finally:
            pool.shutdown(cancel_futures=True)


class Players:
    """Processes that play."""

    def __init__(self, pool: ProcessPoolExecutor, number: int) -> None:
        self._pool, self._number = pool, number

    def play(self, plans: Iterable[Plan]) -> Iterator[Outcome]:
        """How each schedule went, in order; without their lines, unless something broke or they are asked for."""
        going: deque[Future[Outcome]] = deque()
        for plan in plans:
            going.append(self._pool.submit(_play, plan))
            if len(going) >= 4 * self._number:
                yield going.popleft().result()
        while going:
            yield going.popleft().result()

    def shrunk(self, failed: Outcome, tries: int) -> Outcome:
        return self._pool.submit(_shrink, failed, tries).result()


def _open(urls: Any) -> None:
    url, root = urls.get()
    _bases.append(Base(url, Path(root)))


def play(plan: Plan, *, verbose: bool = False) -> Outcome:
    return World(_bases[0], plan, verbose=verbose).run()


def first_difference(one: Outcome, other: Outcome) -> str:
    """Where two histories of one seed part."""
    for at, pair in enumerate(zip_longest(one.lines, other.lines)):
        if pair[0] != pair[1]:
            return f"line {at} of {len(one.lines)} and {len(other.lines)}: {pair[0]} | {pair[1]}"
    return "the same lines, other events: " + str(
        next((pair for pair in zip_longest(one.events, other.events) if pair[0] != pair[1]), None)
    )


def _play(plan: Plan) -> Outcome:
    outcome = play(plan)
    if plan.twice:
        again = play(plan)
        if again.digest != outcome.digest:
            outcome.broken.append(f"twice: the same seed gave another history: {first_difference(outcome, again)}")
    if not outcome.broken and not plan.lines:
        outcome.lines.clear()
        outcome.events.clear()
    return outcome


def _shrink(failed: Outcome, tries: int) -> Outcome:
    return shrink(play, failed, tries=tries)
