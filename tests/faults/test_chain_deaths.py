"""A chain of all kinds at once, whose agent worker is killed at every boundary of a step and inside every node."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agentmesh.testing import until
from tests.faults.bench import HERE, Bench

POINTS = (
    "receive.after_claim", "prepare.after_context", "reason.before", "reason.after_answer", "reason.after_commit",
    "tools.before_commit", "tools.after_commit", "tools.after_ring", "next.after_commit", "call.before_effect",
    "call.after_effect", "ask.before_commit", "ask.after_commit", "callback.before", "callback.after_handler",
    "callback.after_commit", "finish.before_commit", "finish.after_commit",
)  # fmt: skip
QUICK = {"tools.before_commit": 1, "ask.after_commit": 1, "finish.after_commit": 2}
"""Deaths in the quick set."""
FEWEST = {"reason.after_commit": 1, "ask.before_commit": 1, "ask.after_commit": 1}
"""Deaths where the chain comes by a point less than three times."""
EXPECTED = {
    "n": 5, "turns": 2, "sum": 9, "kept": 2,
    "children": [{"one": {"n": 4}, "twin": {"n": 4}}, 37, {"n": 8}, {"left": 7, "right": "right"}],
}  # fmt: skip
CALLS = {"part": 4, "filed": 5, "model": 3, "here": 3, "book": 2, "unbook": 2}
CHILDREN = 8
AGENT = """
agent: chain-{tag}
chain: all_kinds
tools: [ask_child, part, filed, model, here, book, unbook]
grants: ["data:read"]
tenants: [default]
reasoners: {{planner: {{python: "chain_parts:Planner"}}}}
"""
ASKED = """
tool: ask_child
arguments: {n: {type: integer}}
agent: {to: child-%s}
"""
INNER = """
chain: inner
steps:
  - tools: [{tool: part, args: {n: {"=": payload.n}}}]
  - finish: {"=": result + 1}
"""


def all_kinds(bench: Bench) -> None:
    """The bench's workers host the agent that follows the chain."""
    (bench.home / "agents" / "chain.yaml").write_text(AGENT.format(tag=bench.tag))
    (bench.home / "asking").mkdir()
    (bench.home / "asking" / "asked.yaml").write_text(ASKED % bench.tag)
    (bench.home / "chains").mkdir()
    (bench.home / "chains" / "inner.yaml").write_text(INNER)
    chain = (HERE / "all_kinds.yaml").read_text().replace("{tag}", bench.tag)
    (bench.home / "chains" / "all_kinds.yaml").write_text(chain)
    bench.env |= {"AGENTMESH_AGENTS_CHAINS": str(bench.home / "chains"), "AGENTMESH_TOOLS_IMPORTS": "chain_parts",
                  "AGENTMESH_TOOLS_PATHS": str(bench.home / "asking")}  # fmt: skip


def accompany(bench: Bench, trace: Any) -> bool:
    """Somebody answers what is asked; True when the trace has ended."""
    for asked in bench.mesh.people.asked():
        bench.mesh.people.decide(asked["trace_id"], by="ann")
    return trace.status() in {"done", "failed", "cancelled"}


def every() -> list[Any]:
    quick = [pytest.param(point, deaths) for point, deaths in QUICK.items()]
    return quick + [pytest.param(point, 100, marks=pytest.mark.faults) for point in POINTS]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("point", "deaths"), every())
def test_a_chain_of_all_kinds_ends_as_ever_wherever_its_worker_is_killed(
    make_bench: Any, point: str, deaths: int
) -> None:
    bench: Bench = make_bench("embedded")
    all_kinds(bench)
    bench.worker("tools", pool="threads", wait=False)
    bench.run([str(HERE / "run_phoenix.py"), point, str(deaths)], "phoenix")
    until(lambda: bench.rows("SELECT 1 FROM mesh.agents WHERE id = %s", bench.agent("chain")), what="the agent")
    bench.kills = deaths
    trace = bench.dispatch("chain", {"n": 5})
    bench.mesh.people.signal(trace.id, "go", by="ann", key="once")
    until(lambda: accompany(bench, trace), within=800, what="the end")
    assert trace.result(0) == EXPECTED
    bench.settle()
    died = bench.value("SELECT count(*) FROM mesh.workers WHERE state = 'dead'")
    assert died >= min(deaths, FEWEST.get(point, 3))
    assert bench.value("SELECT count(*) FROM mesh.traces WHERE parent_id IS NOT NULL") == CHILDREN
    runs = Counter((one.name, one.idem_key) for one in bench.runs())
    assert Counter(name for name, _ in runs) == CALLS
    assert {key: n for key, n in runs.items() if n > 1 and key[0] != "here"} == {}


CONTEST = """
chain: contest
steps:
  - delegate: [slow-{tag}, {to: child-{tag}, payload: {n: 9}, as: dear}, {to: child-{tag}, payload: {n: 3}, as: cheap}]
    id: bids
    accept: result.n < 5
  - delegate: [{to: child-{tag}, as: one}, {to: child-{tag}, as: two}, slow-{tag}]
    id: poll
    payload: {n: {"=": result.answer.n}}
    vote: result.n
    quorum: 2
  - finish: {"=": "[steps.bids, steps.poll.answer, steps.poll.votes]"}
"""
CONTEST_POINTS = ("pay.before", "drop.after_cancel", "callback.before", "callback.after_commit", "finish.after_commit")


def contest(bench: Bench) -> None:
    """The bench's workers host an agent that lets others compete, and one that never comes to an end."""
    agents, chains = bench.home / "agents", bench.home / "chains"
    chains.mkdir()
    for name, chain in (("contest", "contest"), ("slow", "think")):
        (agents / f"{name}.yaml").write_text(f"agent: {name}-{bench.tag}\nchain: {chain}\ntenants: [default]\n")
    (chains / "contest.yaml").write_text(CONTEST.replace("{tag}", bench.tag))
    (chains / "think.yaml").write_text("chain: think\nsteps: [{wait: 1h}]\n")
    bench.env |= {"AGENTMESH_AGENTS_CHAINS": str(chains)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("point", "deaths"), [
    ("drop.after_cancel", 1), *(pytest.param(point, 20, marks=pytest.mark.faults) for point in CONTEST_POINTS),
])  # fmt: skip
def test_the_same_win_and_every_loser_is_cancelled_wherever_a_worker_is_killed(
    make_bench: Any, point: str, deaths: int
) -> None:
    bench: Bench = make_bench("embedded")
    contest(bench)
    bench.run([str(HERE / "run_phoenix.py"), point, str(deaths)], "phoenix")
    until(lambda: bench.rows("SELECT 1 FROM mesh.agents WHERE id = %s", bench.agent("contest")), what="the agent")
    trace = bench.dispatch("contest", {})
    assert trace.result(400) == [{"winner": "cheap", "answer": {"n": 3}}, 3, 2]
    bench.settle(within=400)
    ended = bench.statuses()
    assert (ended["slow", "cancelled"], ended["child", "done"] + ended["child", "cancelled"]) == (2, 4)
    assert ended["child", "done"] >= 3  # the dear one may have been too late
    assert bench.value("SELECT count(*) FROM mesh.workers WHERE state = 'dead'") >= 1
    assert bench.value("SELECT count(*) FROM mesh.calls WHERE cancel_owed") == 0
