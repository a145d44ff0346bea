"""What real deaths do: of children, workers, messages, producers and brokers. The work goes on, once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import kombu
import pytest

from agentmesh.testing import until

pytestmark = pytest.mark.story
HERE = Path(__file__).parent


def started(story: Any, tool: str, n: int = 1) -> list[dict[str, Any]]:
    """The runs of `tool`, once there are `n`."""
    return until(
        lambda: [one for one in story.ledger() if one["tool"] == tool][: n if len(story.ledger()) >= n else 0] or None,
        what=f"{n} runs of {tool}",
    )


def outcomes(story: Any) -> list[str]:
    rows = story.rows("SELECT outcome FROM mesh.attempts WHERE kind = 'tool' ORDER BY call_id, n")
    return [row["outcome"] for row in rows]


@pytest.mark.parametrize("kind", ["amqp", "embedded"])
def test_f02_a_killed_prefork_child_is_noticed_within_a_second(make_story: Any, kind: str) -> None:
    story = make_story(kind)
    story.env["AGENTMESH_LEASE_LEASE"] = "10s"  # the beat finds it, not the end of a lease
    story.workers(("agents", "threads"), ("tools", "prefork"))
    trace = story.tool("slow", "never")
    first = started(story, "slow")[0]
    os.kill(first["pid"], signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: "lost" in outcomes(story), within=5, what="the lost attempt")
    noticed_s = time.monotonic() - killed
    assert trace.result(timeout=20) == {"slow": "attempt 2"}
    assert noticed_s < 1.5  # 1 s is promised; the test's own looking takes a little
    runs = started(story, "slow", 2)
    assert [one["attempt"] for one in runs] == [1, 2]
    assert runs[0]["key"] == runs[1]["key"]
    assert outcomes(story) == ["lost", "won"]


@pytest.mark.parametrize("kind", ["redis", "embedded"])
def test_a_killed_tool_worker_loses_its_call_to_another(make_story: Any, kind: str) -> None:
    story = make_story(kind)
    _, doomed = story.workers(("agents", "threads"), ("tools", "prefork"))
    trace = story.tool("slow", "never")
    started(story, "slow")
    story.worker("tools")
    doomed.kill()
    assert trace.result(timeout=20) == {"slow": "attempt 2"}
    assert outcomes(story) == ["lost", "won"]
    assert "EXEC_RESCUE" in story.events(trace.id)


def test_a_once_tool_that_was_killed_is_not_run_again(make_story: Any) -> None:
    story = make_story("amqp")
    story.workers(("agents", "threads"), ("tools", "prefork"))
    trace = story.tool("once", "never")
    os.kill(started(story, "once")[0]["pid"], signal.SIGKILL)
    story.quiet()
    assert trace.status() in {"done", "failed"}
    assert story.value("SELECT error->>'code' FROM mesh.calls") == "E_OUTCOME_UNKNOWN"
    assert len(story.ledger()) == 1


def test_an_agent_worker_killed_after_it_claimed_loses_the_trace_to_another(make_story: Any) -> None:
    story = make_story("redis")
    doomed = story.worker("agents", AGENTMESH_TEST_FAULTS="reason.after_answer=kill")
    trace = story.dispatch("runner", {"n": 1})
    until(lambda: not doomed.running, what="the armed death")
    story.worker("agents")
    assert trace.result(timeout=20) == {"n": 1}
    assert Counter(story.events(trace.id))["EXEC_RESCUE"] == 1


def test_f05_a_purged_queue_is_rung_again(make_story: Any) -> None:
    story = make_story("amqp")
    story.worker("agents").kill()  # it has announced its agents; nobody consumes while the queue is purged
    traces = [story.dispatch("runner", {"n": n}) for n in range(3)]
    with kombu.Connection(story.broker_url) as connection:
        assert connection.default_channel.queue_purge(f"agent.runner-{story.tag}") == 3
    story.worker("agents")
    assert [trace.result(timeout=20) for trace in traces] == [{"n": n} for n in range(3)]


@pytest.mark.parametrize("kind", ["amqp", "embedded"])
def test_f03_a_producer_killed_after_its_commit_has_its_intent_run(make_story: Any, kind: str) -> None:
    story = make_story(kind)
    story.worker("agents")
    intent = {
        "intent": "work", "from_id": "story", "to_id": story.agent("runner"), "context_id": "c", "payload": {"n": 5},
    }  # fmt: skip
    producer = story.run([str(HERE / "run_producer.py"), json.dumps(intent)], "producer",
                         AGENTMESH_TEST_FAULTS="dispatch.after_commit=kill")  # fmt: skip
    assert producer.wait() == -signal.SIGKILL
    until(story.statuses, within=2, what="the accepted row")
    story.quiet(within=5)
    assert story.statuses() == {("runner", "done"): 1}
    assert "01" not in producer.text()  # it died before it could say the id


def test_f04_a_producer_killed_before_its_commit_leaves_nothing(make_story: Any) -> None:
    story = make_story("amqp")
    story.worker("agents")
    intent = {"intent": "work", "from_id": "story", "to_id": story.agent("runner"), "context_id": "c", "payload": {}}
    producer = story.run([str(HERE / "run_producer.py"), json.dumps(intent)], "producer",
                         AGENTMESH_TEST_FAULTS="dispatch.before_commit=kill")  # fmt: skip
    assert producer.wait() == -signal.SIGKILL
    assert story.value("SELECT count(*) FROM mesh.traces") == 0


def test_an_intent_is_accepted_while_the_broker_is_down(make_story: Any, own_redis: Any) -> None:
    broker = own_redis()
    story = make_story("redis", broker_url=broker.url)
    story.workers(("agents", "threads"), ("tools", "threads"))
    assert story.dispatch("runner", {"n": 0}).result(timeout=20) == {"n": 0}
    broker.stop()
    before = time.monotonic()
    traces = [story.dispatch("runner", {"tools": [{"tool": "rate", "args": {"text": "!"}}]}) for _ in range(3)]
    assert time.monotonic() - before < 5
    assert {trace.status() for trace in traces} == {"queued"}
    broker.start()
    assert [trace.result(timeout=30) for trace in traces] == [{"rate": "urgent"}] * 3
    assert Counter(outcomes(story)) == {"won": 3}


def test_sigterm_lets_running_tools_finish(make_story: Any) -> None:
    story = make_story("amqp")
    _, tools = story.workers(("agents", "threads"), ("tools", "threads"))
    trace = story.tool("slow", "gate")
    started(story, "slow")
    tools.signal(signal.SIGTERM)
    with kombu.Connection(story.broker_url) as connection:
        passive = {"queue": f"tools.{story.tag}", "passive": True}
        channel = connection.default_channel
        until(lambda: channel.queue_declare(**passive).consumer_count == 0, within=5, what="no more consuming")
    assert tools.running
    story.open("gate")
    assert tools.wait() == 0
    assert trace.result(timeout=10) == {"slow": "attempt 1"}
    assert outcomes(story) == ["won"]
    assert story.value("SELECT state FROM mesh.workers WHERE pid = %s", tools.pid) == "gone"


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_that_has_drained_long_enough_leaves_its_call_to_another(make_story: Any, pool: str) -> None:
    story = make_story("amqp")
    _, tools = story.workers(("agents", "threads"), ("tools", pool), AGENTMESH_WORKER_DRAIN="200ms")
    trace = story.tool("slow", "never")
    started(story, "slow")
    story.worker("tools")
    tools.signal(signal.SIGTERM)
    assert tools.wait(within=10) == 0
    assert trace.result(timeout=10) == {"slow": "attempt 2"}
    assert outcomes(story) == ["released", "won"]  # handed back: no loss, and no suspect


def test_a_second_sigterm_leaves_at_once(make_story: Any) -> None:
    story = make_story("embedded")
    _, tools = story.workers(("agents", "threads"), ("tools", "threads"))
    story.tool("slow", "never")
    started(story, "slow")
    tools.signal(signal.SIGTERM)
    until(lambda: "Warm shutdown" in tools.text(), within=20, what="the first one heard")
    tools.signal(signal.SIGTERM)
    assert tools.wait(within=20) == 0  # draining would take it 30 s
    story.worker("tools")
    story.quiet()


@pytest.mark.parametrize("kind", ["redis", "embedded"])
def test_f12_a_worker_frozen_beyond_its_lease_loses_and_registers_anew(make_story: Any, kind: str) -> None:
    story = make_story(kind)
    _, frozen = story.workers(("agents", "threads"), ("tools", "threads"))
    trace = story.tool("slow", "gate")
    started(story, "slow")
    frozen.signal(signal.SIGSTOP, tree=True)
    until(lambda: outcomes(story) == ["lost"], within=10, what="the lost attempt")
    story.worker("tools")
    assert trace.result(timeout=20) == {"slow": "attempt 2"}
    story.open("gate")
    frozen.signal(signal.SIGCONT, tree=True)
    until(lambda: outcomes(story) == ["stale", "won"], within=10, what="the zombie's stale answer")
    states = "SELECT state FROM mesh.workers WHERE pid = %s ORDER BY id"
    until(
        lambda: [row["state"] for row in story.rows(states, frozen.pid)] == ["dead", "alive"], what="a new registration"
    )
    assert story.value("SELECT result FROM mesh.traces") == {"slow": "attempt 2"}
