"""F13: messages come more than once, shuffled and late, and at the end the whole day's come again."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from agentmesh.infrastructure import faults
from agentmesh.records import Ring
from tests.faults import byhand
from tests.faults.bench import Bench

# every row that a doorbell could name, with the envelope that its first message carried
ROWS = """
SELECT 'trace' AS kind, t.id, t.queue, 'agent.' || t.agent AS task, t.id AS trace_id, 1 AS epoch, e.jws
  FROM mesh.traces t JOIN mesh.envelopes e ON e.trace_id = t.id
UNION ALL SELECT 'step', id, queue, 'agent.' || agent, trace_id, epoch, NULL FROM mesh.steps WHERE kind <> 'group'
UNION ALL SELECT 'call', id, queue, task, trace_id, epoch, NULL FROM mesh.calls
"""


def messages(bench: Bench) -> list[Ring]:
    """A doorbell for every epoch of every row so far, true and false ones."""
    return [
        Ring(row["kind"], row["id"], epoch, row["queue"], row["task"], row["trace_id"], envelope=row["jws"])
        for row in bench.rows(ROWS)
        for epoch in range(1, row["epoch"] + 1)
    ]


@pytest.mark.parametrize(
    "kind",
    [pytest.param("redis", marks=pytest.mark.faults), pytest.param("amqp", marks=pytest.mark.faults), "embedded"],
)
def test_f13_messages_doubled_shuffled_late_and_replayed_count_once(
    make_bench: Any, kind: str, chance: random.Random, seed: int
) -> None:
    bench: Bench = make_bench(kind)
    bench.workers(("agents", "threads"), ("agents", "threads"), ("tools", "threads"), ("tools", "prefork"))
    made = bench.wf(18, seed=seed)
    late: list[Ring] = []
    for _ in range(30):  # 0 to 3 leases
        copies = [ring for ring in messages(bench) for _ in range(chance.randrange(0, 3))]
        chance.shuffle(copies)
        cut = len(copies) // 2
        assert bench.mesh.broker.ring(copies[:cut] + late) == []
        late = copies[cut:]
        threading.Event().wait(0.1)
    bench.quiet(60)
    before = bench.rows("SELECT trace_id, seq, name FROM mesh.events ORDER BY 1, 2")
    replayed = messages(bench)
    chance.shuffle(replayed)
    assert bench.mesh.broker.ring(replayed) == []
    assert bench.start("answer", 1).result(timeout=30) == {"n": 1}  # behind all of them
    bench.settle()
    assert {trace.status() for _, _, trace in made} == {"done"}
    known = {trace["trace_id"] for trace in before}
    after = bench.rows(
        "SELECT trace_id, seq, name FROM mesh.events WHERE trace_id = ANY(%s) ORDER BY 1, 2", list(known)
    )
    assert after == before
    assert set(bench.outcomes()) <= {"won", "failed"}, "a doubled message cost an attempt"


def test_f13_a_claim_that_loses_costs_two_statements_and_writes_nothing(lab: Any) -> None:
    trace = lab.open("work", {"tool": "quick"})
    rings = [*lab.bells.waiting, lab.ring(trace)]
    rings += [Ring("trace", trace.id, 1, rings[-1].queue, "agent.puppet", trace.id)]
    lab.drain()
    before = lab.everything()
    count = 0

    def counted() -> None:
        nonlocal count
        count += byhand.executing()

    for ring in rings:
        count = 0
        faults.arm("wire.before_send", counted)
        assert lab.mesh.controller.run_once(ring) in {(), None}
        faults.disarm()
        assert 1 <= count <= 2, (ring.kind, count)
    assert lab.everything() == before
