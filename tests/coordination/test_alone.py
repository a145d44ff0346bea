"""Lone processes: worked, dead, or silent."""

import sys
import time

import pytest

from agentmesh.coordination.alone import LoneProcesses
from agentmesh.records import Ring, new_id

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
