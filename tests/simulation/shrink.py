"""Makes a failing schedule smaller while it fails in the same way: fewer steps, traces, faults, workers.

Every candidate is played. Faults are left out by the numbers under which they happened; a number may mean another fault
once earlier ones are gone, which is as good as long as it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tests.simulation.plan import Outcome, Plan

Play = Callable[[Plan], Outcome]


def shrink(play: Play, failed: Outcome, *, tries: int = 150) -> Outcome:
    """The smallest schedule found within `tries` plays, with its outcome; `failed` itself when there is none."""
    best, left, again = failed, tries, True
    while again and left > 0:
        again = False
        for candidate in _smaller(best):
            if left <= 0:
                break
            left -= 1
            outcome = play(candidate)
            if outcome.kind() == failed.kind():
                best, again = outcome, True
                break
    return best


def _smaller(best: Outcome) -> Iterator[Plan]:
    """Smaller plans than this one, the boldest first."""
    plan = best.plan
    for steps in sorted({0, best.storm // 4, best.storm // 2, best.storm * 3 // 4, best.storm - 10}):
        if 0 <= steps < plan.steps:
            yield replace(plan, steps=steps)
    jobs = best.jobs
    if len(jobs) > 1:
        for some in _parts(jobs):
            yield replace(plan, only=some)
    fired = tuple(best.fired)
    if plan.faults is None or len(fired) < len(plan.faults):
        yield replace(plan, faults=fired)
    for some in _parts(fired):
        yield replace(plan, faults=some)
    if plan.workers > 1:
        yield replace(plan, workers=plan.workers - 1)


def _parts(whole: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """None of it, then parts of it: halves, quarters … and all but one."""
    if whole:
        yield ()
    size = len(whole) // 2
    while size >= 1:
        for at in range(0, len(whole), size):
            without = tuple(whole[:at]) + tuple(whole[at + size :])
            if without:
                yield without
        size //= 2
