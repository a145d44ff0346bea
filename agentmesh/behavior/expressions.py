"""Rules as expressions in CEL, with a bound on what one evaluation can cost.

The evaluator holds the GIL, so no time limit could save a worker from an expression: a bound is
computed from the tree and the actual values before each run, and what is over it is refused. An
expression gets only the parts of its variables that it names.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agentmesh.behavior.grammar import Node, parse, spell
from agentmesh.errors import BadRule
from agentmesh.records import Json

LIMIT_ITEMS = 1000
LIMIT_UNITS = 200_000
"""What an expression may be given: a unit is a small value, or 64 characters of text."""
LIMIT_COST = 5_000_000
"""In units of about 150 ns, a small value copied; map and filter copy their list at each turn."""

Path = tuple[str, ...]
_UNKNOWN = object()
_EXTENSION = "cel.cel"
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression; made by `compile`, safe to use from several threads."""

    text: str
    source: str
    tree: Node = field(repr=False)
    program: Any = field(repr=False)
    paths: frozenset[Path] = field(repr=False)

    @property
    def names(self) -> frozenset[str]:
        """The variables it reads."""
        return frozenset(path[0] for path in self.paths)

    def reads(self, variables: Mapping[str, Json]) -> dict[str, Json]:
        """Of these variables the parts that it names."""
        return _project(variables, self.paths)

    def evaluate(self, variables: Mapping[str, Json]) -> Json:
        """The JSON value it comes to. Raises BadRule where it cannot, or could cost too much."""
        values = self.reads(variables)
        _Cost(values, self.source).check(self.tree)
        try:
            result = self.program.execute(values)
        except BaseException as exc:
            if isinstance(exc, Exception) or type(exc).__name__ == "PanicException":
                raise self._failed(exc) from None
            raise
        return _as_json(result, self.source)

    def _failed(self, exc: BaseException) -> BadRule:
        if isinstance(exc, KeyError):
            return BadRule(
                f"{self.source}: the expression reads a field that is not there",
                value=str(exc).strip("'"),
                expected="the field, or a guard such as has(payload.field) && …",
            )
        reason = str(exc).split(". ", maxsplit=1)[0]
        if reason.startswith("Undefined variable"):
            return BadRule(f"{self.source}: the expression names something unknown", value=self.text)
        return BadRule(
            f"{self.source}: the expression has no value: {reason}",
            value=self.text,
            expected="operands of one type (int(x), double(x) and string(x) convert)",
        )


def compile(text: str, *, source: str, variables: Iterable[str] | None = None) -> Expression:  # noqa: A001
    """The expression of `text`. `source` says where it stands, for errors; `variables` are the
    names it may use (None: any). Raises BadRule with the position and what was expected there.
    """
    tree = parse(text, source=source, variables=variables)
    try:
        program = _evaluator().compile(spell(tree))
    except ValueError as exc:
        reason = str(exc).rsplit("ERROR: ", maxsplit=1)[-1].split("\n", maxsplit=1)[0]
        raise BadRule(f"{source}: the expression is not CEL: {reason}", value=text) from None
    return Expression(text, source, tree, program, frozenset(_paths(tree, (), frozenset())))


def _evaluator() -> Any:
    """The extension module cel.cel without its package, which imports a terminal toolkit: 0.4 s in
    each worker. It is registered under its own name, for it cannot be initialised twice.
    """
    with _loading:
        if _EXTENSION not in sys.modules:
            package = importlib.util.find_spec("cel")
            places = package.submodule_search_locations if package else None
            spec = importlib.machinery.PathFinder.find_spec(_EXTENSION, places)
            if spec is None or spec.loader is None:
                raise ModuleNotFoundError("common-expression-language is not installed", name="cel")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[_EXTENSION] = module
        return sys.modules[_EXTENSION]


def _paths(node: Node, tail: Path, bound: frozenset[str]) -> Iterable[Path]:
    """What of the variables a tree reads: ("payload", "kind") for payload.kind."""
    match node.kind:
        case "name":
            if node.name not in bound:
                yield (node.name, *tail)
        case "select":
            yield from _paths(node.kids[0], (node.name, *tail), bound)
        case "index" if (key := _key(node)) is not None:
            yield from _paths(node.kids[0], (key, *tail), bound)
        case "macro":
            yield from _paths(node.kids[0], (), bound)
            for body in node.kids[1:]:
                yield from _paths(body, (), bound | {str(node.value)})
        case _:
            for kid in node.kids:
                yield from _paths(kid, (), bound)


def _key(index: Node) -> str | None:
    """The key of payload["kind"]; None where it is computed."""
    key = index.kids[1]
    return str(key.value) if key.kind == "text" else None


def _project(variables: Mapping[str, Json], paths: Iterable[Path]) -> dict[str, Json]:
    wanted: dict[str, list[Path]] = {}
    for head, *tail in paths:
        wanted.setdefault(head, []).append(tuple(tail))
    return {name: _part(variables[name], tails) for name, tails in wanted.items() if name in variables}


def _part(value: Json, tails: list[Path]) -> Json:
    """Of an object only the keys that are read; anything else whole."""
    if not isinstance(value, Mapping) or () in tails:
        return value
    return _project(value, tails)


class _Estimate(NamedTuple):
    """The most a node's value can measure, and the value itself where it is known beforehand.

    Of a list that a macro makes: the most one item can measure, and the most items.
    """

    size: int
    value: object = _UNKNOWN
    item: int | None = None
    items: int | None = None


class _Cost:
    """Adds up the most one evaluation can cost, before it runs."""

    def __init__(self, values: Mapping[str, Json], source: str) -> None:
        self.values = values
        self.source = source
        self.total = 0
        self.items: dict[str, _Estimate] = {}
        self.sizes: dict[int, int] = {}

    def check(self, tree: Node) -> None:
        self.spend(sum(self.measure(value) for value in self.values.values()))
        self.spend(self.estimate(tree).size)

    def spend(self, units: int) -> None:
        self.total += units
        if self.total > LIMIT_COST:
            raise BadRule(
                f"{self.source}: the expression could take too long on these values",
                value=f"{self.total} units",
                expected=f"at most {LIMIT_COST} units (name single fields, or shorten the lists)",
            )

    def measure(self, value: object) -> int:
        """How many units a value is large; remembered by identity for this evaluation."""
        known = self.sizes.get(id(value))
        if known is not None:
            return known
        size = 0
        todo = [value]
        while todo:
            one = todo.pop()
            size += 1
            if isinstance(one, str):
                size += len(one) // 64
            elif isinstance(one, Mapping):
                size += sum(1 + len(key) // 64 for key in one)
                todo += one.values()
            elif isinstance(one, list | tuple):
                todo += one
            elif isinstance(one, int) and not -(2**63) <= one < 2**63:
                raise BadRule(f"{self.source}: an integer is too large for a rule", value=one)
            if size > LIMIT_UNITS:
                raise BadRule(
                    f"{self.source}: the expression reads too large a value",
                    value=f"over {LIMIT_UNITS} units",
                    expected="single fields, or shorter lists",
                )
        self.sizes[id(value)] = size
        return size

    def known(self, value: object) -> _Estimate:
        return _Estimate(self.measure(value), value)

    def estimate(self, node: Node) -> _Estimate:
        if node.kind == "name":
            known = self.items.get(node.name)
            return known or self.known(self.values.get(node.name))
        if node.kind == "macro":
            return self.macro(node)
        if node.kind == "text":
            return _Estimate(1 + len(str(node.value)) // 64)
        kids = [self.estimate(kid) for kid in node.kids]
        if node.kind in {"select", "index"}:
            return self.inside(kids[0], node.name if node.kind == "select" else _key(node))
        return _Estimate(self.operation(node, [kid.size for kid in kids]))

    def operation(self, node: Node, sizes: list[int]) -> int:
        """What an operation on values of these sizes gives, at most; its cost is spent."""
        total = sum(sizes)
        if node.kind == "cond":
            return max(sizes)
        if node.kind == "chain" and isinstance(node.value, tuple) and "+" in node.value:
            self.spend(total * len(sizes))
            return total
        if node.kind == "call" and node.name == "matches":
            self.spend(500 + 64 * total)
            return 1
        self.spend(1 + total)
        return 1 + (total if node.kind in {"list", "map", "unary", "call"} else 0)

    def inside(self, whole: _Estimate, key: str | None) -> _Estimate:
        """A field, or any item when `key` is None."""
        found = _Estimate(whole.size if whole.item is None else whole.item)
        if isinstance(whole.value, Mapping):
            if key is not None:
                found = self.known(whole.value.get(key))
        elif isinstance(whole.value, list | tuple) and key is None:
            found = _Estimate(max((self.measure(one) for one in whole.value), default=1))
        self.spend(found.size)
        return found

    def macro(self, node: Node) -> _Estimate:
        over = self.estimate(node.kids[0])
        turns = over.size - 1 if over.items is None else over.items
        if isinstance(over.value, list | tuple | Mapping):
            turns = len(over.value)
        if turns > LIMIT_ITEMS:
            raise BadRule(
                f"{self.source}: {node.name} runs over too long a list",
                value=f"up to {turns} items",
                expected=f"at most {LIMIT_ITEMS} items",
            )
        item = self.inside(over, None)
        before, name = self.total, str(node.value)
        self.items[name] = item
        bodies = [self.estimate(body) for body in node.kids[1:]]
        del self.items[name]
        self.spend((self.total - before + 1) * turns)
        if node.name not in {"map", "filter"}:
            return _Estimate(1)
        grows = item.size if node.name == "filter" else bodies[-1].size
        self.spend(turns * turns // 2 * grows)  # the list so far is copied at each turn
        return _Estimate(1 + turns * grows, item=grows, items=turns)


def _as_json(value: object, source: str, depth: int = 0) -> Json:
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case list() | tuple() if depth < 64:
            return [_as_json(one, source, depth + 1) for one in value]
        case dict() if depth < 64 and all(isinstance(key, str) for key in value):
            return {key: _as_json(one, source, depth + 1) for key, one in value.items()}
    raise BadRule(
        f"{source}: the expression gives what JSON cannot say", value=type(value).__name__,
        expected="null, true, false, a finite number, text, a list or an object",
    )  # fmt: skip
