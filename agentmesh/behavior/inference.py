"""What an expression comes to, as far as it is known of what it names, and what in it can never be.

Only what no value could save is a mistake: whatever is not known may be anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agentmesh.behavior.grammar import METHODS, Node, nearest
from agentmesh.behavior.shapes import ANYTHING, BOOL, NUMBER, TEXT, Shape, list_of, of_value, one_of, union
from agentmesh.behavior.tokens import position
from agentmesh.records import Json

LOGIC, EQUAL, ORDER = {"&&", "||"}, {"==", "!="}, {"<", "<=", ">", ">="}
ORDERED = ("number", "text", "bool", "time", "duration")
ADDED = ("number", "text", "list", "time", "duration")
MADE = {
    "size": NUMBER, "int": NUMBER, "uint": NUMBER, "double": NUMBER, "string": TEXT, "contains": BOOL, "startsWith": BOOL,
    "endsWith": BOOL, "matches": BOOL, "timestamp": one_of("time"), "duration": one_of("duration"),
}  # fmt: skip
"""What the functions come to."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """Something in an expression that can never be; `what` says where in its text."""

    what: str
    value: Json
    expected: str


def infer(text: str, tree: Node, known: Mapping[str, Shape]) -> tuple[Shape, list[Misfit]]:
    """What the expression comes to where its names are these, and every misfit in it; names that are not known may be
    anything."""
    found = _Inference(text, known)
    return found.of(tree), found.misfits


class _Inference:
    def __init__(self, text: str, known: Mapping[str, Shape]) -> None:
        self.text, self.known = text, dict(known)
        self.misfits: list[Misfit] = []

    def wrong(self, node: Node, what: str, value: Json, expected: str, *, at: int | None = None) -> Shape:
        """Note a misfit; what stands there may be anything, so that nothing follows from it."""
        place = position(self.text, min(_places(node)) if at is None else at)
        self.misfits.append(Misfit(f"the expression {what} at {place}", value, expected))
        return ANYTHING

    def of(self, node: Node) -> Shape:  # noqa: PLR0911, PLR0912 - one a kind
        match node.kind:
            case "name":
                return self.known.get(node.name, ANYTHING)
            case "number":
                return NUMBER
            case "word":
                return of_value({"true": True, "false": False, "null": None}[node.name])
            case "text":
                return of_value(str(node.value))
            case "list":
                return list_of(union(found) if (found := [self.of(kid) for kid in node.kids]) else ANYTHING)
            case "map":
                return self.map(node)
            case "select":
                return self.field(node, self.of(node.kids[0]), node.name)
            case "index":
                return self.index(node)
            case "has":
                self.of(node.kids[0])
                return BOOL
            case "unary":
                return self.unary(node)
            case "cond":
                self.truth(node.kids[0], "chooses by")
                return union([self.of(node.kids[1]), self.of(node.kids[2])])
            case "chain" if isinstance(node.value, tuple):
                return self.chain(node, node.value)
            case "macro":
                return self.macro(node)
            case _:
                return self.call(node)

    # --- parts of objects and lists

    def field(self, node: Node, whole: Shape, name: str) -> Shape:
        at = node.at + 1
        if not whole.can_be("object"):
            return self.wrong(node, f"reads a field of {whole}", name, "an object", at=at)
        if name in whole.fields:
            return whole.fields[name]
        if whole.open:
            return ANYTHING
        owner = _path(node.kids[0])
        said = f"reads a field that {owner} does not have" if owner else "reads a field that is not there"
        return self.wrong(node, said, name, nearest(name, sorted(whole.fields)), at=at)

    def index(self, node: Node) -> Shape:
        whole, key = self.of(node.kids[0]), self.of(node.kids[1])
        if node.kids[1].kind == "text" and not whole.can_be("list"):
            return self.field(node, whole, str(node.kids[1].value))
        if not whole.can_be("list", "object"):
            return self.wrong(node, f"looks into {whole}", str(key), "a list or an object", at=node.at + 1)
        if not (whole.can_be("list") and key.can_be("number")) and not (whole.can_be("object") and key.can_be("text")):
            return self.wrong(node, f"looks into {whole} by {key}", str(key), "a number for a list, text for an object",
                              at=node.at + 1)  # fmt: skip
        return (whole.items or ANYTHING) if not whole.can_be("object") else ANYTHING

    def map(self, node: Node) -> Shape:
        fields, computed = {}, False
        for key, value in zip(node.kids[::2], node.kids[1::2], strict=True):
            made = self.of(value)
            if key.kind == "text":
                fields[str(key.value)] = made
            else:
                computed = True
        return Shape(frozenset({"object"}), fields, computed)

    def macro(self, node: Node) -> Shape:
        over = self.of(node.kids[0])
        if not over.can_be("list", "object"):
            self.wrong(node, f"runs {node.name} over {over}", str(over), "a list or an object")
        item = (over.items or ANYTHING) if not over.can_be("object") else ANYTHING if over.can_be("list") else TEXT
        self.known[str(node.value)] = item
        for test in node.kids[1:-1] if node.name == "map" else node.kids[1:]:
            self.truth(test, f"tests {node.name} by")
        made = list_of(self.of(node.kids[-1])) if node.name == "map" else list_of(item)
        del self.known[str(node.value)]
        return made if node.name in {"map", "filter"} else BOOL

    # --- operations

    def truth(self, node: Node, how: str) -> None:
        """What has to be true or false."""
        found = self.of(node)
        if not found.can_be("bool"):
            self.wrong(node, f"{how} {found}", str(found), "true or false")

    def unary(self, node: Node) -> Shape:
        if node.name == "!":
            self.truth(node.kids[0], "negates")
            return BOOL
        found = self.of(node.kids[0])
        if not found.can_be("number", "duration"):
            return self.wrong(node, f"takes minus of {found}", str(found), "a number")
        return found

    def chain(self, node: Node, signs: tuple[str, ...]) -> Shape:
        if signs[0] in LOGIC:
            for kid in node.kids:
                self.truth(kid, f"joins by {signs[0]}")
            return BOOL
        left = self.of(node.kids[0])
        for sign, kid in zip(signs, node.kids[1:], strict=True):
            left = self.pair(node, left, sign, kid)
        return left

    def pair(self, node: Node, left: Shape, sign: str, kid: Node) -> Shape:
        right = self.of(kid)
        both = f"{left} {sign} {right}"
        if sign in EQUAL:
            if not left.matches(right):
                self.unequal(node, left, right, both)
            return BOOL
        if sign in ORDER:
            if not any(left.can_be(one) and right.can_be(one) for one in ORDERED):
                self.wrong(node, "orders what has no order", both, "two numbers or two texts")
            return BOOL
        if sign == "in":
            self.inside(node, left, right, both)
            return BOOL
        return self.arithmetic(node, left, right, sign, both)

    def unequal(self, node: Node, left: Shape, right: Shape, both: str) -> None:
        if left.matches(Shape(right.types)):  # of one type: one of them is a word that the other never is
            (mine, theirs) = (left, right) if len(left.texts or ()) >= len(right.texts or ()) else (right, left)
            word = min(theirs.texts or {""})
            self.wrong(node, "compares with what it never is", word, nearest(word, sorted(mine.texts or ())))
        else:
            self.wrong(node, "compares what can never match", both, "two values of one type")

    def inside(self, node: Node, left: Shape, right: Shape, both: str) -> None:
        if not right.can_be("list", "object"):
            self.wrong(node, "looks for something in what holds nothing", both,
                       "a list or an object (text.contains(part) looks into text)")  # fmt: skip
        elif not right.can_be("object") and right.items is not None and not left.matches(right.items):
            self.wrong(node, "looks for what is never in the list", f"{left} in a list of {right.items}",
                       "an item of its type" if right.items.texts is None else f"one of {', '.join(sorted(right.items.texts))}",
                       )  # fmt: skip

    def arithmetic(self, node: Node, left: Shape, right: Shape, sign: str, both: str) -> Shape:
        if left.can_be("time", "duration") or right.can_be("time", "duration"):
            return ANYTHING
        types = [one for one in (ADDED if sign == "+" else ("number",)) if left.can_be(one) and right.can_be(one)]
        if not types:
            return self.wrong(node, "reckons with what does not go together", both,
                              "numbers, or two texts, or two lists (string(x) and double(x) convert)")  # fmt: skip
        return one_of(*types)

    def call(self, node: Node) -> Shape:
        first = self.of(node.kids[0])
        for kid in node.kids[1:]:
            self.of(kid)
        fits = ("text", "list", "object") if node.name in {"size", "contains"} else ("text",)
        if node.name in {*METHODS, "size"} and not first.can_be(*fits):
            self.wrong(node, f"asks {node.name} of {first}", str(first), " or ".join(str(one_of(one)) for one in fits))
        return MADE.get(node.name, ANYTHING)


def _places(node: Node) -> Iterator[int]:
    yield node.at
    for kid in node.kids:
        yield from _places(kid)


def _path(node: Node) -> str | None:
    """`a.b.c` as it was written; None for anything else."""
    match node.kind:
        case "name":
            return node.name
        case "select" if (before := _path(node.kids[0])) is not None:
            return f"{before}.{node.name}"
        case "index" if node.kids[1].kind == "text" and (before := _path(node.kids[0])) is not None:
            return f'{before}["{node.kids[1].value}"]'
        case _:
            return None
