"""Lone processes: worked, dead, or silent; forked or started; and nobody waits for them."""

import os
import sys
import time

import pytest

from agentmesh.coordination.alone import LoneProcesses, serve
from agentmesh.records import Ring, new_id
from agentmesh.testing import until

SERVE = """
import itertools, os, sys, threading
from agentmesh.coordination.alone import pipes, serve
def handle(ring):
    if ring.task == "dies": os._exit(3)
    if ring.task == "holds": threading.Event().wait(0.3); sum(itertools.repeat(0))
    threading.Event().wait(0.6)
serve(pipes(os.environ), handle, ours=lambda: True, look_s=0.05)
"""


@pytest.fixture
def lone():
    made = LoneProcesses(silence_s=0.5, argv=[sys.executable, "-c", SERVE], at_once=1)
    yield made
    made.close()


def ring(task):
    return Ring("call", new_id(), 1, "tools.tools", task, new_id())


def test_one_that_works_longer_than_the_silence_but_is_heard_goes_on_with_the_next(lone):
    assert [lone.run(ring("works")) for _ in range(2)] == [True, True]


def test_one_that_dies_is_told_and_another_is_started_for_the_next(lone):
    assert [lone.run(ring(task)) for task in ("dies", "works")] == [False, True]


def test_one_that_lets_no_other_of_its_threads_run_is_killed(lone):
    began = time.monotonic()
    assert lone.run(ring("holds")) is False
    assert time.monotonic() - began < 10
    assert lone.run(ring("works")) is True


def written(path):
    """What the handled rings wrote there: a line each, of the process and the task."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def forked(path):
    """What a forked process does with a ring: it writes it down, and dies where the task says so."""

    def handle(asked):
        with path.open("a") as out:
            out.write(f"{os.getpid()} {asked.task}\n")
        if asked.task == "dies":
            os._exit(3)

    return lambda ends: serve(ends, handle, ours=lambda: True, look_s=0.05)


def test_the_first_is_forked_and_one_that_died_is_replaced_by_a_command(lone, tmp_path):
    path = tmp_path / "written"
    lone.keep_warm(forked(path))
    assert [lone.run(ring(task)) for task in ("first", "dies", "works")] == [True, False, True]
    (pid, first), (same, second) = written(path)
    assert (first, second) == ("first", "dies")
    assert pid == same


def test_a_forked_one_that_was_never_asked_ends_when_its_worker_closes(lone, tmp_path):
    lone.keep_warm(forked(tmp_path / "written"))
    [waiting] = lone._idle
    lone.close()
    assert waiting.process.returncode == 0
    assert written(tmp_path / "written") == []


def test_who_hands_a_ring_over_does_not_wait_and_what_was_handed_twice_is_worked_once(tmp_path):
    made = LoneProcesses(silence_s=5, at_once=1)
    path, gate = tmp_path / "written", tmp_path / "gate"
    os.mkfifo(gate)

    def handle(asked):
        gate.read_text()
        with path.open("a") as out:
            out.write(f"{os.getpid()} {asked.task}\n")

    made.keep_warm(lambda ends: serve(ends, handle, ours=lambda: True, look_s=0.05))
    one, other = ring("one"), ring("other")
    for asked in (one, one, other):
        made.hand(asked)  # whoever waited for it would wait for ever
    for count in (1, 2):
        gate.write_text("go")
        until(lambda: len(written(path)) == count, what="another row worked")  # noqa: B023 - called here
    made.close()
    assert [task for _, task in written(path)] == ["one", "other"]
