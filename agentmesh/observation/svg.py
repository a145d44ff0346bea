"""A picture of a plan as SVG, laid out here: layers from the top, ways down between them, ways back along the right.

Ways that pass a layer have a place in it, so that none runs behind a box; those that lead to one box share it. Pure; no
browser, no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from agentmesh.observation.drawing import Picture, Way

CHAR, SMALL = 7.9, 6.7  # the width of a character of a name, and of what stands below it
HIGH, GAP, BETWEEN, LANE, MARGIN, TITLE = 42.0, 58.0, 26.0, 14.0, 24.0, 34.0
SWEEPS = 8
STYLE = """
text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#1c2733;text-anchor:middle}
.small{font-size:11px;fill:#52606d}.label{font-size:11px;fill:#1f4e79}.under{fill:#fff;opacity:.85}
.title{font-weight:bold;text-anchor:start}path{fill:none;stroke:#52606d;stroke-width:1.3}
.broken{stroke-dasharray:4 3;stroke:#b3432b}
.step{fill:#e8f1fa;stroke:#3a6ea5}.move{fill:#fdf4dc;stroke:#b58a1b}.start,.end{fill:#eceff1;stroke:#607d8b}
""".strip().replace("\n", "")


@dataclass(slots=True)
class _Spot:
    """A place in a layer: of a box, or of a way that passes (then `box` is None)."""

    layer: int
    wide: float
    box: int | None = None
    x: float = 0.0
    above: list[_Spot] = field(default_factory=list)
    below: list[_Spot] = field(default_factory=list)

    @property
    def top(self) -> float:
        return self.layer * (HIGH + GAP)


def svg(drawn: Picture) -> str:
    """One SVG document; child plans stand below, each under its title."""
    parts, y, wide = [], MARGIN, 0.0
    for number, one in enumerate(drawn.all()):
        if number:
            parts.append(f'<text class="title" x="{MARGIN:g}" y="{y + 14:g}">{escape(one.title)}</text>')
            y += TITLE
        body, width, height = _drawn(one)
        parts.append(f'<g transform="translate({MARGIN:g} {y:g})">{body}</g>')
        y, wide = y + height + MARGIN, max(wide, width)
    size = f'width="{wide + 2 * MARGIN:.0f}" height="{y:.0f}" viewBox="0 0 {wide + 2 * MARGIN:.0f} {y:.0f}"'
    marker = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" style="fill:#52606d;stroke:none"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}><title>{escape(drawn.title)}</title>'
        f'<style>{STYLE}</style>{marker}<rect width="100%" height="100%" fill="#fff"/>' + "\n".join(parts) + "</svg>\n"
    )


def _drawn(drawn: Picture) -> tuple[str, float, float]:
    """Its elements, and how wide and high they are."""
    spots, passing = _layered(drawn)
    layers = _ordered(spots, passing)
    _place(layers)
    left = min(one.x - one.wide / 2 for layer in layers for one in layer)
    for layer in layers:
        for one in layer:
            one.x -= left
    right = max(one.x + one.wide / 2 for layer in layers for one in layer)
    back = sorted((way for way in drawn.ways if way.end <= way.start), key=lambda way: (way.start - way.end, way.start))
    lines = [_down(way, spots_of) for way, spots_of in passing.items()]
    lines += [_back(way, spots, right + LANE * (n + 1)) for n, way in enumerate(back)]
    boxes = [_box(drawn, one) for one in spots]
    named = max((len(way.label) for way in back), default=0) * SMALL
    width = right + (LANE * (len(back) + 1) + named if back else 0)
    return "".join((*lines, *boxes)), width, len(layers) * (HIGH + GAP) - GAP / 2


# --- where everything is


def _layered(drawn: Picture) -> tuple[list[_Spot], dict[Way, list[_Spot]]]:
    """Each box below all that lead down to it; and the spots of each way down, to its end or to where it meets another."""
    down = [way for way in dict.fromkeys(drawn.ways) if way.end > way.start]
    layer = [0] * len(drawn.boxes)
    for number in range(1, len(layer)):
        layer[number] = 1 + max((layer[way.start] for way in down if way.end == number), default=0)
    spots = [
        _Spot(layer[n], 24 + max(CHAR * len(one.name), SMALL * len(one.text)), n) for n, one in enumerate(drawn.boxes)
    ]
    passing: dict[Way, list[_Spot]] = {}
    shared: dict[tuple[int, bool, int], _Spot] = {}
    for way in sorted(down, key=lambda way: layer[way.start]):
        at, drawn_before = spots[way.start], False
        passing[way] = [at]
        for between in range(layer[way.start] + 1, layer[way.end]):
            key = (way.end, way.broken, between)
            drawn_before = key in shared
            lower = shared.setdefault(key, _Spot(between, BETWEEN))
            passing[way].append(lower)
            _join(at, lower)
            at = lower
            if drawn_before:
                break
        if not drawn_before:
            passing[way].append(spots[way.end])
            _join(at, spots[way.end])
    return spots, passing


def _join(upper: _Spot, lower: _Spot) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def _ordered(spots: Sequence[_Spot], passing: dict[Way, list[_Spot]]) -> list[list[_Spot]]:
    """The layers, their spots in an order with few crossings: each near the middle of those it is joined to."""
    between = (one for row in passing.values() for one in row if one.box is None)
    layers: list[list[_Spot]] = [[] for _ in range(1 + max(one.layer for one in spots))]
    for one in {id(one): one for one in (*spots, *between)}.values():
        layers[one.layer].append(one)
    for sweep in range(SWEEPS):
        at = {id(one): n for layer in layers for n, one in enumerate(layer)}
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            side = [one.above if sweep % 2 == 0 else one.below for one in layer]
            mean = {
                id(one): sum(at[id(two)] for two in near) / len(near) if near else at[id(one)]
                for one, near in zip(layer, side, strict=True)
            }
            layer.sort(key=lambda one: mean[id(one)])
            at |= {id(one): n for n, one in enumerate(layer)}
    return layers


def _place(layers: list[list[_Spot]]) -> None:
    """Each spot below the middle of what it is joined to, as far as its neighbours leave room."""
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = []
            for one in layer:
                near = one.above if sweep % 2 == 0 else one.below
                wanted.append(sum(two.x for two in near) / len(near) if near else one.x)
            _spread(layer, wanted)


def _spread(layer: list[_Spot], wanted: list[float]) -> None:
    """As near to where they want to be as their order and their widths allow: the mean of pushing right and left."""
    apart = [(a.wide + b.wide) / 2 + BETWEEN for a, b in pairwise(layer)]
    right, left = list(wanted), list(wanted)
    for n, gap in enumerate(apart):
        right[n + 1] = max(right[n + 1], right[n] + gap)
    for n, gap in reversed(list(enumerate(apart))):
        left[n] = min(left[n], left[n + 1] - gap)
    for one, a, b in zip(layer, right, left, strict=True):
        one.x = (a + b) / 2


# --- what is drawn


def _box(drawn: Picture, spot: _Spot) -> str:
    box = drawn.boxes[spot.box or 0]
    round_ = {"step": 4, "move": 14}.get(box.shape, HIGH / 2)
    rect = (
        f'<rect class="{box.shape}" x="{spot.x - spot.wide / 2:.1f}" y="{spot.top:.1f}"'
        f' width="{spot.wide:.1f}" height="{HIGH:g}" rx="{round_:g}"/>'
    )
    middle = spot.top + HIGH / 2
    if not box.text:
        return rect + _said("name", box.name, spot.x, middle + 4)
    return rect + _said("name", box.name, spot.x, middle - 3) + _said("small", box.text, spot.x, middle + 13)


def _said(kind: str, said: str, x: float, y: float) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(said)}</text>'


def _down(way: Way, spots: Sequence[_Spot]) -> str:
    """From the bottom of a box to the top of another, through the places kept free for it."""
    first = spots[0]
    d = f"M{first.x:.1f} {first.top + HIGH:.1f}"
    for upper, lower in pairwise(spots):
        a, b = upper.top + HIGH, lower.top
        if upper.box is None:
            d += f"V{a:.1f}"
        d += f"C{upper.x:.1f} {a + GAP / 2:.1f} {lower.x:.1f} {b - GAP / 2:.1f} {lower.x:.1f} {b:.1f}"
    second = spots[1]
    where = (first.x + 2 * second.x) / 3, second.top - GAP / 3 + 4
    return _path(way, d, tip=spots[-1].box is not None) + (_label(way.label, *where) if way.label else "")


def _back(way: Way, spots: Sequence[_Spot], lane: float) -> str:
    """Out below a box, up along the right, and in above the other."""
    start, end = spots[way.start], spots[way.end]
    below, above = start.top + HIGH + GAP / 5, end.top - GAP / 5
    x, to = start.x + start.wide / 4, end.x + end.wide / 4
    d = f"M{x:.1f} {start.top + HIGH:.1f}V{below:.1f}H{lane:.1f}V{above:.1f}H{to:.1f}V{end.top:.1f}"
    wide = SMALL * len(way.label)
    return _path(way, d) + (_label(way.label, lane + 6 + wide / 2, (below + above) / 2) if way.label else "")


def _label(said: str, x: float, y: float) -> str:
    wide = SMALL * len(said)
    under = f'<rect class="under" x="{x - wide / 2:.1f}" y="{y - 10:.1f}" width="{wide:.1f}" height="13"/>'
    return under + _said("label", said, x, y)


def _path(way: Way, d: str, *, tip: bool = True) -> str:
    marker = ' marker-end="url(#tip)"' if tip else ""
    return f'<path class="{"broken" if way.broken else "way"}"{marker} d="{d}"/>'
