"""F01 between two transactions: a worker is killed when one is committed and the other has not begun, or nothing has rung.

A timer has fired, a place was given, a child trace has ended and its parent has not been told.
"""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.testing import until
from tests.faults.bench import Bench

FAULTY = pytest.mark.faults
CHAIN = "agent: {name}-{tag}\nchain: {chain}\ngrants: ['data:read']\ntenants: [default]\n"
CHAINS = {
    "timed": "- wait: 0.3s\n  - finish: over",
    "escalated": "- approval: shall it go on?\n    within: 0.3s\n    on_timeout: late\n  - fail: not reached\n"
    "  - finish: over\n    id: late",
    "parental": "- delegate: child-{tag}\n    payload: {{n: 7}}\n  - finish: over",
    "racing": "- parallel:\n      slow: [{{delegate: timed-{tag}, payload: {{n: 1}}}}]\n      quick: [{{wait: 0.1s}}]\n"
    "    require: any\n  - finish: over",
}
LIMITED = """
agent: limited-{tag}
tenants: [default]
limits: {{key: payload.n, concurrency: 1}}
reasoner: {{python: "fault_parts:Child"}}
"""


def bench_of(make_bench: Any) -> Bench:
    bench: Bench = make_bench("embedded")
    (bench.home / "chains").mkdir()
    for name, steps in CHAINS.items():
        text = f"chain: {name}\nsteps:\n  {steps.format(tag=bench.tag)}\n"
        (bench.home / "chains" / f"{name}.yaml").write_text(text)
        (bench.home / "agents" / f"{name}.yaml").write_text(CHAIN.format(name=name, chain=name, tag=bench.tag))
    (bench.home / "agents" / "limited.yaml").write_text(LIMITED.format(tag=bench.tag))
    bench.env["AGENTMESH_AGENTS_CHAINS"] = str(bench.home / "chains")
    return bench


@pytest.mark.parametrize(("chain", "point"), [
    ("timed", "timer.after_fire"), pytest.param("escalated", "timer.after_fire", marks=FAULTY),
    ("parental", "finish.after_commit"), pytest.param("racing", "finish.after_commit", marks=FAULTY),
    pytest.param("racing", "timer.after_fire", marks=FAULTY),
])  # fmt: skip
def test_f01_a_worker_killed_between_two_transactions_of_a_chain_leaves_a_trace_that_ends(
    make_bench: Any, chain: str, point: str
) -> None:
    bench = bench_of(make_bench)
    doomed = bench.armed("agents", f"{point}=kill@1")
    trace = bench.dispatch(chain, {"n": 1})
    until(lambda: not doomed.running, what="the armed death")
    bench.worker("agents")
    assert trace.result(timeout=30) == "over"
    bench.settle()
    names = bench.events(trace.id)
    assert names.count("EXEC_DONE") == 1
    assert bench.value("SELECT count(*) FROM mesh.traces WHERE parent_owed") == 0


@FAULTY
def test_f01_a_worker_killed_when_a_schedule_has_fired_leaves_one_trace_that_ends(make_bench: Any) -> None:
    bench = bench_of(make_bench)
    yearly = {"cron": "0 0 1 1 *", "timezone": "UTC", "missed": "once", "priority": 5, "intent": "work"}
    bench.mesh.timetable.add("default", "yearly", agent=bench.agent("child"), payload={"n": 1}, by="bench", **yearly)
    bench.rows("UPDATE mesh.schedules SET next_at = mesh.mesh_now() - interval '1 s' RETURNING id")
    doomed = bench.armed("agents", "timer.after_fire=kill@1", wait=False)
    until(lambda: not doomed.running, within=30, what="the armed death")
    bench.worker("agents")
    bench.settle()
    assert bench.statuses() == {("child", "done"): 1}


def test_f01_a_worker_killed_when_it_has_given_a_place_leaves_a_trace_that_begins(make_bench: Any) -> None:
    bench = bench_of(make_bench)
    bench.worker("agents").kill()  # announced: what is dispatched now waits
    made = [bench.dispatch("limited", {"n": 1}) for _ in range(3)]
    assert sorted(one.status() for one in made) == ["held", "held", "queued"]
    doomed = bench.armed("agents", "admission.after_commit=kill@1", wait=False)
    until(lambda: not doomed.running, within=30, what="the armed death")
    bench.worker("agents")
    assert [one.result(timeout=30) for one in made] == [{"n": 1}] * 3
    bench.settle()


@pytest.mark.parametrize("point", [
    "rescue.after_select", pytest.param("rescue.after_update", marks=FAULTY),
])  # fmt: skip
def test_f01_a_rescuer_killed_at_its_work_leaves_it_to_the_next(make_bench: Any, point: str) -> None:
    bench = bench_of(make_bench)
    first = bench.armed("agents", "reason.before=kill@1")
    trace = bench.start("serial", 3)
    until(lambda: not first.running, what="the first death")
    second = bench.armed("agents", f"{point}=kill@1", wait=False)
    third = bench.armed("tools", f"{point}=kill@1", wait=False)
    until(lambda: not (second.running and third.running), within=30, what="the death of a rescuer")
    bench.worker("agents")
    bench.worker("tools")
    assert trace.result(timeout=40) == 3
    bench.settle()
