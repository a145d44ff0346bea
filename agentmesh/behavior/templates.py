"""Values with expressions in them: wherever {"=": "CEL"} stands, what it comes to is put in.

A condition is an expression that is true or false; a plain path such as result.low_confidence is false where it leads
nowhere. Expressions are compiled once per text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from agentmesh.behavior.expressions import Expression
from agentmesh.behavior.expressions import compile as compile_expression
from agentmesh.behavior.grammar import Node
from agentmesh.behavior.session import VARIABLES
from agentmesh.errors import BadRule
from agentmesh.records import Json

EACH = ("item", "index")
"""What expressions may name besides, where something is done for each item of a list."""


@lru_cache(maxsize=4096)
def compiled(text: str, source: str) -> Expression:
    """The expression of `text`. Raises BadRule with `source` and the position."""
    return compile_expression(text, source=source, variables=(*VARIABLES, *EACH))


def prepared(value: Json, where: Callable[..., str]) -> Json:
    """`value` with each {"=": "CEL"} replaced by its Expression; `where(*path)` says where a part stands."""
    if isinstance(value, Mapping):
        if set(value) == {"="}:
            if not isinstance(value["="], str):
                raise BadRule(
                    f"{where()}: an expression is not text",
                    value=value["="],
                    expected="CEL in quotes",
                )
            return compiled(value["="], where("="))
        return {key: prepared(one, lambda *path, k=key: where(k, *path)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [prepared(one, lambda *path, n=n: where(n, *path)) for n, one in enumerate(value)]
    return value


def filled(value: Json, variables: Mapping[str, Json]) -> Json:
    """A prepared value with what its expressions come to."""
    match value:
        case Expression():
            return value.evaluate(variables)
        case dict():
            return {key: filled(one, variables) for key, one in value.items()}
        case list():
            return [filled(one, variables) for one in value]
        case _:
            return value


def fill(value: Json, variables: Mapping[str, Json], source: str) -> Json:
    """`value` with what its expressions come to. Raises BadRule."""
    return filled(prepared(value, lambda *_path: source), variables)


def is_true(condition: Expression, variables: Mapping[str, Json]) -> bool:
    """Whether it holds. Raises BadRule where it is neither true nor false."""
    found = condition.evaluate(variables)
    if not isinstance(found, bool):
        raise BadRule(
            f"{condition.source}: a condition is neither true nor false",
            value=found,
            expected="true or false",
        )
    return found


def found(text: str, variables: Mapping[str, Json], source: str) -> Json:
    """What an expression comes to; None for a plain path that leads nowhere. Raises BadRule."""
    return _found(compiled(text, source), variables)


def holds(text: str, variables: Mapping[str, Json], source: str) -> bool:
    """Whether a condition holds; a plain path that leads nowhere, or to null, does not. Raises BadRule."""
    condition = compiled(text, source)
    if _plain(condition.tree) is not None and _found(condition, variables) is None:
        return False
    return is_true(condition, variables)


def _found(expression: Expression, variables: Mapping[str, Json]) -> Json:
    path = _plain(expression.tree)
    if path is None:
        return expression.evaluate(variables)
    found: Json = variables
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def expressions(value: Json) -> Iterator[str]:
    """The texts of the expressions in a value that is not prepared."""
    if isinstance(value, Mapping):
        if set(value) == {"="} and isinstance(value["="], str):
            yield value["="]
        else:
            for one in value.values():
                yield from expressions(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from expressions(one)


def _plain(tree: Node) -> tuple[str, ...] | None:
    """The path of `a.b.c`; None for anything else."""
    if tree.kind == "name":
        return (tree.name,)
    if tree.kind == "select" and (rest := _plain(tree.kids[0])) is not None:
        return (*rest, tree.name)
    return None
