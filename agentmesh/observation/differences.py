"""What differs between two plans, node by node and down to the value. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from agentmesh.execution.plan import BehaviorPlan
from agentmesh.records import Json


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs: a node, a child plan or a value; `where` names it. None stands for what is not there."""

    kind: Literal["added", "removed", "changed"]
    where: str
    old: Json = None
    new: Json = None


def differences(old: BehaviorPlan, new: BehaviorPlan) -> list[Change]:
    """What changes from the one plan to the other: none where their hashes are the same."""
    return list(_of(old.body(), new.body(), ""))


def _of(old: Json, new: Json, place: str) -> Iterator[Change]:
    """The changes of one plan; `place` is the names of those that hold it."""
    rest = [{key: one for key, one in body.items() if key not in {"nodes", "chains"}} for body in (old, new)]
    yield from _values(rest[0], rest[1], place.rstrip("/") or "plan")
    nodes = [{one["id"]: one for one in body["nodes"]} for body in (old, new)]
    for name in dict.fromkeys((*nodes[0], *nodes[1])):
        yield from _parts(nodes[0].get(name), nodes[1].get(name), f"{place}{name}")
    kept = [[name for name in one if name in nodes[0] and name in nodes[1]] for one in nodes]
    if kept[0] != kept[1]:
        yield Change("changed", f"{place}order", kept[0], kept[1])
    chains = [body.get("chains", {}) for body in (old, new)]
    for name in dict.fromkeys((*chains[0], *chains[1])):
        below = f"{place}{name}"
        if name in chains[0] and name in chains[1]:
            yield from _of(chains[0][name], chains[1][name], below + "/")
        else:
            yield from _parts(chains[0].get(name), chains[1].get(name), below)


def _parts(old: Json, new: Json, where: str) -> Iterator[Change]:
    if old is None:
        yield Change("added", where, None, new)
    elif new is None:
        yield Change("removed", where, old)
    else:
        yield from _values(old, new, where)


def _values(old: Json, new: Json, where: str) -> Iterator[Change]:
    """The smallest values that differ: objects are looked into, lists of one length too."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _values(old.get(key), new.get(key), f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for n, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _values(a, b, f"{where}[{n}]")
    elif old != new or type(old) is not type(new):
        yield Change("changed", where, old, new)
