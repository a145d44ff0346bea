"""Random chains: tools in every way, loops, waits, signals, approvals, children, votes, bids and branches, each drawn from
the seed."""

from __future__ import annotations

from random import Random
from typing import Any

AGENT = "gamma"
Steps = list[dict[str, Any]]


def chain(seed: int, use: Any) -> dict[str, Any]:
    """The chain of one schedule. `use(chance, label)` draws one call of a tool."""
    chance = Random(f"{seed}/chain")
    steps = [step for n in range(chance.randint(1, 4)) for step in _segment(chance, f"s{n}", use)]
    return {"chain": "random", "steps": [*steps, {"id": "last", "finish": "over"}]}


def _segment(chance: Random, name: str, use: Any) -> Steps:
    draw = chance.choice((_tools, _tools, _for_each, _wait, _signal, _approval, _delegate, _contest, _parallel, _loop))
    return draw(chance, name, use)


def _tools(chance: Random, name: str, use: Any) -> Steps:
    uses = [use(chance, f"{name}-{n}") for n in range(chance.choice((1, 2, 3)))]
    step: dict[str, Any] = {"id": name, "tools": uses, "strategy": chance.choice(("serial", "parallel", "fallback"))}
    if step["strategy"] == "parallel" and len(uses) > 1:
        step["require"] = chance.choice(("all", "any", 1))
    return [_going_on(chance, step)]


def _for_each(chance: Random, name: str, _: Any) -> Steps:
    script = chance.choice((["ok"], ["fail", "ok"], ["1.0"]))
    step = {
        "id": name,
        "for_each": "[1, 2, 3]",
        "tool": "work",
        "args": {"script": script},
        "limit": chance.choice((1, 2, 3)),
    }
    return [_going_on(chance, step)]


def _wait(chance: Random, name: str, _: Any) -> Steps:
    return [{"id": name, "wait": f"{chance.uniform(0.5, 8):.1f}s"}]


def _signal(chance: Random, name: str, _: Any) -> Steps:
    return [{"id": name, "signal": name, "within": f"{chance.choice((2, 30))}s", "on_timeout": "last"}]


def _approval(chance: Random, name: str, _: Any) -> Steps:
    return [{"id": name, "approval": "shall it?", "within": f"{chance.choice((2, 30))}s", "on_fail": "last"}]


def _delegate(chance: Random, name: str, use: Any) -> Steps:
    do = [{"tools": [use(chance, "r0")]}] if chance.random() < 0.6 else []
    step = {"id": name, "delegate": chance.choice(("alpha", "beta")), "payload": {"do": do, "then": []}}
    return [_going_on(chance, step)]


def _contest(chance: Random, name: str, use: Any) -> Steps:
    """The answers of several become one, or none is acceptable; those that are too late are cancelled."""
    errands: list[dict[str, Any]] = []
    for label in ("a", "b", "c"):
        do = [{"tools": [use(chance, "r0")]}] if chance.random() < 0.6 else []
        whom = chance.choice(({"to": "alpha"}, {"to": "beta"}, {"capability": "work"}))
        errands.append({**whom, "as": f"{name}-{label}", "payload": {"do": do, "then": []}})
    terms = chance.choice((
        {"vote": "size(result)"}, {"vote": "size(result) > 0", "quorum": 2}, {"accept": "result.attempt == 1"},
        {"accept": "false", "within": "30s"}, {"vote": "size(result)", "quorum": "majority", "within": "3s"},
    ))  # fmt: skip
    return [_going_on(chance, {"id": name, "delegate": errands, **terms})]


def _parallel(chance: Random, name: str, use: Any) -> Steps:
    branches = {"left": [*_tools(chance, "l", use)], "right": [*_wait(chance, "w", use), *_tools(chance, "r", use)]}
    for steps in branches.values():
        for step in steps:
            step.pop("on_fail", None)
    return [_going_on(chance, {"id": name, "parallel": branches, "require": chance.choice(("all", "any", "each"))})]


def _loop(chance: Random, name: str, use: Any) -> Steps:
    count = f"vars.{name}"
    counted = {"=": f"has({count}) ? {count} + 1 : 1"}
    return [
        {"id": f"{name}-set", "set": {name: counted}}, *_tools(chance, name, use),
        {"id": f"{name}-again", "jump_if": f"{count} < 3", "then": f"{name}-set"},
    ]  # fmt: skip


def _going_on(chance: Random, step: dict[str, Any]) -> dict[str, Any]:
    return step | ({"on_fail": "last"} if chance.random() < 0.6 else {})
