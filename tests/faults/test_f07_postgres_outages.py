"""F07, F08: PostgreSQL is restarted, stopped at once or killed under load. What was accepted is there, once."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.infrastructure import faults
from agentmesh.testing import until
from tests.faults.bench import Bench
from tests.faults.load import Load

FAULTY = pytest.mark.faults
TIMES = {"fast": 3, "immediate": 2, "kill": 2}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("embedded", "immediate"), *(pytest.param("redis", mode, marks=FAULTY) for mode in TIMES),
     pytest.param("embedded", "fast", marks=FAULTY), pytest.param("embedded", "kill", marks=FAULTY)],
)  # fmt: skip
def test_f07_nothing_accepted_is_lost_over_ends_of_postgres(
    make_bench: Any, own_postgres: Any, kind: str, mode: str
) -> None:
    server = own_postgres()
    bench: Bench = make_bench(kind, server=server)
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    workers.append(bench.worker("tools", pool="prefork", concurrency=1))
    with Load(bench) as load:
        for _ in range(TIMES[mode] if kind == "redis" else 1):
            load.more(8)
            server.end(mode)
            until(lambda: len(load.refused) > 0, within=20, what="a refusal")
            server.start()
            load.more(8)
    bench.settle(within=90)
    load.check()
    assert all(worker.running for worker in workers)
    assert {one.code for one in load.refused} <= {"E_DATABASE", "E_COMMIT_UNKNOWN", "E_POOL_TIMEOUT"}


TRANSITIONS = [
    "receive.before_verify", "reason.before", "reason.after_answer", "tools.before_commit", "callback.after_handler",
    "finish.before_commit", "tools.after_ring",
]  # fmt: skip
LEAVES = ["call.after_claim", "call.after_effect", "call.in_commit", "join.last_before_commit", "call.after_commit"]


@pytest.mark.parametrize("fate", ["commit_unknown", pytest.param("drop", marks=FAULTY)])
def test_f08_a_commit_nobody_heard_of_is_settled_at_every_transition(make_bench: Any, fate: str, seed: int) -> None:
    bench: Bench = make_bench("embedded")
    bench.armed("agents", ",".join(f"{point}={fate}@{n}" for n, point in enumerate(TRANSITIONS, 1)))
    bench.armed("tools", ",".join(f"{point}={fate}@{n}" for n, point in enumerate(LEAVES, 1)))
    made = bench.wf(24, seed=seed)
    bench.settle()
    assert {trace.status() for _, _, trace in made} == {"done"}
    assert bench.value("SELECT count(*) FROM mesh.traces") == 24 + 4


@pytest.mark.parametrize("fate", ["drop", "commit_unknown"])
def test_f08_a_producer_whose_commit_was_unknown_has_one_trace(make_bench: Any, fate: str) -> None:
    bench: Bench = make_bench("embedded")
    bench.workers(("agents", "threads"), ("tools", "threads"))
    bench.start("answer", 1)  # keys and agents are known from here on
    faults.arm("dispatch.before_commit", faults.ACTIONS[fate])
    try:
        traces = [bench.start("answer", n) for n in range(3)]
        keyed = [
            bench.dispatch("worker", {"shape": "answer", "n": 9}, idempotency_key="k", context_id="c") for _ in range(2)
        ]
    finally:
        faults.disarm()
    bench.settle()
    assert {trace.status() for trace in (*traces, *keyed)} == {"done"}
    assert len({trace.id for trace in keyed}) == 1
    assert bench.value("SELECT count(*) FROM mesh.traces") == 1 + 3 + 1
