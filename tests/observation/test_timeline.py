"""Reads: what belongs to whom, and in what order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from agentmesh.errors import Ambiguous, Mistake, UnknownTrace
from agentmesh.observation import timeline


def test_a_timeline_holds_steps_calls_and_attempts_in_order(lab: Any) -> None:
    trace = lab.start({"tools": ["work", "quick"]})
    lab.drain()
    seen = timeline.trace(lab.mesh.db, "default", trace.id)
    assert seen.ended
    assert [one["ordinal"] for one in seen.steps] == sorted(one["ordinal"] for one in seen.steps)
    assert [one["tool"] for one in seen.calls] == ["work", "quick"]
    assert all(one["outcome"] == "won" for one in seen.attempts)
    assert seen.trace["seconds"] > 0


def test_a_running_attempt_is_there_before_any_event_of_it(lab: Any) -> None:
    trace = lab.open("work")
    lab.claim(lab.calls(trace)[0])
    seen = timeline.trace(lab.mesh.db, "default", trace.id)
    running = [one for one in seen.attempts if one["call_id"]]
    assert [one["outcome"] for one in running] == [None]
    assert not seen.ended
    assert "TOOL_EXEC" not in [one["name"] for one in timeline.events(lab.mesh.db, "default", trace.id)]


def test_events_go_on_where_a_reader_left_off(lab: Any) -> None:
    trace = lab.start()
    lab.drain()
    everything = timeline.events(lab.mesh.db, "default", trace.id)
    assert [one["seq"] for one in everything] == list(range(1, len(everything) + 1))
    assert timeline.events(lab.mesh.db, "default", trace.id, after=3) == everything[3:]


READS: list[Callable[[Any, UUID], Any]] = [
    lambda db, one: timeline.trace(db, "other", one),
    lambda db, one: timeline.resolve(db, "other", str(one)),
    lambda db, _: timeline.resolve(db, "other", "@last"),
]


@pytest.mark.parametrize("read", READS)
def test_another_tenant_s_trace_is_as_if_it_were_not_there(lab: Any, read: Callable[[Any, UUID], Any]) -> None:
    trace = lab.start()
    with pytest.raises(UnknownTrace):
        read(lab.mesh.db, trace.id)
    assert timeline.traces(lab.mesh.db, "other") == []
    assert timeline.events(lab.mesh.db, "other", trace.id) == []


def test_last_is_the_newest_that_no_other_trace_made(lab: Any) -> None:
    older, newer = lab.start(), lab.start()
    lab.rows("UPDATE mesh.traces SET parent_id = %(p)s WHERE id = %(id)s", p=older.id, id=newer.id)
    assert timeline.resolve(lab.mesh.db, "default", "@last") == older.id


def test_a_prefix_of_several_names_them(lab: Any) -> None:
    first, second = lab.start(), lab.start()
    with pytest.raises(Ambiguous) as refused:
        timeline.resolve(lab.mesh.db, "default", str(first.id)[:3])
    assert str(first.id) in refused.value.expected
    assert str(second.id) in refused.value.expected


def test_sql_in_a_filter_is_only_text(lab: Any) -> None:
    lab.start()
    where = timeline.parse_filter("agent:x';DROP--")
    assert timeline.traces(lab.mesh.db, "default", where=where) == []
    for odd in ("status", "status:", "id:1", "t.id:1"):
        with pytest.raises(Mistake):
            timeline.parse_filter(odd)
