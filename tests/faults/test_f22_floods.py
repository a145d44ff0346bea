"""F22, F23: a backlog made while nobody worked, and many at once. It is worked off; rings and messages stay bounded."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from agentmesh.testing import until
from tests.faults.bench import Bench

BACKLOG = 2000
OPEN = "SELECT count(*) FROM mesh.traces WHERE status NOT IN ('done', 'failed', 'cancelled')"


def flood(bench: Bench, n: int, **more: Any) -> None:
    intents = [
        {"intent": "work", "from_id": "bench", "to_id": bench.agent("child"), "context_id": f"c{k % 50}", "payload": {"n": k},
         **more}
        for k in range(n)
    ]  # fmt: skip
    bench.mesh.router.dispatch_many(intents)


def most_rings(bench: Bench) -> int:
    return int(bench.value("SELECT max(rings) FROM mesh.traces"))


def crowded(bench: Bench) -> bool:
    """Whether the agent's queue holds more than two messages a ready row, a few aside that are being counted."""
    queue = f"agent.{bench.agent('child')}"
    depth = bench.mesh.broker.depths([queue])[queue]
    return depth > 2 * int(bench.value(OPEN)) + 20


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["embedded", "redis", "amqp"])
def test_f22_a_backlog_made_while_nobody_worked_is_worked_off_through_restarts(make_bench: Any, kind: str) -> None:
    bench = make_bench(kind)
    announced = bench.worker("agents")
    announced.signal(signal.SIGTERM)
    assert announced.wait(30) == 0
    flood(bench, BACKLOG)
    assert bench.value(OPEN) == BACKLOG
    for share in (0.7, 0.4, 0):
        workers = bench.workers(("agents", "threads"), ("agents", "threads"))
        until(
            lambda left=share * BACKLOG: crowded(bench) or bench.value(OPEN) <= left,
            within=120,
            what="the backlog's end",
        )
        assert not crowded(bench)
        for one in workers:
            one.signal(signal.SIGTERM)
            assert one.wait(30) == 0
    assert most_rings(bench) <= 3
    bench.settle()


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["embedded", "amqp"])
def test_f23_two_thousand_timers_due_at_once_and_clients_together_block_nobody(make_bench: Any, kind: str) -> None:
    bench = make_bench(kind)
    bench.workers(("agents", "threads"), ("agents", "threads"))
    flood(bench, BACKLOG, delay=2.0)
    flood(bench, 200)
    until(lambda: crowded(bench) or bench.value(OPEN) == 0, within=180, what="the end of the herd")
    assert bench.value(OPEN) == 0
    assert most_rings(bench) <= 3
    connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert int(bench.value(connections)) <= 3 * (5 + 5 + 4)  # pools, hearts, rescuers and brokers of three processes
    bench.settle()
