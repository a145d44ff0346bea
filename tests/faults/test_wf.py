"""The workload itself, without any fault: else nothing that a fault test says would mean anything. W is checked here."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg
import pytest

from tests.faults import tap
from tests.faults.bench import Bench


def test_the_tap_sees_what_does_not_belong_there() -> None:
    call = b'[["call","01a1fe43-f150-7000-96b5-b0a9df9ce0ef",1],{},{"chord":null}]'
    json_ = "application/json"
    assert tap.wrong([tap.Seen("tools.t", call, json_, call)], "t", ["acme"]) == []
    assert len(tap.wrong([tap.Seen("tools.t", call, json_, call + b" acme")], "t", ["acme"])) == 1
    assert len(tap.wrong([tap.Seen("tools.t", call, "application/x-python-serialize", call)], "t", [])) == 1
    large = call[:-1] + b" " * (2 << 10) + b"]"
    assert len(tap.wrong([tap.Seen("tools.t", large, json_, large)], "t", [])) == 1
    told = call.replace(b"{},", b'{"n": 1},', 1)
    assert len(tap.wrong([tap.Seen("tools.t", told, json_, told)], "t", [])) == 1
    letter = b" " * (129 << 10)
    assert len(tap.wrong([tap.Seen("agent.a", letter, json_, letter)], "t", [])) == 1


@pytest.mark.parametrize(
    "kind", ["embedded", *(pytest.param(one, marks=pytest.mark.faults) for one in ("redis", "amqp"))]
)
def test_the_workload_ends_as_it_should_without_faults(make_bench: Any, kind: str, seed: int) -> None:
    bench: Bench = make_bench(kind, links=() if kind == "embedded" else ("broker",))
    stream = tap.Stream(kind, bench.tag)
    if kind != "embedded":
        bench.links["broker"].tap = stream
    bench.workers(("agents", "threads"), ("tools", "threads"))
    if kind == "embedded":
        with psycopg.connect(bench.database_url, autocommit=True) as connection:
            connection.execute(tap.TRIGGER)
    made = bench.wf(24, seed=seed)
    bench.settle()
    seen = tap.of_table(bench.rows("SELECT * FROM tapped")) if kind == "embedded" else stream.seen()
    queues = Counter(one.queue for one in seen)
    assert queues[f"tools.{bench.tag}"] > 24
    assert queues[f"agent.worker-{bench.tag}"] > 24
    assert tap.wrong(seen, bench.tag, ["acme", "globex", "data:read", '"shape"', "parallel"]) == []
    assert Counter(trace.status() for _, _, trace in made) == {"done": 24}
    results = {shape: (n, trace.result(0)) for shape, n, trace in reversed(made)}
    assert results["parallel"][1] == {f"p{k}": (1 + k) ** 2 for k in range(8)}
    assert results["serial"][1] == 0
    assert results["fallback"][1] == 4
    assert results["loop"][1] == 3
    assert results["memory"][1] == 4
    assert results["delegate"][1] == 25
    assert bench.value("SELECT count(*) FROM mesh.traces WHERE parent_id IS NOT NULL") == 4
    assert bench.value("SELECT count(*) FROM mesh.memory WHERE key LIKE 'n%%'") == 4
    assert bench.value("SELECT count(DISTINCT tenant_id) FROM mesh.traces") > 1
