"""F21: old and new workers side by side: what a release has not got, or cannot read, waits for one that has, by name."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.cli.doctor import examine
from agentmesh.testing import until
from tests.faults.bench import PARTS, Bench

NEW = {"FAULTS_WITHOUT": "abort"}  # both releases know all but a tool of their own
OLD = {"FAULTS_WITHOUT": "part"}


def findings(bench: Bench, name: str) -> list[str]:
    return [one.says for one in examine(bench.mesh, deep=False) if one.name == name and not one.ok]


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["redis", "amqp"])
def test_f21_a_tool_that_half_of_the_workers_have_runs_there_and_only_there(make_bench: Any, kind: str) -> None:
    bench: Bench = make_bench(kind)
    agents, old, new = (
        bench.worker("agents", wait=False, **NEW), bench.worker("tools", wait=False, **OLD),
        bench.worker("tools", wait=False, **NEW),
    )  # fmt: skip
    for one in (agents, old, new):
        bench.wait_for(one)
    traces = bench.wf(12)
    bench.settle()
    assert {trace.status() for _, _, trace in traces} == {"done"}
    assert {run.pid for run in bench.runs("part")} == {new.pid}
    assert "not known here, left to others: 'tool.part'" in old.text()
    assert set(bench.outcomes()) <= {"won", "failed"}  # the model of the fallback shape is never there


@pytest.mark.faults
def test_f21_a_tool_that_no_worker_has_is_waited_for_by_name_until_one_comes(make_bench: Any) -> None:
    bench: Bench = make_bench("redis")
    bench.workers(("agents", "threads"))
    bench.worker("tools", **OLD)
    trace = bench.start("parallel", 1)
    said = f"part: no live worker, {PARTS} calls wait for one"
    until(lambda: said in findings(bench, "tools"), within=20, what="the tool that is missing, named")
    assert trace.status() == "running"
    bench.worker("tools", **NEW)
    trace.result(timeout=30)
    bench.settle()
    assert bench.outcomes() == {"won": PARTS}


@pytest.mark.faults
def test_f21_a_tool_that_no_worker_has_had_for_long_fails_by_name_and_its_slot_goes_on(make_bench: Any) -> None:
    bench: Bench = make_bench("redis")
    bench.env["AGENTMESH_LIMITS_NO_WORKER_AFTER"] = "3s"
    bench.worker("agents")
    bench.worker("tools", FAULTS_WITHOUT="part")
    tools = [{"tool": "part", "args": {"n": 3}}, {"tool": "filed", "args": {"n": 4}}]
    assert bench.given(*tools, strategy="fallback").result(timeout=40) == 4
    bench.settle()
    assert bench.value("SELECT error->>'code' FROM mesh.calls WHERE tool = 'part'") == "E_NO_WORKER"
    assert bench.runs("part") == []


@pytest.mark.faults
def test_f21_an_inline_tool_that_its_agents_next_worker_lacks_waits_for_one_that_has_it(make_bench: Any) -> None:
    bench: Bench = make_bench("redis")
    doomed = bench.armed("agents", "call.before_effect=kill@1")
    trace = bench.given({"tool": "here", "args": {"n": 1}})
    until(lambda: not doomed.running, what="the armed death")
    bench.worker("agents", FAULTS_WITHOUT="here")
    until(lambda: bench.outcomes()["lost"] == 1, what="the lost attempt")
    rings = "SELECT rings FROM mesh.calls WHERE tool = 'here' AND status = 'ready'"
    until(lambda: bench.value(rings), within=20, what="a second ring, after the first was heard in vain")
    assert bench.outcomes() == {"lost": 1}
    bench.worker("agents")
    assert trace.result(timeout=30) == {"here": 2}
    bench.settle()
    assert bench.outcomes() == {"lost": 1, "won": 1}


def test_f21_a_plan_that_a_release_cannot_read_is_left_to_one_that_can(make_bench: Any) -> None:
    bench: Bench = make_bench("redis")
    old = bench.worker("agents")
    bench.worker("tools")
    trace = bench.given({"tool": "gated", "args": {"gate": "gate"}})
    bench.until_ran("gated")
    of_another = "UPDATE mesh.plans SET body = body || '{\"of_another_release\": 1}'"
    bench.rows(of_another + " RETURNING hash")
    old.signal(15)  # a worker remembers the plans that it has read
    assert old.wait() == 0
    old = bench.worker("agents")
    bench.open("gate")
    until(lambda: "a plan of another release; left to others" in old.text(), within=20, what="a word of the plan")
    held = "SELECT status, worker_id FROM mesh.traces WHERE id = %s"
    until(lambda: bench.rows(held, trace.id) == [{"status": "running", "worker_id": None}], what="the trace let go")
    bench.rows("UPDATE mesh.plans SET body = body - 'of_another_release' RETURNING hash")
    bench.worker("agents")  # a release that reads it
    assert trace.result(timeout=30) == {"gated": 0}
    bench.settle()
    assert bench.outcomes() == {"won": 1}
    assert len([one for one in bench.ledger() if one.kind == "reason"]) == 1


@pytest.mark.faults
def test_f21_an_agent_that_no_worker_hosts_any_more_is_waited_for_by_name(make_bench: Any) -> None:
    bench: Bench = make_bench("redis")
    file = bench.home / "agents" / "child.yaml"
    both = file.read_text()
    old = bench.worker("agents")
    bench.worker("tools")
    file.write_text(both.replace("agent: child-", "agent: renamed-"))
    old.signal(15)
    assert old.wait() == 0
    bench.worker("agents")
    parent = bench.start("delegate", 7)
    said = f"{bench.agent('child')}: no live worker, 1 queued"
    until(lambda: said in findings(bench, "agents"), within=20, what="the agent that is missing, named")
    file.write_text(both)  # rolled back
    bench.worker("agents")
    parent.result(timeout=30)
    bench.settle()
    assert set(bench.statuses()) == {("worker", "done"), ("child", "done")}
