"""The page a team lead reads: one self-contained HTML file, no script, nothing from elsewhere.

Every value goes through `html.escape`: what customers wrote is data, never markup. Readable at
390 px, in light and dark, printed, and without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from agentmesh.demo.summary import Summary, age_group, figures
from agentmesh.records import Json

SHOWN_CATEGORIES = 15
SHOWN_TEXT_CHARS = 400
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

DERIVED = (
    "Customers' numbers and the age of each message are not in the data: both are derived from the "
    "row's number, so that there is something to sort by. Urgency and “overdue” follow "
    "from the category's policy and that derived age; the policies are invented for this demo."
)
NOTICE = (
    "Messages and labels: BANKING77 (Casanueva et al. 2020, PolyAI-LDN/task-specific-datasets), CC BY 4.0, unchanged."
)


def render_html(summary: Summary, *, title: str = "Complaints", own_data: bool = False) -> str:
    """The whole page. `own_data`: the messages are the user's, only the past cases BANKING77's."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title><style>{_style()}</style></head><body><main>",
        f"<h1>{escape(title)}</h1>",
        _lead(summary),
        _section("Totals", _pairs(figures(summary))),
        _section("By urgency", _bars(summary.by_urgency)),
        _section("By age", _bars(summary.by_age)),
        _section("By category", _bars(_largest(summary.by_category))),
        _section("Urgency and age", _grid(summary)),
        _section(f"These need a person ({len(summary.persons)})", _cases(summary.persons)),
        _section("Where this comes from", _sources(summary, own_data=own_data)),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _lead(summary: Summary) -> str:
    persons = len(summary.persons)
    late = sum(bool(case["overdue"]) for case in summary.cases)
    urgent = sum(case["urgency"] == "high" for case in summary.persons)
    return (
        f"<p class=lead><strong>{persons}</strong> of {len(summary.cases)} cases need a person, "
        f"<strong>{urgent}</strong> of them at once; <strong>{late}</strong> are overdue.</p>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
    return f"<dl class=totals>{''.join(cells)}</dl>"


def _bars(counts: Mapping[str, int]) -> str:
    most = max([*counts.values(), 1])
    rows = (
        f'<tr><th scope=row>{escape(_words(name))}</th><td class=bar><span style="width:'
        f'{100 * count / most:.1f}%"></span></td><td class=count>{count}</td></tr>'
        for name, count in counts.items()
    )
    return f"<table class=bars><tbody>{''.join(rows)}</tbody></table>"


def _largest(counts: Mapping[str, int]) -> dict[str, int]:
    shown = dict(list(counts.items())[:SHOWN_CATEGORIES])
    rest = len(counts) - len(shown)
    if rest > 0:
        shown[f"{rest} other categories"] = sum(counts.values()) - sum(shown.values())
    return shown


def _grid(summary: Summary) -> str:
    ages = list(summary.by_age)
    counted: dict[tuple[str, str], int] = {}
    for case in summary.cases:
        place = case["urgency"], age_group(case["age_days"])
        counted[place] = counted.get(place, 0) + 1
    head = "".join(f"<th scope=col>{escape(age)}</th>" for age in ages)
    rows = "".join(
        f"<tr><th scope=row>{escape(urgency)}</th>"
        + "".join(f"<td class=count>{counted.get((urgency, age), 0)}</td>" for age in ages)
        + "</tr>"
        for urgency in summary.by_urgency
    )
    return f"<table class=grid><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cases(cases: Iterable[Mapping[str, Json]]) -> str:
    shown = "".join(_case(case) for case in cases)
    return f"<ol class=cases>{shown}</ol>" if shown else "<p>None: every case was solved.</p>"


def _case(case: Mapping[str, Json]) -> str:
    text = str(case["text"])
    cut = text if len(text) <= SHOWN_TEXT_CHARS else text[:SHOWN_TEXT_CHARS] + "…"
    late = " · <strong>overdue</strong>" if case["overdue"] else ""
    opened = int(case["open_cases"])
    others = f" · {opened} open case{'s' * (opened != 1)}" if opened else ""
    return (
        f'<li class="{escape(str(case["urgency"]))}"><p class=what><strong>'
        f"{escape(_words(str(case['category'])))}</strong> · {escape(str(case['urgency']))} urgency"
        f"{late}</p><blockquote>{escape(cut)}</blockquote>"
        f"<p>{escape(_sentence(str(case['reason'])))} {escape(str(case['action']))}</p>"
        f"<p class=small>case {escape(str(case['case']))} · customer {int(case['customer'])}"
        f"{others} · {int(case['age_days'])} days old · {float(case['confidence']):.0%} sure, by "
        f"{escape(str(case['method']))} in round {int(case['rounds'])}</p></li>"
    )


def _sources(summary: Summary, *, own_data: bool) -> str:
    methods = ", ".join(f"{name} {count}" for name, count in summary.by_method.items()) or "none"
    notice = f"The past cases are BANKING77's. {NOTICE}" if own_data else NOTICE
    said = [DERIVED, notice, f"Classified by: {methods}."]
    return "".join(f"<p>{escape(one)}</p>" for one in said)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _style() -> str:
    return files("agentmesh.demo").joinpath("report.css").read_text(encoding="utf-8")
