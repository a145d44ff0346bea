"""F12: a process is frozen at a point for three leases and then goes on. It writes nothing, and works again at once."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from agentmesh.testing import until
from tests.faults.bench import Bench

FROZEN_S = 3.0  # three leases
FAULTY = pytest.mark.faults
LEAVES = ["call.before_effect", "call.after_effect", "call.in_commit"]
STATES = "SELECT state FROM mesh.workers WHERE pid = %s ORDER BY id"


def frozen(bench: Bench, point: str) -> None:
    """Until three leases after it was reached."""
    bench.until_reached(point)
    threading.Event().wait(FROZEN_S)


def registered_anew(bench: Bench, pid: int) -> None:
    began = time.monotonic()
    until(lambda: [row["state"] for row in bench.rows(STATES, pid)] == ["dead", "alive"], what="a new registration")
    assert time.monotonic() - began < 2 + 2  # a busy machine adds to the 2 s that are promised


@pytest.mark.parametrize(
    ("kind", "point"),
    [("redis", "call.in_commit"), *(pytest.param("amqp", one, marks=FAULTY) for one in LEAVES),
     *(pytest.param("embedded", one, marks=FAULTY) for one in LEAVES)],
)  # fmt: skip
def test_f12_a_tool_worker_frozen_at_a_point_changes_nothing_and_works_again(
    make_bench: Any, kind: str, point: str
) -> None:
    bench: Bench = make_bench(kind)
    agents = bench.worker("agents", wait=False)
    zombie = bench.armed("tools", f"{point}=stop@1", concurrency=1)
    bench.wait_for(agents)
    trace = bench.given({"tool": "part", "args": {"n": 3}})
    frozen(bench, point)
    other = bench.worker("tools", concurrency=1)
    assert trace.result(timeout=20) == {"part": 9}
    zombie.signal(signal.SIGCONT, tree=True)
    until(lambda: bench.outcomes() == {"stale": 1, "won": 1}, what="the late answer, marked stale")
    registered_anew(bench, zombie.pid)
    other.kill()
    assert bench.given({"tool": "part", "args": {"n": 4}}).result(timeout=20) == {"part": 16}
    bench.settle()
    assert {one.attempt for one in bench.runs("part") if one.pid == zombie.pid} == {1}


@FAULTY
@pytest.mark.parametrize("point", ["reason.after_answer", "callback.after_handler"])
def test_f12_an_agent_worker_frozen_at_a_point_changes_nothing_and_works_again(make_bench: Any, point: str) -> None:
    bench: Bench = make_bench("embedded")
    tools = bench.worker("tools", pool="threads", wait=False)
    zombie = bench.armed("agents", f"{point}=stop@1")
    bench.wait_for(tools)
    trace = bench.start("memory", 5)
    frozen(bench, point)
    other = bench.worker("agents")
    trace.result(timeout=20)
    before = bench.rows("SELECT * FROM mesh.events WHERE trace_id = %s ORDER BY seq", trace.id)
    zombie.signal(signal.SIGCONT, tree=True)
    registered_anew(bench, zombie.pid)
    other.kill()
    bench.start("memory", 6).result(timeout=20)
    bench.settle()
    assert bench.rows("SELECT * FROM mesh.events WHERE trace_id = %s ORDER BY seq", trace.id) == before
    assert bench.value("SELECT count(*) FROM mesh.memory WHERE key = 'n5'") == 1


@FAULTY
@pytest.mark.parametrize("whole", [False, True])
def test_f12_a_frozen_prefork_pool_changes_nothing_and_works_again(make_bench: Any, whole: bool) -> None:
    """The whole tree is frozen, or only the parent: its child then works on, and comes too late."""
    bench: Bench = make_bench("redis")
    agents = bench.worker("agents", wait=False)
    zombie = bench.worker("tools", pool="prefork", concurrency=1)
    bench.wait_for(agents)
    trace = bench.given({"tool": "gated", "args": {"gate": "gate", "n": 3}})
    bench.until_ran("gated")
    zombie.signal(signal.SIGSTOP, tree=whole)
    until(lambda: bench.outcomes()["lost"] == 1, what="the lost attempt")
    other = bench.worker("tools")
    assert trace.result(timeout=20) == {"gated": 9}
    bench.open("gate")
    zombie.signal(signal.SIGCONT, tree=True)
    until(lambda: bench.outcomes() == {"stale": 1, "won": 1}, what="the late answer, marked stale")
    registered_anew(bench, zombie.pid)
    other.kill()
    assert bench.given({"tool": "part", "args": {"n": 4}}).result(timeout=20) == {"part": 16}
    bench.settle()
