"""Steering what a filter matches: a look first, a yes, then each by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Cli = Callable[..., Any]


def statuses(lab: Any) -> list[str]:
    return [row["status"] for row in lab.rows("SELECT status FROM mesh.traces ORDER BY id")]


def test_all_that_match_are_shown_first_and_steered_then(mesh_cli: Cli, lab: Any) -> None:
    traces = [lab.start(context_id="c-7") for _ in range(7)]
    lab.start(context_id="c-8")
    ran = mesh_cli("pause", "--filter", "context:c-7", "--yes")
    assert ran.code == 0
    assert "7 of 7 traces, such as" in ran.err
    assert sum(str(one.id) in ran.err for one in traces) == 5
    assert "7 paused, 0 too late, 0 refused" in ran.err
    paused = lab.rows("SELECT context_id FROM mesh.traces WHERE paused_at IS NOT NULL")
    assert [row["context_id"] for row in paused] == ["c-7"] * 7
    again = mesh_cli("pause", "--filter", "context:c-7", "--yes", "--json")
    assert (again.json["matched"], again.json["changed"]) == (0, 0)
    assert mesh_cli("resume", "--filter", "agent:puppet", "--yes", "--json").json["changed"] == 7


def test_off_a_terminal_nothing_is_done_without_yes(mesh_cli: Cli, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.start()
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    ran = mesh_cli("cancel", "--filter", "agent:puppet", "--json")
    assert (ran.code, ran.problem["expected"]) == (4, "--yes")
    assert statuses(lab) == ["queued"]


def test_no_more_than_the_limit_are_steered_the_newest_first(
    mesh_cli: Cli, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.cli.many.BATCH", 2)
    for _ in range(6):
        lab.start()
    assert mesh_cli("cancel", "--filter", "status:queued", "--limit", 5, "--yes", "--json").json["changed"] == 5
    assert statuses(lab) == ["queued"] + ["cancelled"] * 5


def test_an_interrupt_leaves_the_rest_for_the_same_command(
    mesh_cli: Cli, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentmesh.state import steering

    for _ in range(4):
        lab.start()
    real, seen = steering.cancel, []

    def impatient(*args: Any, **keys: Any) -> Any:
        seen.append(keys["trace_id"])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(steering, "cancel", impatient)
        ran = mesh_cli("cancel", "--filter", "agent:puppet", "--yes")
    assert ran.code == 130
    assert "interrupted: 2 of 4 cancelled" in ran.err
    assert mesh_cli("cancel", "--filter", "agent:puppet", "--yes", "--json").json["changed"] == 2
    assert statuses(lab) == ["cancelled"] * 4


def test_one_that_is_refused_stops_no_other_and_is_told(mesh_cli: Cli, lab: Any) -> None:
    traces = [lab.start({"tools": ["boom"]}) for _ in range(2)]
    lab.drain()
    lab.rows("UPDATE mesh.calls SET effect = 'once' WHERE trace_id = %(id)s", id=traces[0].id)
    lab.rows("UPDATE mesh.steps SET status = 'failed' WHERE trace_id = %(id)s AND kind = 'tools'", id=traces[0].id)
    ran = mesh_cli("retry", "--filter", "status:failed", "--yes", "--json")
    assert (ran.code, ran.json["changed"], ran.json["refused"]) == (1, 1, 1)
    lab.rows("UPDATE mesh.calls SET effect = 'repeatable' WHERE trace_id = %(id)s", id=traces[0].id)
    lab.drain()


@pytest.mark.parametrize("given", [(), ("@last", "--filter", "agent:x")])
def test_one_trace_or_a_filter_is_named(mesh_cli: Cli, lab: Any, given: tuple[str, ...]) -> None:
    ran = mesh_cli("pause", *given, "--json")
    assert (ran.code, ran.problem["what"]) == (2, "which trace?")


def test_a_filter_of_nothing_is_refused(mesh_cli: Cli, lab: Any) -> None:
    assert mesh_cli("cancel", "--filter", " ", "--yes", "--json").problem["what"] == "the filter matches everything"
