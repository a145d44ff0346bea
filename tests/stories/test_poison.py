"""What takes its process with it: it runs alone, its worker and its neighbours go on, and a person finds it parked."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.testing import until

pytestmark = pytest.mark.story


@pytest.mark.parametrize("kind", ["amqp", "embedded"])
def test_f16_a_tool_that_aborts_is_parked_and_its_neighbours_finish(make_story: Any, kind: str) -> None:
    story = make_story(kind)
    agents, tools = story.workers(("agents", "threads"), ("tools", "prefork"))
    poison = story.tool("abort", "never")
    good = [story.dispatch("runner", {"tools": [{"tool": "rate", "args": {"text": "fine"}}]}) for _ in range(20)]
    for trace in good:
        trace.result(timeout=30)
    until(lambda: poison.status() == "failed", within=60, what="the end of the poison")
    [letter] = story.rows("SELECT code, fingerprint, evidence FROM mesh.dead_letters")
    assert (letter["code"], letter["fingerprint"]) == ("E_POISON", "E_POISON:abort")
    runs = [one for one in story.ledger() if one["tool"] == "abort"]
    assert len({one["pid"] for one in runs}) == len(runs) == 4  # once beside others, three times alone
    assert len({one["key"] for one in runs}) == 1
    assert agents.running
    assert tools.running


def test_what_was_lost_by_bad_luck_finishes_alone(make_story: Any) -> None:
    story = make_story("embedded")
    story.workers(("agents", "threads"), ("tools", "prefork"))
    unlucky = story.tool("abort", "gate")
    until(lambda: [one for one in story.ledger() if one["tool"] == "abort"], what="the first run")
    story.open("gate")
    assert unlucky.result(timeout=30) == {"abort": "survived"}
    assert story.rows("SELECT 1 FROM mesh.dead_letters") == []
