"""A conversation over one context whose worker is killed again and again remembers what it would without a kill."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.testing import until
from tests.faults.bench import Bench
from tests.meshes import Process

POINTS = (
    "receive.after_claim", "prepare.after_context", "reason.before", "reason.after_answer", "reason.after_commit",
    "callback.before", "callback.after_handler", "finish.before_commit", "finish.after_commit", "memory.in_commit",
)  # fmt: skip
EMBEDDED = """
SELECT count(*) AS entries, count(v.vector) AS vectors FROM (SELECT DISTINCT ON (key) id FROM mesh.memory WHERE type = 'long_term'
  ORDER BY key, version DESC) m LEFT JOIN mesh.vectors v ON v.memory_id = m.id
"""
ENDED = {"done", "failed", "cancelled"}
AGENT = """
agent: talker-{tag}
tools: []
tenants: [default]
policy: {{callbacks: [tally]}}
reasoner: {{python: "talk_parts:Talker"}}
reasoners: {{sums: {{python: "talk_parts:Sums"}}}}
session: {{strategy: summary, budget: 400, summary: {{reasoner: sums, after: 4, keep: 2}}}}
memory:
  strict: true
  embedder: letters
  tally: {{schema: {{type: object, required: [turns, sum]}}}}
  summary: {{}}
{topics}
"""
# A summary names its last turn by when that ended: that alone differs between two conversations.
REMEMBERED = """
SELECT type, key, version, said - 'through' AS value, origin, deleted FROM (
  SELECT *, CASE jsonb_typeof(value) WHEN 'object' THEN value ELSE jsonb_build_object('is', value) END AS said FROM mesh.memory) m
 WHERE context_id = %s ORDER BY type, key, version, said::text
"""


def talk(bench: Bench, context: str, turns: int, *faults: str) -> list[Any]:
    """The answers of a conversation in which each turn follows the one before; a worker that dies is followed by one that
    will die of the next fault, the last by one that lives."""
    left, answers = list(faults), []

    def living() -> Process:
        if not bench.processes or not bench.processes[-1].running:
            bench.armed("agents", left.pop(0), concurrency=1) if left else bench.worker("agents", concurrency=1)
        return bench.processes[-1]

    living()
    for n in range(turns):
        trace = bench.dispatch("talker", {"n": n}, context_id=context)
        while trace.status() not in ENDED:
            worker = living()
            until(lambda: trace.status() in ENDED or not worker.running, within=60, what=f"turn {n}")  # noqa: B023
        answers.append(trace.result(timeout=1))
    assert left == []
    return answers


def talkers(make_bench: Any) -> Bench:
    bench: Bench = make_bench("embedded")
    topics = "\n".join(f"  topic-{n}: {{schema: {{type: array, items: {{type: integer}}}}}}" for n in range(7))
    (bench.home / "agents" / "talker.yaml").write_text(AGENT.format(tag=bench.tag, topics=topics))
    bench.agents = {**bench.agents, "talker": AGENT}
    bench.env["AGENTMESH_TOOLS_IMPORTS"] = "fault_parts,talk_parts"
    return bench


@pytest.mark.parametrize(
    ("turns", "faults"),
    [
        pytest.param(6, ["memory.in_commit=kill@4"], id="6 turns, 1 kill"),
        pytest.param(
            50,
            [f"{one}=kill@5" for one in POINTS],
            id="50 turns, 10 kills",
            marks=[pytest.mark.faults, pytest.mark.timeout(300)],
        ),
    ],
)
def test_a_conversation_that_is_killed_on_the_way_ends_with_the_same_memory(
    make_bench: Any, turns: int, faults: list[str]
) -> None:
    bench = talkers(make_bench)
    stormy = talk(bench, "stormy", turns, *faults)
    calm = talk(bench, "calm", turns)
    assert stormy == calm
    assert bench.rows(REMEMBERED, "stormy") == bench.rows(REMEMBERED, "calm")
    last = bench.mesh.memory("stormy").retrieve("tally")
    assert last["turns"] == turns
    assert calm[-1]["saw"][-1] == turns - 2
    bench.settle()


def test_what_a_killed_worker_was_embedding_gets_its_vectors_from_the_next(make_bench: Any) -> None:
    bench = talkers(make_bench)
    for n, point in enumerate(("index.after_take", "index.before_fill")):
        worker = bench.armed("agents", f"{point}=kill@1", concurrency=1)
        bench.dispatch("talker", {"n": n}, context_id="c")
        until(lambda worker=worker: not worker.running, within=60, what=point)
    bench.rows("UPDATE mesh.vectors SET wake_at = mesh.mesh_now() WHERE vector IS NULL RETURNING 1")  # not in a minute
    bench.worker("agents", concurrency=1)
    until(lambda: bench.rows(EMBEDDED) == [{"entries": 3, "vectors": 3}], within=60, what="all vectors")
    bench.settle()
