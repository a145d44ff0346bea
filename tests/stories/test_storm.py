"""200 intents while workers are killed: none lost, none recorded twice, every trace ended once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from agentmesh.demo import agents as demo_agents
from agentmesh.demo import data, tables
from agentmesh.testing import until

pytestmark = pytest.mark.story
N = 200
KINDS = [("agents", "threads"), ("agents", "threads"), ("tools", "prefork"), ("tools", "threads")]
WITHIN_S = 90


def work_while_killing(story: Any, intents: list[dict[str, Any]]) -> None:
    """Dispatch, and kill one agent worker and one tool worker at a fifth and at a half of the way; each is replaced."""
    workers = story.workers(*KINDS)
    agents, tools = workers[:2], workers[2:]
    traces = story.mesh.router.dispatch_many(intents)
    assert len({trace.id for trace in traces}) == N
    done = "SELECT count(*) FROM mesh.traces WHERE parent_id IS NULL AND status IN ('done', 'failed')"
    for part in (N // 5, N // 2):
        until(lambda part=part: story.value(done) >= part, within=WITHIN_S, what=f"{part} of {N}")
        for some, kind in ((agents, "agents"), (tools, "tools")):
            some.pop(0).kill()
            some.append(story.worker(kind, wait=False))
    assert story.value(done) < N, "the workers were killed too late to matter"
    story.quiet(within=WITHIN_S)


def ends(story: Any) -> Counter[int]:
    """How many traces have how many ends."""
    rows = story.rows(
        "SELECT count(*) FILTER (WHERE e.name IN ('EXEC_DONE', 'EXEC_FAIL', 'EXEC_CANCEL')) AS n FROM mesh.traces t"
        " JOIN mesh.events e ON e.trace_id = t.id GROUP BY t.id"
    )
    return Counter(row["n"] for row in rows)


def check(story: Any, parents: str, children: str, filed: Callable[[], list[Any]]) -> None:
    assert story.statuses() == {(parents, "done"): N, (children, "done"): N}
    assert ends(story) == {1: 2 * N}
    assert story.value("SELECT count(*) FROM mesh.traces WHERE parent_id IS NOT NULL") == N
    written = filed()
    assert (len(written), len(set(written))) == (N, N)
    lost = story.value("SELECT count(*) FROM mesh.attempts WHERE outcome = 'lost'")
    assert lost > 0, "nothing was lost with the workers: the kills hit nobody"


def test_intents_survive_killed_workers_over_a_broker(make_story: Any) -> None:
    story = make_story("amqp")
    intents = [
        {"intent": "work", "from_id": "story", "to_id": story.agent("analyst"), "context_id": f"customer-{n}",
         "payload": {"customer": n, "text": "my card!"}}
        for n in range(N)
    ]  # fmt: skip
    work_while_killing(story, intents)
    check(story, "analyst", "archivist", lambda: [row["trace_id"] for row in story.rows("SELECT trace_id FROM filed")])
    keys = Counter(line["key"] for line in story.ledger() if line["tool"] == "vote")
    assert len(keys) == 2 * N
    kept = story.rows("SELECT context_id, version FROM mesh.memory WHERE key = 'case'")
    assert sorted(row["version"] for row in kept) == [1] * N


def test_the_demo_survives_killed_workers_on_the_embedded_parts(make_story: Any) -> None:
    story = make_story("embedded")
    story.env |= {"AGENTMESH_AGENTS_PATHS": str(demo_agents.HOME), "AGENTMESH_TOOLS_IMPORTS": demo_agents.TOOLS}
    with psycopg.connect(story.database_url) as connection:
        tables.prepare(connection)
    started = time.monotonic()
    work_while_killing(story, data.intents(data.load_test_messages(N), run="storm"))
    bodies = "SELECT body->>'case' AS case FROM demo.filed_cases WHERE run = 'storm'"
    check(story, "complaint_analysis_agent", "report_agent", lambda: [row["case"] for row in story.rows(bodies)])
    assert time.monotonic() - started < WITHIN_S
