"""A plan as a picture: boxes and the ways between them, as text for a terminal and as Mermaid. Pure; SVG is in svg.py.

Every way that a trace can take is drawn, also those of failures. Child plans are pictures of their own, below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from agentmesh.execution import plan as plans
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.infrastructure.logging import escape
from agentmesh.records import Json

Shape = Literal["start", "step", "move", "end"]
WIDE = 72
MARKS = {"start": "▶", "step": "●", "move": "◇", "end": "■"}
CROSSED = {" ": "─", "│": "┼", "╰": "┴", "╭": "┬"}
PLAIN = str.maketrans("▶●◇■│╎├─┼┴┬╭╰▸↓→·…", ">*o#|:+-+++++>v>-~")
"""For terminals that know ASCII only."""

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
ENDS = {plans.END: "end", plans.FAIL: "failed", plans.COMPENSATE: "undo, then failed"}


@dataclass(frozen=True, slots=True)
class Box:
    """One node, the start, or an end. `name` is its id, `text` what it does."""

    name: str
    shape: Shape
    text: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """From one box to another; `broken`: only after a failure. `label` says when it is taken ("": always)."""

    start: int
    end: int
    label: str = ""
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A plan's boxes in the order of its nodes: the start first, the ends last."""

    title: str
    boxes: tuple[Box, ...]
    ways: tuple[Way, ...]
    below: tuple[Picture, ...] = field(default=())

    def all(self) -> Iterator[Picture]:
        yield self
        for one in self.below:
            yield from one.all()


def picture(plan: BehaviorPlan, title: str | None = None) -> Picture:
    """What a plan looks like."""
    leaving = [(one.id, *way) for one in plan.nodes for way in _ways(plan, one)]
    firsts = [one.id for one in plan.nodes if not one.needs] if plan.branches else [plan.first.id]
    start = [("", one, "", False) for one in firsts]
    if plan.on_fail is not None and plan.on_fail != plans.NEXT:  # those ways are drawn anyway
        start.append(("", plan.on_fail, "when a step fails", True))
    ends = [name for name in ENDS if any(target == name for _, target, _, _ in (*start, *leaving))]
    boxes = [
        Box(plan.chain, "start"),
        *(Box(one.id, "move" if isinstance(one, plans.MOVES) else "step", _text(one)) for one in plan.nodes),
        *(Box(ENDS[name], "end") for name in ends),
    ]
    place = {"": 0} | {one.id: n for n, one in enumerate(plan.nodes, 1)}
    place |= {name: len(plan.nodes) + 1 + n for n, name in enumerate(ends)}
    ways = tuple(Way(place[a], place[b], _short(label), broken) for a, b, label, broken in (*start, *leaving))
    below = tuple(
        picture(one, f"{title or plan.chain} / {name}")
        for name, one in plan.chains.items()
        if isinstance(one, BehaviorPlan)
    )
    return Picture(title or plan.chain, tuple(boxes), ways, below)


def _ways(plan: BehaviorPlan, node: Any) -> Iterator[tuple[str, str, bool]]:
    """Where a node may lead: (target, when, only after a failure)."""
    following = node.next or plans.END
    needed_by = [one.id for one in plan.nodes if node.id in (one.needs or ())]
    on = "else"
    match node:
        case plans.Jump(then=then):
            yield _target(node, then), node.when or "", False
        case plans.Switch(cases=cases):
            yield from ((_target(node, one.then), one.when, False) for one in cases)
        case plans.Finish() | plans.Give():
            yield plans.FAIL if isinstance(node, plans.Give) else plans.END, node.when or "", False
        case _:
            on = ""
    if needed_by:
        yield from ((name, "", False) for name in needed_by)
    elif not (isinstance(node, plans.Jump | plans.Finish | plans.Give) and node.when is None):
        yield from ((target, on or label, False) for target, label in _onward(plan, node, following))
    for label, target in (("on failure", node.on_fail), ("on time-out", node.on_timeout)):
        if target is not None:
            yield _target(node, target), label, True


def _onward(plan: BehaviorPlan, node: Any, following: str) -> Iterator[tuple[str, str]]:
    """Where a node goes on to, and when: a reasoner's tools stand between it and what follows its answer."""
    place = plan.node(following) if following != plans.END else None
    if isinstance(node, plans.Reason) and isinstance(place, plans.Tools) and place.slots is None:
        yield following, "tools"
        yield (plans.END if node.otherwise == "finish" else place.next or plans.END), "an answer"
    elif node.otherwise == "next" or following == plans.END:
        yield following, ""
    else:
        yield following, "as its callback says"
        yield plans.END, "else"


def _target(node: Any, target: str) -> str:
    return node.next or plans.END if target == plans.NEXT else target


def _text(node: Any) -> str:
    said = _does(node)
    if node.when is not None and not isinstance(node, plans.Jump | plans.Finish | plans.Give):
        said += f" · when {node.when}"
    return _short(said)


def _does(node: Any) -> str:  # noqa: PLR0911, PLR0912 - one a kind
    match node:
        case plans.Reason():
            return f"reasoner {node.reasoner}" if node.reasoner else "the agent's reasoner"
        case plans.Tools(slots=None):
            return "the tools it chose"
        case plans.Tools():
            return f"{node.strategy}: {_tools(node)}{_require(node)}"
        case plans.ForEach():
            return f"{node.use.tool} for each of {node.items}, {node.limit} at once{_require(node)}"
        case plans.Assign():
            return ", ".join(f"{name} = {_value(one)}" for name, one in node.values.items())
        case plans.Jump() | plans.Switch():
            return f"at most {node.limit} times"
        case plans.Wait():
            return f"wait {_pause(node)}"
        case plans.Signal():
            return f"signal {node.signal}{_within(node)}"
        case plans.Approval():
            who = f" of {', '.join(node.who)}" if node.who else ""
            return f"approval{who}: {' / '.join(node.options)}{_within(node)}"
        case plans.Delegate():
            to = ", ".join(_whom(one) for one in node.errands)
            to += f" for each of {node.each}" if node.each is not None else ""
            return to + (_terms(node) if node.wait else ", nobody waits")
        case plans.Finish():
            return "" if node.result is None else _value(node.result)
        case plans.Give():
            return f"{node.code} {_value(node.message)}"
        case _:
            return str(node.kind)


def _tools(node: plans.Tools) -> str:
    between = {"serial": " → ", "parallel": ", "}.get(node.strategy, " or ")
    return ", ".join(between.join(use.label for use in slot) for slot in node.slots or ())


def _require(node: Any) -> str:
    return "" if node.require == "all" else f" · require {node.require}"


def _whom(errand: plans.Errand) -> str:
    if errand.capability is None:
        return f"agent {errand.agent}" if errand.agent else f"chain {errand.chain}"
    return f"{errand.count or 'any'} offering {errand.capability}"


def _terms(node: plans.Delegate) -> str:
    if node.vote is not None:
        said = f" · vote {node.vote}" + (f", quorum {node.quorum}" if node.quorum else "")
    else:
        said = _require(node) if node.accept is None else f" · the first with {node.accept}"
    return said + _within(node)


def _within(node: Any) -> str:
    return "" if node.within_s is None else f" within {_span(node.within_s)}"


def _pause(node: plans.Wait) -> str:
    if isinstance(node.seconds, int | float):
        return _span(node.seconds)
    if node.seconds is not None:
        return f"{_value(node.seconds)} s"
    return f"until {_value(node.until)}" if node.until is not None else f"for {node.cron} {node.timezone}"


def _span(seconds: float) -> str:
    """ "2 d", "90 s"."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds % size == 0), (1, "s"))
    return f"{seconds / size:g} {unit}"


def _value(value: Json) -> str:
    """JSON in one line, its expressions as they are written."""
    if isinstance(value, dict) and set(value) == {"="}:
        return str(value["="])
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    text = escape(text)
    return text if len(text) <= WIDE else text[: WIDE - 1] + "…"


# --- a terminal


def text(drawn: Picture) -> str:
    """One line a box, one line a way that does not lead to the next box, and rails between those lines at the left."""
    return "\n\n".join(_lines(one, titled=n > 0) for n, one in enumerate(drawn.all())) + "\n"


def _lines(drawn: Picture, *, titled: bool) -> str:
    rows: list[str] = []
    at: dict[int, int] = {}
    rails: list[tuple[int, int]] = []
    width = max(len(one.name) for one in drawn.boxes[1:])
    for number, box in enumerate(drawn.boxes):
        at[number] = len(rows)
        rows.append(
            f"{MARKS[box.shape]} {drawn.title if titled and not number else box.name:<{width}}  {box.text}".rstrip()
        )
        for way in (one for one in drawn.ways if one.start == number):
            if way.end == number + 1 and not way.label:
                continue
            if way.end == number + 1:
                rows.append(f"│   {way.label} ↓")
            else:
                rails.append((len(rows), way.end))
                rows.append(f"{'╎' if way.broken else '├'}─  {way.label}".rstrip(" ─") if way.label else "├─")
    return "\n".join(
        left + row for left, row in zip(_rails([(a, at[b]) for a, b in rails], len(rows)), rows, strict=True)
    )


def _rails(spans: list[tuple[int, int]], height: int) -> list[str]:
    """What stands left of each row: a line from row a to row b for each span, in columns that none share."""
    columns: list[list[tuple[int, int]]] = []
    for a, b in sorted(spans, key=lambda span: (abs(span[0] - span[1]), span)):
        low, high = min(a, b), max(a, b)
        free = next((c for c in columns if all(high < min(one) or low > max(one) for one in c)), None)
        if free is None:
            columns.append(free := [])
        free.append((a, b))
    width = 2 * len(columns) + 1
    grid = [[" "] * width for _ in range(height)]
    for column, ends in enumerate(columns):
        for a, b in ends:
            _rail(grid, width - 3 - 2 * column, a, b)
    return ["".join(row) for row in grid]


def _rail(grid: list[list[str]], x: int, a: int, b: int) -> None:
    """Draw a line in column x from row a to an arrow at row b."""
    low, high = min(a, b), max(a, b)
    for y in range(low + 1, high):
        grid[y][x] = "│"
    for y, corner in ((low, "╭"), (high, "╰")):
        grid[y][x:] = [corner, *(CROSSED.get(one, one) for one in grid[y][x + 1 :])]
    grid[b][-1] = "▸"


# --- Mermaid


def mermaid(drawn: Picture) -> str:
    """A Mermaid flowchart; child plans are subgraphs."""
    lines = ["flowchart TD"]
    for number, one in enumerate(drawn.all()):
        inner = number > 0
        if inner:
            lines.append(f'  subgraph p{number}["{_entities(one.title)}"]')
        lines += [f"  {'  ' * inner}{line}" for line in _flow(one, f"p{number}n")]
        if inner:
            lines.append("  end")
    return "\n".join(lines) + "\n"


def _flow(drawn: Picture, prefix: str) -> Iterator[str]:
    brackets = {"start": ("([", "])"), "step": ("[", "]"), "move": ("{{", "}}"), "end": ("([", "])")}
    for number, box in enumerate(drawn.boxes):
        left, right = brackets[box.shape]
        said = _entities(box.name) + (f"<br/>{_entities(box.text)}" if box.text else "")
        yield f'{prefix}{number}{left}"{said}"{right}'
    for way in drawn.ways:
        arrow = "-.->" if way.broken else "-->"
        label = f'|"{_entities(way.label)}"|' if way.label else ""
        yield f"{prefix}{way.start} {arrow}{label} {prefix}{way.end}"


def _entities(value: str) -> str:
    """Text as Mermaid takes it between quotes: nothing in it is markup."""
    return "".join(one if one.isalnum() or one in " .,:/_-+=()" else f"#{ord(one)};" for one in value)
