"""The workload itself, without any fault: else nothing that a fault test says would mean anything."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.faults.bench import Bench


@pytest.mark.parametrize(
    "kind", ["embedded", *(pytest.param(one, marks=pytest.mark.faults) for one in ("redis", "amqp"))]
)
def test_the_workload_ends_as_it_should_without_faults(make_bench: Any, kind: str, seed: int) -> None:
    bench: Bench = make_bench(kind)
    bench.workers(("agents", "threads"), ("tools", "threads"))
    made = bench.wf(24, seed=seed)
    bench.settle()
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
