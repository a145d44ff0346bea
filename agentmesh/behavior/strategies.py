"""How a session is made of what is known: strategies by name, each within a budget, with an account of what was shown.

A budget is counted in tokens of the values as JSON: payload, results, turns and memory. What does not fit is left out
whole; the payload is never. Nothing here reads or writes anything.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from agentmesh.behavior.declared import Attribute
from agentmesh.behavior.session import Session
from agentmesh.errors import BadAgentFile, Mistake
from agentmesh.records import Json, Name, Record, check_name

Build = Callable[..., Session]
Count = Callable[[str], int]
SUMMARY = "long_term:summary"
LISTED = 100  # keys that an account names of each part
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]


class SummarySpec(Record):
    """When more than `after` turns are in no summary yet, `reasoner` (one of the agent's) writes one of all but the newest
    `keep`."""

    reasoner: Name
    after: Annotated[int, Field(ge=1, le=90)] = 20
    keep: Annotated[int, Field(ge=0, le=50)] = 5


class SessionSpec(Record):
    """What its reasoner is shown: a strategy by name (or Python code as "module:attribute"), that strategy's options, and
    how many tokens it may come to, as `counter` ("module:attribute", of a text) counts them. With `nearest`, of long-term
    memory only so many entries, those nearest in meaning to the payload."""

    strategy: Name = "structured"
    python: Attribute | None = None
    options: dict[str, Json] = Field(default_factory=dict)
    budget: Tokens | None = None
    counter: Attribute | None = None
    nearest: Annotated[int, Field(ge=1, le=1000)] | None = None
    summary: SummarySpec | None = None


@dataclass(frozen=True, slots=True)
class Near:
    """Long-term keys, nearest first, and what is recorded of how they were found."""

    keys: tuple[str, ...]
    about: Mapping[str, Json]


def estimate(text: str) -> int:
    """A quarter of the bytes of its UTF-8, rounded up: what models of the day need for English, and more than enough for
    most else. A tokenizer of a model's own is a `counter`."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


class Meter:
    """What is taken in and what is left out, in tokens. `budget` None: all of it is taken."""

    def __init__(self, budget: int | None = None, count: Count = estimate) -> None:
        self.budget, self.used = budget, 0
        self._count = count
        self.shown: dict[str, dict[str, int]] = {}
        self.left_out: dict[str, dict[str, int]] = {}

    def take(self, part: str, key: str, value: Json, *, always: bool = False) -> bool:
        """Whether the value still fits; then it counts."""
        n = self._count(json.dumps(value, ensure_ascii=False, default=str))
        fits = always or self.budget is None or self.used + n <= self.budget
        self.used += n if fits else 0
        (self.shown if fits else self.left_out).setdefault(part, {})[key] = n
        return fits

    def some(self, part: str, values: Mapping[str, Json]) -> dict[str, Json]:
        """Those of the values that fit, each in its turn."""
        return {key: value for key, value in values.items() if self.take(part, key, value)}

    def leave(self, part: str, key: str) -> None:
        """It is not even looked at."""
        self.left_out.setdefault(part, {})[key] = 0

    def account(self, strategy: str) -> dict[str, Json]:
        """What was shown and what was not, by part and key, with tokens (0: not counted)."""
        parts = {"shown": _listed(self.shown), "left_out": _listed(self.left_out)}
        return {"strategy": strategy, "budget": self.budget, "used": self.used, **parts}


def account(variables: Mapping[str, Json]) -> dict[str, Json]:
    """What these variables come to in tokens, by name and key."""
    meter = Meter()
    for name, value in variables.items():
        for key, one in (value if isinstance(value, dict) else {name: value}).items():
            meter.take(name, key, one)
    return _listed(meter.shown)


def structured(
    *, memory_keys: tuple[str, ...] | list[str] | None = None, meter: Meter | None = None, **values: Any
) -> Session:
    """All values as they are, without turns; `memory_keys` keeps only those entries of memory (None: all).

    Within a budget: results first, then memory in the order of `memory_keys`, else by key.
    """
    values["turns"] = ()
    session = _session("structured", values)
    if memory_keys is None and meter is None:
        return session
    meter = meter or Meter()
    meter.take("payload", "payload", dict(session.payload), always=True)
    results = meter.some("results", session.results)
    memory = meter.some("memory", _chosen(session.memory, memory_keys, meter))
    return replace(session, results=results, memory=memory, account=meter.account("structured"))


def dialogue(
    *, most: int = 50, memory_keys: list[str] | None = None, meter: Meter | None = None, **values: Any
) -> Session:  # fmt: skip
    """The turns of the context, at most `most`: as many of the newest as fit, in order; then memory, with what is left."""
    return _talk("dialogue", most, memory_keys, meter, values, summed=False)


def summary(
    *, most: int = 50, memory_keys: list[str] | None = None, meter: Meter | None = None, **values: Any
) -> Session:  # fmt: skip
    """As dialogue, but what the summary in memory covers is left out, and the summary comes first."""
    return _talk("summary", most, memory_keys, meter, values, summed=True)


def _talk(
    name: str, most: int, memory_keys: list[str] | None, meter: Meter | None, values: dict[str, Any], *, summed: bool
) -> Session:  # fmt: skip
    meter = meter or Meter()
    known = list(values.pop("turns", ()))
    turns = known[-most:] if most else []
    for one in known[: len(known) - len(turns)]:
        meter.leave("turns", str(one["trace"]))
    session = _session(name, values)
    meter.take("payload", "payload", dict(session.payload), always=True)
    memory: dict[str, Json] = {}
    if summed and SUMMARY in session.memory and meter.take("memory", SUMMARY, session.memory[SUMMARY]):
        memory[SUMMARY] = session.memory[SUMMARY]
        covered, turns = split(turns, session.memory[SUMMARY])
        for one in covered:
            meter.leave("turns", str(one["trace"]))
    results = meter.some("results", session.results)
    shown: list[Json] = []
    for one in reversed(turns):
        said = {key: value for key, value in one.items() if key not in {"trace", "ended"}}
        if not meter.take("turns", str(one["trace"]), said):
            break
        shown.append(said)
    for one in turns[: max(len(turns) - len(shown) - 1, 0)]:
        meter.leave("turns", str(one["trace"]))
    others = _chosen(session.memory, memory_keys, meter)
    memory |= meter.some("memory", {key: one for key, one in others.items() if not (summed and key == SUMMARY)})
    return replace(session, results=results, turns=tuple(reversed(shown)), memory=memory, account=meter.account(name))


def _chosen(memory: Mapping[str, Json], keys: Sequence[str] | None, meter: Meter) -> dict[str, Json]:
    """Those entries in their order, the others named as left out; None: all by key."""
    if keys is None:
        return dict(sorted(memory.items()))
    for key in sorted(memory.keys() - set(keys)):
        meter.leave("memory", key)
    return {key: memory[key] for key in keys if key in memory}


def split(turns: list[Any], entry: Json) -> tuple[list[Any], list[Any]]:
    """The turns that a summary covers, and those that it does not."""
    through = str(entry.get("through") or "") if isinstance(entry, dict) else ""
    covered = [one for one in turns if str(one["ended"]) <= through]
    return covered, turns[len(covered) :]


OURS = frozenset({"structured", "dialogue", "summary"})
STRATEGIES: dict[str, Build] = {"structured": structured, "dialogue": dialogue, "summary": summary}
"""The strategies that agents name; `register_session_strategy` adds to them."""


def register_session_strategy(name: str) -> Callable[[Build], Build]:
    """Make `build(**values, **options)` the strategy of this name; with a budget it is also given a `meter`. A plugin's
    entry point, or an import that the settings list, runs it."""
    check_name(name, "a session strategy")

    def declare(build: Build) -> Build:
        STRATEGIES[name] = build
        return build

    return declare


class SessionBuilder:
    """Makes sessions by the strategy an agent names."""

    def __init__(self, strategies: Mapping[str, Build] | None = None) -> None:
        self._own: dict[str, Build] = dict(strategies or {})

    def strategies(self) -> tuple[str, ...]:
        return tuple(sorted(STRATEGIES | self._own))

    def register(self, name: str, build: Build) -> None:
        """From now on `build(**values, **options)` makes the sessions of strategy `name` here."""
        self._own[name] = build

    def build(
        self, strategy: str = "structured", options: Mapping[str, Json] | None = None, meter: Meter | None = None, **values: Any
    ) -> Session:  # fmt: skip
        """A session of `values` (the fields of Session). Raises Mistake for an unknown strategy."""
        made = (STRATEGIES | self._own).get(strategy)
        if made is None:
            near = difflib.get_close_matches(strategy, self.strategies(), n=1)
            hint = f" · did you mean {near[0]}?" if near else ""
            raise Mistake(
                "no session strategy has this name",
                value=strategy,
                expected=f"one of {', '.join(self.strategies())}{hint}",
            )
        return made(**values, **(options or {}), **({} if meter is None else {"meter": meter}))

    def view(self, spec: SessionSpec, near: Near | None = None, **values: Any) -> Session:
        """The session of `values` that an agent's file asks for; `near`: with no other long-term entries, in this order.

        Raises BadAgentFile for code that cannot be imported.
        """
        meter, options = None, dict(spec.options)
        if spec.budget is not None or spec.counter is not None or near is not None:
            meter = Meter(spec.budget, estimate if spec.counter is None else _imported(spec.counter))
        if near is not None and meter is not None:
            values["memory"] = _narrowed(spec, near, values["memory"], meter)
            if spec.python is None and spec.strategy in OURS:
                options["memory_keys"] = list(values["memory"])
        if spec.python is None:
            made = self.build(spec.strategy, options, meter, **values)
        else:
            made = _imported(spec.python)(**values, **options, **({} if meter is None else {"meter": meter}))
        if made.account is None and not (spec.python is None and spec.strategy in OURS):
            made = replace(made, account=_compared(spec, values, made))
        if near is not None and made.account is not None:
            made = replace(made, account={**made.account, "nearest": dict(near.about)})
        return made

    def check(self, spec: SessionSpec, agent: str) -> None:
        """Raises BadAgentFile where nothing could be made by this."""
        for named in (spec.python, spec.counter):
            if named is not None:
                _imported(named)
        if spec.python is None and spec.strategy not in self.strategies():
            near = difflib.get_close_matches(spec.strategy, self.strategies(), n=1)
            hint = f" · did you mean {near[0]}?" if near else ""
            raise BadAgentFile(f"agent {agent} names a session strategy that does not exist", value=spec.strategy,
                               expected=f"one of {', '.join(self.strategies())}{hint}")  # fmt: skip


def _narrowed(spec: SessionSpec, near: Near, memory: Mapping[str, Json], meter: Meter) -> dict[str, Json]:
    """Of memory, in the order in which a budget is spent: what `memory_keys` names, what is near, and short-term entries."""
    named: Any = spec.options.get("memory_keys")
    kept = [*(named or ()), *near.keys, *([SUMMARY] if spec.strategy == "summary" else ())]
    if named is None:
        kept += [key for key in memory if not key.startswith("long_term:")]
    for key in memory:
        if key not in kept:
            meter.leave("memory", key)
    return {key: memory[key] for key in kept if key in memory}


def _compared(spec: SessionSpec, values: Mapping[str, Any], made: Session) -> dict[str, Json]:
    """What a strategy of the user's shows of the values, which did not say so itself."""
    meter = Meter()
    for part in ("payload", "results", "memory"):
        given, kept = values.get(part, {}), getattr(made, part)
        meter.some(part, kept)
        for key in sorted(given.keys() - kept.keys()):
            meter.leave(part, key)
    for n, turn in enumerate(made.turns):
        meter.take("turns", str(turn.get("trace", n) if isinstance(turn, Mapping) else n), turn)
    return meter.account(spec.python or spec.strategy)


def _session(strategy: str, values: Mapping[str, Any]) -> Session:
    if odd := sorted(set(values) - set(Session.__dataclass_fields__)):
        expected = "memory_keys" if strategy == "structured" else "memory_keys, most"
        raise Mistake(f"the strategy '{strategy}' has no such option", value=odd[0], expected=expected)
    return Session(**values)


def _listed(parts: Mapping[str, Mapping[str, int]]) -> dict[str, Json]:
    said: dict[str, Json] = {}
    for part, keys in parts.items():
        said[part] = dict(list(keys.items())[:LISTED])
        if len(keys) > LISTED:
            said[part]["…"] = len(keys) - LISTED
    return said


def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise BadAgentFile(f"a session's code cannot be imported: {exc}", value=name,
                           expected="module:attribute of an installed module") from exc  # fmt: skip
    if not callable(found):
        raise BadAgentFile("a session's code is no function", value=name, expected="a function")
    made: Callable[..., Any] = found
    return made
