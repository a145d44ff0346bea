"""Retention: what is over is forgotten, what a running trace may go back to is not, and no batch is endless."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.execution.callbacks import HANDLERS, register_callback
from agentmesh.execution.tools import register_tool
from agentmesh.state import forgetting
from agentmesh.testing import broken

DAY = 86_400
MEMORY = {"keep": "30d", "kept": {"keep": "360d"}, "note": {}}


@pytest.fixture
def lab(make_lab: Any, tools: Any) -> Any:
    before = dict(HANDLERS)

    @register_tool("work", registry=tools)
    def work() -> int:
        return 1

    @register_callback("learn")
    def learn(result: Any, session: Any) -> Any:
        return {"memory": session.payload.get("learn", [])}

    yield make_lab(memory=MEMORY, policy={"callbacks": ["learn"]})
    HANDLERS.clear()
    HANDLERS.update(before)


def talk(lab: Any, *values: Any, key: str = "note") -> Any:
    for value in values:
        trace = lab.start({"answer": 1}, payload={"learn": [{"key": key, "value": value}]})
        lab.drain()
    return trace


def forget(lab: Any, batch: int = 100) -> int:
    before = count(lab)
    for one in forgetting.due(lab.mesh.db, batch=batch):
        forgetting.forget(lab.mesh.db, one, batch=batch)
    assert "I8" not in broken(lab.url)
    return before - count(lab)


def count(lab: Any) -> int:
    return int(lab.rows("SELECT count(*) AS n FROM mesh.memory")[0]["n"])


def left(lab: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in lab.rows("SELECT key, version FROM mesh.memory WHERE type = 'long_term' ORDER BY key, version"):
        found.setdefault(row["key"], []).append(row["version"])
    return found


def test_nothing_is_forgotten_before_its_time(lab: Any) -> None:
    talk(lab, "a", "b")
    lab.shift(29 * DAY)
    assert forget(lab) == 0


def test_a_closed_context_forgets_everything_whose_time_is_over(lab: Any) -> None:
    talk(lab, "a", "b")
    talk(lab, "for long", key="kept")
    lab.shift(31 * DAY)
    assert forget(lab) == 2 + 3  # and what three steps came to
    assert left(lab) == {"kept": [1]}
    talk(lab, "c")
    assert left(lab) == {"kept": [1], "note": [1]}


def test_while_a_trace_is_open_the_newest_version_stays_and_older_ones_go(lab: Any) -> None:
    talk(lab, "a", "b", "c")
    lab.shift(31 * DAY)
    lab.open("work")
    forget(lab)
    assert left(lab) == {"note": [3]}


def test_what_a_running_trace_may_go_back_to_stays(lab: Any) -> None:
    talk(lab, "a", "b")
    trace = lab.open("work", payload={"learn": [{"key": "note", "value": "mine"}]})
    lab.bells.waiting.clear()
    talk(lab, "theirs", "theirs, too")
    lab.shift(31 * DAY)
    forget(lab)
    assert left(lab) == {"note": [2, 3, 4]}  # from how it was when the first step of the trace began
    lab.rows("UPDATE mesh.steps SET mem_seq = 3 WHERE trace_id = %(id)s AND ordinal = 1", id=trace.id)
    lab.shift(32 * DAY)
    forget(lab)
    assert left(lab) == {"note": [2, 3, 4]}  # no: its second step is older
    lab.rows("UPDATE mesh.steps SET mem_seq = 3 WHERE trace_id = %(id)s", id=trace.id)
    lab.shift(33 * DAY)
    forget(lab)
    assert left(lab) == {"note": [3, 4]}


def test_what_is_still_needed_does_not_stand_in_the_way_of_the_rest(lab: Any) -> None:
    talk(lab, "a")
    lab.open("work")
    lab.bells.waiting.clear()
    lab.start({"answer": 1}, context_id="c-2", payload={"learn": [{"key": "note", "value": "b"}]})
    lab.drain()
    lab.shift(31 * DAY)
    for _ in range(5):
        forget(lab, batch=1)
    assert lab.rows("SELECT 1 FROM mesh.memory WHERE context_id = 'c-2'") == []
    assert left(lab) == {"note": [1]}


def test_a_batch_is_bounded_and_leaves_no_hole(lab: Any) -> None:
    talk(lab, "a", "b", "c")
    lab.shift(31 * DAY)
    assert [forget(lab, batch=2) for _ in range(4)] == [2, 2, 2, 0]


def test_an_older_version_that_is_kept_longer_keeps_the_later_ones(lab: Any) -> None:
    talk(lab, "a", "b")
    lab.rows("UPDATE mesh.memory SET forget_at = NULL WHERE key = 'note' AND version = 1")
    lab.shift(31 * DAY)
    forget(lab)
    assert left(lab) == {"note": [1, 2]}
    assert forgetting.due(lab.mesh.db, batch=1) == []


def test_what_is_written_by_hand_or_copied_by_a_fork_is_kept_no_longer(lab: Any) -> None:
    trace = talk(lab, "a")
    lab.mesh.registry.announce(lab.mesh.db)
    lab.mesh.memory("c-1").store("note", "by hand")
    lab.mesh.forks.fork(trace.id, 1, changes={}, plan_hash=None, by="ann")
    assert lab.rows("SELECT 1 FROM mesh.memory WHERE forget_at IS NULL AND type = 'long_term'") == []
