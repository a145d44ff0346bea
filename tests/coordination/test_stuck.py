"""Who is killed for running what is nobody's any more, and what is counted."""

import os
import signal
import subprocess

import pytest

from agentmesh.coordination import process
from agentmesh.coordination.stuck import Stuck
from agentmesh.records import new_id


class Noted(dict):
    """Notes that say what the test says."""

    def claims(self):
        return self


class Clock:
    now = 0.0

    def advance(self, seconds):
        self.now += seconds

    def monotonic(self):
        return self.now


@pytest.fixture
def sleeper():
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def seen():
    """seen(noted, threads=) -> a Stuck whose clock the test moves, how often it was full."""
    calls = []

    def make(noted, threads=4):
        clock = Clock()
        stuck = Stuck(Noted(noted), grace_s=1, threads=threads, monotonic=clock.monotonic)
        stuck.full = lambda: calls.append(len(stuck))
        return stuck, clock, calls

    return make


def test_a_child_whose_row_left_it_is_killed_after_its_grace(seen, sleeper):
    claim = new_id()
    stuck, clock, _ = seen({claim: sleeper.pid})
    stuck.look({claim: sleeper.pid}, set())
    assert process.started(sleeper.pid)
    clock.advance(1.1)
    stuck.look({claim: sleeper.pid}, set())
    assert sleeper.wait(5) == -signal.SIGKILL
    assert len(stuck) == 0


def test_a_child_that_has_gone_on_to_something_else_meanwhile_runs_on(seen, sleeper):
    old, new = new_id(), new_id()
    stuck, clock, _ = seen({new: sleeper.pid})  # what is seen at the second look
    for _ in range(2):
        stuck.look({old: sleeper.pid}, set())
        clock.advance(1.1)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.2)
    assert not process.stopped(sleeper.pid, parent=os.getpid())


def test_a_claim_that_a_row_still_names_is_never_late(seen, sleeper):
    claim = new_id()
    stuck, clock, calls = seen({claim: None})
    for _ in range(3):
        stuck.look({claim: None}, {claim})
        clock.advance(10)
    assert (len(stuck), calls, stuck.nothing_else()) == (0, [], False)


def test_threads_are_counted_until_they_come_back_and_half_of_them_are_too_many(seen):
    one, two, third = (new_id() for _ in range(3))
    stuck, clock, calls = seen({one: None, two: None})
    stuck.look({one: None}, set())
    clock.advance(1.1)
    stuck.look({one: None, two: None, third: None}, {third})
    assert (len(stuck), calls) == (1, [])
    assert not stuck.nothing_else()
    clock.advance(1.1)
    stuck.look({one: None, two: None}, set())
    assert (len(stuck), calls) == (2, [2])
    assert stuck.nothing_else()
    stuck.look({two: None}, set())
    assert (len(stuck), calls) == (1, [2])
