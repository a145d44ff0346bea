"""Waiting costs nothing: traces that ask a person for a week are rows, and go on when they are answered."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from agentmesh import testing
from agentmesh.testing import until
from tests.faults.bench import Bench

AGENT = "agent: clerk-{tag}\nchain: ask\ntenants: [default]\n"
CHAIN = """
chain: ask
steps:
  - approval: shall it go on?
  - finish: {"=": result.by}
"""
DAY_S = 86_400
HELD = """
SELECT (SELECT count(*) FROM mesh.traces WHERE worker_id IS NOT NULL OR status <> 'waiting') AS traces,
  (SELECT count(*) FROM mesh.steps WHERE status IN ('ready', 'running', 'joined')) AS steps,
  (SELECT count(*) FROM mesh.attempts WHERE ended_at IS NULL) AS attempts,
  (SELECT count(*) FROM mesh.steps WHERE status = 'waiting' AND rings > 0) AS rings
"""
LOOKED = "SELECT 1 FROM mesh.leaders WHERE until > mesh.mesh_now()"
STRANGERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.faults)])
def test_traces_that_wait_a_week_hold_no_worker_no_connection_and_no_message(make_bench: Any, number: int) -> None:
    bench: Bench = make_bench("embedded")
    (bench.home / "agents" / "clerk.yaml").write_text(AGENT.format(tag=bench.tag))
    (bench.home / "chains").mkdir()
    (bench.home / "chains" / "ask.yaml").write_text(CHAIN)
    bench.env["AGENTMESH_AGENTS_CHAINS"] = str(bench.home / "chains")
    worker = bench.worker("agents", concurrency=8)
    intents = [
        {"intent": "work", "from_id": "bench", "to_id": bench.agent("clerk"), "context_id": f"case-{n}", "payload": {}}
        for n in range(number)
    ]
    for at in range(0, number, 500):
        bench.mesh.router.dispatch_many(intents[at : at + 500])
    waiting = "SELECT count(*) FROM mesh.traces WHERE status = 'waiting'"
    until(lambda: bench.value(waiting) == number, within=30 + number / 20, what="all waiting")

    def at_rest() -> bool:
        [held] = bench.rows(HELD)
        return not any(held.values()) and not any(bench.mesh.broker.depths(bench.queues()).values())

    for day in range(1, 8):
        testing.shift(bench.database_url, day * DAY_S)
        until(lambda: bench.rows(LOOKED), within=20, what=f"a rescuer's look on day {day}")
        until(at_rest, within=10, what=f"rest on day {day}")
    worker.signal(signal.SIGTERM)
    worker.wait(40)
    bench.mesh.close()
    until(lambda: bench.value(STRANGERS) == 0, within=10, what="the end of every connection")
    assert bench.value(waiting) == number

    bench.worker("agents", concurrency=8)
    for row in bench.rows("SELECT id FROM mesh.traces"):
        bench.mesh.people.decide(row["id"], by="ann")
    until(lambda: bench.value(waiting) == 0, within=30, what="no trace that waits")
    bench.settle(within=30 + number / 20)
    assert bench.value("SELECT count(*) FROM mesh.traces WHERE result = '\"ann\"' AND status = 'done'") == number
