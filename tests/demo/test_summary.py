"""The figures of a run are counted from what was filed, and doubles show."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from agentmesh.demo.summary import (
    Timing,
    age_group,
    figures,
    percentile,
    print_summary,
    summarise,
)


def case(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "run": "r", "case": name, "text": "Where is it?", "customer": 3, "age_days": 1,
        "category": "card_arrival", "confidence": 0.8, "method": "vote", "rounds": 1,
        "area": "cards", "urgency": "low", "overdue": False, "action": "Send it.", "reason": None,
        "similar": [1], "open_cases": 0,
    } | changes  # fmt: skip


TIMING = Timing(intents=3, done=3, failed=0, seconds=1.5, durations_s=(0.1, 0.2, 3.0), survived=4)


def test_a_case_filed_twice_counts_once_and_shows_as_a_double() -> None:
    summary = summarise([case("test-1"), case("test-1"), case("test-2")], {}, TIMING)
    assert (len(summary.cases), summary.doubles) == (2, 1)
    assert dict(figures(summary))["filed / filed twice"] == "2 / 1"


def test_agreement_counts_labelled_cases_only() -> None:
    labels = {"test-1": "card_arrival", "test-2": "age_limit", "test-9": "age_limit"}
    summary = summarise([case("test-1"), case("test-2"), case("input-1")], labels, TIMING)
    assert (summary.labelled, summary.agreed, summary.agreement) == (2, 1, 0.5)
    assert dict(figures(summary))["agreement with the labels"] == "50.0% (1 of 2)"


def test_without_labels_there_is_no_agreement() -> None:
    summary = summarise([case("input-1")], {}, TIMING)
    assert summary.agreement is None
    assert dict(figures(summary))["agreement with the labels"] == "no labels given"


def test_those_that_need_a_person_come_the_most_urgent_and_oldest_first() -> None:
    cases = [
        case("test-1", reason="r", urgency="low", age_days=9),
        case("test-2", reason="r", urgency="high", age_days=1),
        case("test-3", reason="r", urgency="high", age_days=5),
        case("test-4"),
    ]
    assert [one["case"] for one in summarise(cases, {}, TIMING).persons] == [
        "test-3",
        "test-2",
        "test-1",
    ]


def test_every_urgency_and_age_has_a_row_even_when_empty() -> None:
    summary = summarise([], {}, TIMING)
    assert summary.by_urgency == {"high": 0, "medium": 0, "low": 0}
    assert set(summary.by_age.values()) == {0}
    assert [age_group(days) for days in (0, 1, 2, 3, 6, 7, 400)] == [
        "today", "1-2 days", "1-2 days", "3-6 days", "3-6 days", "a week or more", "a week or more",
    ]  # fmt: skip


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.95)) == (50.0, 95.0)
    assert percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) is None


def test_a_pipe_gets_tabs_and_a_terminal_a_table() -> None:
    summary = summarise([case("test-1")], {}, TIMING)
    pipe, screen = io.StringIO(), io.StringIO()
    print_summary(summary, Console(file=pipe))
    print_summary(summary, Console(file=screen, force_terminal=True, width=80))
    assert "per second\t2.0\n" in pipe.getvalue()
    assert "p50 / p95\t200 ms / 3.0 s\n" in pipe.getvalue()
    assert "\t" not in screen.getvalue()
    assert "tool failures survived by a fallback" in screen.getvalue()


def test_a_run_that_took_no_time_has_no_rate() -> None:
    timing = Timing(intents=0, done=0, failed=0, seconds=0.0)
    assert dict(figures(summarise([], {}, timing)))["per second"] == "0.0"
