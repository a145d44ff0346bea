"""F02: a tool worker is killed at every point of a call and of a join: a prefork child, a prefork parent, a process."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from agentmesh.testing import until
from tests.faults.bench import PARTS, Bench

# which time the point is reached, of the eight parts
POINTS = {
    "call.after_claim": 1, "call.before_effect": 2, "call.after_effect": 3, "call.in_commit": 4, "call.after_commit": 5,
    "join.last_before_commit": PARTS, "join.after_commit": 1,
}  # fmt: skip
COMMITTED = {"call.after_commit", "join.after_commit"}
QUICK = {("amqp", "call.after_effect")}


def every() -> list[Any]:
    pairs = [(kind, point) for kind in ("redis", "amqp") for point in POINTS]
    return [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.faults) for pair in pairs]


def check(bench: Bench, trace: Any, point: str, *, extra: int = 1) -> None:
    """`extra`: how many calls one death may take with it."""
    assert trace.result(timeout=30) == {f"p{k}": k * k for k in range(PARTS)}
    bench.settle()
    runs = Counter(one.idem_key for one in bench.runs("part"))
    assert len(runs) == PARTS
    again = sum(runs.values()) - PARTS
    assert again <= (0 if point in COMMITTED and extra == 1 else extra), bench.outcomes()
    answers = [one for one in bench.ledger() if one.kind == "reason"]
    assert len(answers) == 1


def noticed_s(bench: Bench, point: str, nth: int) -> float:
    """How long after the death at this point its attempt was lost."""
    died = (bench.reached / f"{point}.{nth}").stat().st_mtime
    lost = "SELECT extract(epoch FROM min(ended_at))::float8 FROM mesh.attempts WHERE outcome = 'lost'"
    return float(bench.value(lost)) - died


@pytest.mark.parametrize(("kind", "point"), every())
def test_f02_a_prefork_child_killed_at_any_point_loses_at_most_its_own_call(
    make_bench: Any, kind: str, point: str
) -> None:
    bench: Bench = make_bench(kind)
    bench.env["AGENTMESH_LEASE_LEASE"] = "10s"  # the beat finds it, not the end of a lease
    agents = bench.worker("agents", wait=False)
    tools = bench.armed("tools", f"{point}=kill@{POINTS[point]}", pool="prefork", concurrency=2)
    bench.wait_for(agents)
    trace = bench.start("parallel")
    check(bench, trace, point)
    assert tools.running
    if point not in COMMITTED:
        assert bench.outcomes()["lost"] == 1
        assert noticed_s(bench, point, POINTS[point]) < 1.5  # 1 s is promised; a busy machine takes a little


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["redis", "amqp"])
@pytest.mark.parametrize("point", POINTS)
def test_f02_a_threads_worker_killed_at_any_point_loses_what_it_was_running(
    make_bench: Any, kind: str, point: str
) -> None:
    bench: Bench = make_bench(kind)
    agents = bench.worker("agents", wait=False)
    doomed = bench.armed("tools", f"{point}=kill@{POINTS[point]}", concurrency=2)
    bench.wait_for(agents)
    trace = bench.start("parallel")
    until(lambda: not doomed.running, what="the armed death")
    bench.worker("tools")
    check(bench, trace, point, extra=2)


@pytest.mark.parametrize(
    "point", [one if one == "call.after_effect" else pytest.param(one, marks=pytest.mark.faults) for one in POINTS]
)
def test_f02_a_child_whose_prefork_parent_is_killed_changes_nothing_any_more(make_bench: Any, point: str) -> None:
    bench: Bench = make_bench("redis")
    agents = bench.worker("agents", wait=False)
    doomed = bench.armed("tools", f"{point}=stop@{POINTS[point]}", pool="prefork", concurrency=1)
    bench.wait_for(agents)
    trace = bench.start("parallel")
    bench.until_reached(point, POINTS[point])
    doomed.signal(signal.SIGKILL)
    if point not in COMMITTED:
        until(lambda: bench.outcomes()["lost"] == 1, within=10, what="the lost attempt")
    with suppress(ProcessLookupError):
        os.killpg(doomed.pid, signal.SIGCONT)
    bench.worker("tools")
    check(bench, trace, point)
    assert bench.outcomes()["won"] == PARTS
    assert bench.outcomes()["lost"] + bench.outcomes()["stale"] == (point not in COMMITTED)


def test_f02_a_call_that_waits_for_its_answer_outlives_every_worker(make_bench: Any) -> None:
    bench: Bench = make_bench("embedded")
    workers = [bench.worker("agents", wait=False), bench.worker("tools", pool="threads", wait=False)]
    for worker in workers:
        bench.wait_for(worker)
    trace = bench.given({"tool": "asked"})
    waits = "SELECT id FROM mesh.calls WHERE status = 'running' AND worker_id IS NULL"
    [call] = until(lambda: bench.rows(waits), what="the wait")
    for worker in workers:
        worker.signal(signal.SIGKILL, tree=True)
    bench.mesh.answers.finish(call["id"], 7)
    bench.worker("agents")
    assert trace.result(timeout=30) == {"asked": 7}
    bench.settle()
    assert len(bench.runs("asked")) == 1
