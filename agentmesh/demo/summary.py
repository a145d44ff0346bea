"""What a run came to: counts over its filed cases and traces, and the terminal's closing table.

Values in, values out; the page for the browser is report's. Ages and customers are derived from row
numbers (see data), the rest was computed by the agents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from agentmesh.records import Json


@dataclass(frozen=True, slots=True)
class Timing:
    """What the caller measured of the run; `seconds` from the first dispatch to the last end.

    `durations_s` has one entry a finished trace of the complaint agent.
    """

    intents: int
    done: int
    failed: int
    seconds: float
    durations_s: Sequence[float] = ()
    survived: int = 0
    """Tool failures after which a fallback went on."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures. `agreed` of `labelled` cases got the category of their label."""

    cases: tuple[Mapping[str, Json], ...]
    timing: Timing
    labelled: int
    agreed: int
    doubles: int
    by_category: Mapping[str, int] = field(default_factory=dict)
    by_urgency: Mapping[str, int] = field(default_factory=dict)
    by_age: Mapping[str, int] = field(default_factory=dict)
    by_method: Mapping[str, int] = field(default_factory=dict)

    @property
    def persons(self) -> list[Mapping[str, Json]]:
        """The cases that need a person, the most urgent and oldest first."""
        waiting = (case for case in self.cases if case["reason"])
        return sorted(waiting, key=lambda case: (URGENCY.index(case["urgency"]), -case["age_days"]))

    @property
    def agreement(self) -> float | None:
        """The share of labelled cases whose category is their label; None without labels."""
        return self.agreed / self.labelled if self.labelled else None


URGENCY = ("high", "medium", "low")
AGES = ((1, "today"), (3, "1-2 days"), (7, "3-6 days"), (10**9, "a week or more"))


def summarise(cases: Iterable[Mapping[str, Json]], labels: Mapping[str, str], timing: Timing) -> Summary:
    """The figures of a run. A case that was filed twice is counted once, and as a double."""
    filed = list(cases)
    once = {case["case"]: case for case in filed}
    kept = tuple(once[name] for name in sorted(once, key=_natural))
    known = [case for case in kept if case["case"] in labels]
    return Summary(
        cases=kept,
        timing=timing,
        labelled=len(known),
        agreed=sum(case["category"] == labels[case["case"]] for case in known),
        doubles=len(filed) - len(kept),
        by_category=_counted(case["category"] for case in kept),
        by_urgency=_in_order(URGENCY, (case["urgency"] for case in kept)),
        by_age=_in_order([name for _, name in AGES], (age_group(c["age_days"]) for c in kept)),
        by_method=_counted(case["method"] for case in kept),
    )


def age_group(days: int) -> str:
    """The name of the age group that `days` falls into."""
    return next(name for below, name in AGES if days < below)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all values do not exceed; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def figures(summary: Summary) -> list[tuple[str, str]]:
    """The closing table's rows: what, and how much."""
    timing = summary.timing
    rate = timing.done / timing.seconds if timing.seconds > 0 else 0.0
    rows = [
        ("intents", str(timing.intents)),
        ("done", str(timing.done)),
        ("failed", str(timing.failed)),
        ("per second", f"{rate:.1f}"),
        (
            "p50 / p95",
            " / ".join(_seconds(percentile(timing.durations_s, at)) for at in (0.5, 0.95)),
        ),
        ("tool failures survived by a fallback", str(timing.survived)),
        ("filed / filed twice", f"{len(summary.cases)} / {summary.doubles}"),
        ("need a person", str(len(summary.persons))),
    ]
    if summary.agreement is None:
        return [*rows, ("agreement with the labels", "no labels given")]
    return [
        *rows,
        (
            "agreement with the labels",
            f"{summary.agreement:.1%} ({summary.agreed} of {summary.labelled})",
        ),
    ]


def print_summary(summary: Summary, console: Console) -> None:
    """The closing table on `console`; on a pipe one tab-separated line a row."""
    if not console.is_terminal:
        for name, value in figures(summary):
            console.file.write(f"{name}\t{value}\n")  # rich would turn the tab into spaces
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in figures(summary):
        table.add_row(name, value)
    console.print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _in_order(names: Iterable[str], values: Iterable[str]) -> dict[str, int]:
    counted = Counter(values)
    return {name: counted[name] for name in names}


def _natural(case: str) -> tuple[str, int, str]:
    head, _, tail = case.rpartition("-")
    return (head, int(tail), "") if tail.isascii() and tail.isdigit() else (case, 0, case)
