"""F22, F23: a backlog made while nobody worked, and many at once. It is worked off; rings and messages stay bounded."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
import redis

from agentmesh import testing
from agentmesh.testing import race, until
from tests.faults import figures, tap
from tests.faults.bench import Bench

BACKLOG = {"embedded": 2_000, "redis": 10_000, "amqp": 10_000}
TIMERS = 2_000
PACE = {
    "AGENTMESH_LEASE_LEASE": "10s", "AGENTMESH_LEASE_BEAT": "1s", "AGENTMESH_LEASE_RESCUE": "1s",
    "AGENTMESH_LEASE_RING_AGAIN": "2s", "AGENTMESH_LEASE_RING_AGAIN_CAP": "10s",
}  # fmt: skip
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
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


def crowded(bench: Bench) -> str:
    """How the agent's queue holds more than two messages a ready row, a few aside that are being counted; empty: not."""
    queue = f"agent.{bench.agent('child')}"
    depth, ready = bench.mesh.broker.depths([queue])[queue], int(bench.value(OPEN))
    return f"{depth} messages for {ready} rows" if depth > 2 * ready + 20 else ""


def worked_off(bench: Bench, *, left: float = 0, within: float = 240) -> None:
    """No more than so many traces are open, and the queue was never crowded on the way."""
    until(lambda: crowded(bench) or bench.value(OPEN) <= left, within=within, what="the backlog's end")
    assert (crowded(bench), bench.value(OPEN) <= left) == ("", True)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["embedded", "redis", "amqp"])
def test_f22_a_backlog_made_while_nobody_worked_is_worked_off_through_restarts(make_bench: Any, kind: str) -> None:
    bench = make_bench(kind)
    announced = bench.worker("agents")
    announced.signal(signal.SIGTERM)
    assert announced.wait(30) == 0
    flood(bench, backlog := BACKLOG[kind])
    assert bench.value(OPEN) == backlog
    for share in (0.7, 0.4, 0):
        workers = bench.workers(("agents", "threads"), ("agents", "threads"))
        worked_off(bench, left=share * backlog)
        for one in workers:
            one.signal(signal.SIGTERM)
            assert one.wait(30) == 0
    assert most_rings(bench) <= 3
    bench.settle()


OUTAGE_S = 6  # of leases, as 60 s are with the default


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["embedded", "redis", "amqp"])
def test_f23_timers_workers_and_clients_that_return_together_block_nobody(
    make_bench: Any, own_postgres: Any, kind: str
) -> None:
    server = own_postgres(max_connections="200")
    bench: Bench = make_bench(kind, server=server, links=("postgres" if kind == "embedded" else "broker",))
    bench.env |= PACE
    workers = bench.workers(*[("agents", "threads")] * 8)
    [link] = bench.links.values()
    flood(bench, TIMERS, delay=OUTAGE_S)
    link.cut()
    threading.Event().wait(OUTAGE_S)
    link.pass_()
    clients = race(*[lambda n=n: bench.dispatch("child", {"n": n}) for n in range(200)])  # type: ignore[misc]
    assert [one for one in clients if isinstance(one, BaseException)] == []
    worked_off(bench)
    assert most_rings(bench) <= 3
    assert int(bench.value(CONNECTIONS)) <= 9 * (5 + 5 + 4)  # pools, hearts, rescuers and brokers of nine processes
    assert all(one.running for one in workers)
    bench.settle()


FLOOD = 50_000
LOOK_S = 20


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lose", [False, True], ids=["kept", "lost"])
def test_f22_fifty_thousand_that_nobody_works_cost_little_and_begin_gently(make_bench: Any, lose: bool) -> None:
    """Only a tool worker is there, whose rescuer sees them wait, at the pace of production; then their agents come back."""
    bench: Bench = make_bench("redis", links=("postgres",))
    bench.env |= PACE
    asked = bench.links["postgres"].tap = tap.Statements()  # before anybody connects: it follows whole sessions
    announced = bench.worker("agents")
    announced.signal(signal.SIGTERM)
    assert announced.wait(30) == 0
    bench.worker("tools")
    for at in range(0, FLOOD, 5000):
        flood(bench, min(5000, FLOOD - at))
    queue = f"agent.{bench.agent('child')}"
    bench.mesh.close()  # what is counted from here on is the workers'
    if lose:
        with redis.Redis.from_url(bench.broker_url or "") as client:
            bench.messages_lost += sum(
                client.llen(key) for key in client.scan_iter(f"*{queue}*") if client.type(key) == b"list"
            )
            for key in client.scan_iter(f"*{queue}*"):
                client.delete(key)
    asked.count = 0
    threading.Event().wait(LOOK_S)
    per_s = asked.count / LOOK_S
    rings = bench.value("SELECT avg(rings)::float8 FROM mesh.traces")
    bench.workers(("agents", "threads"), ("agents", "threads"))
    asked.count, done = 0, FLOOD - bench.value(OPEN)
    connections = most = 0
    for _ in range(LOOK_S):
        threading.Event().wait(1)
        connections = max(connections, bench.value(CONNECTIONS))
        most = max(most, bench.mesh.broker.depths([queue])[queue])
    begun = FLOOD - bench.value(OPEN) - done
    figures.say(
        f"50,000 waiting, messages {'lost' if lose else 'kept'}: rescuer {per_s:.0f} statements/s, {rings:.2f} rings a row;"
        f" then two workers: {begun / LOOK_S:.0f} traces/s, {asked.count / max(begun, 1):.1f} statements a trace,"
        f" {connections} connections, at most {most} messages"
    )
    assert per_s <= 100
    assert most_rings(bench) <= 3
    assert rings <= (0.5 if lose else 0.1)
    assert begun > 0
    assert most <= 2 * FLOOD
    assert connections <= 3 * (5 + 5 + 4) + 4
    assert testing.broken(bench.database_url).keys() <= {"I2"}  # which is for when all is quiet
    bench.note()
    bench.settled = True  # the rest would take its time, and show nothing more
