"""A behaviour chain as people write it, in YAML or in Python, read into a BehaviorPlan; every mistake is found at once.

    chain: analyze_complaint
    steps:
      - reasoner: generate_plan
      - tools: [{tool: query_db}, {tool: fetch_doc}]
        strategy: parallel
      - callback: update_memory
      - jump_if: result.low_confidence
        then: generate_plan

Steps follow one another. A callback handles the result of the step before it, and is no step of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

from agentmesh.errors import BadChain
from agentmesh.execution import plan as plans
from agentmesh.execution.chainparts import COMMON, KINDS, STEPS, UNNAMED, Known, Path, Problem, Step, one_of
from agentmesh.execution.chainsteps import Steps, resolved
from agentmesh.execution.chaintypes import ChainTypes
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.infrastructure import jsontext, yamlfiles
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import NAME, Json

__all__ = ["Known", "Problem", "from_values", "lint", "load", "read"]


def read(text: YamlText, known: Known | None = None) -> BehaviorPlan:
    """The plan of a chain. Raises BadChain, which names the first mistake and carries all of them."""
    plan, problems = lint(text, known)
    if problems or plan is None:
        first = problems[0]
        raise BadChain(f"{first.where}: {first.what}", value=first.value, expected=first.expected, problems=problems)
    return plan


def lint(text: YamlText, known: Known | None = None) -> tuple[BehaviorPlan | None, list[Problem]]:
    """The plan, None where there is none, and every mistake in the order of the text."""
    known = known or Known()
    # A chain is read within the one that names it, some ten frames a level.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 12 * len(known.chains or ())))
    reader = _Reader(text, known)
    plan = reader.read()
    return (None if reader.problems else plan), reader.problems


def from_values(chain: Mapping[str, Json], known: Known | None = None, *, source: str | None = None) -> BehaviorPlan:
    """The plan of a chain given as values: the keys of a chain file. Raises BadChain."""
    data = jsontext.loads(jsontext.dumps(dict(chain), what="a chain"), what="a chain")
    return read(YamlText(data, source or f"chain {data.get('chain', '')}", {}), known)


def load(paths: Iterable[str | FilePath]) -> dict[str, YamlText]:
    """The chains of these files and directories by name, as they are written. Raises BadChain, also for two of one name."""
    found: dict[str, YamlText] = {}
    for file in yamlfiles.listed(paths, BadChain):
        text = yamlfiles.read(file, BadChain)
        name = text.data.get("chain") if isinstance(text.data, dict) else None
        if not isinstance(name, str):
            raise BadChain(f"{text.where()}: a chain has no name", value=name, expected="chain: lower_case_name")
        if name in found:
            raise BadChain(
                f"two files hold chain {name}", value=f"{found[name].source}, {file}", expected="one file a chain"
            )
        found[name] = text
    return found


class _Reader(Steps):
    """Reads whole chains."""

    def nested(self, text: YamlText) -> BehaviorPlan | None:
        reader = _Reader(text, self.known, (*self._within, str(self.text.data.get("chain"))))
        made: BehaviorPlan | None = reader.read()
        self.problems += reader.problems
        return None if reader.problems else made

    # --- the whole

    def read(self) -> Any:
        data = self.text.data
        if not isinstance(data, dict):
            return self.wrong((), "a chain is not an object", data, "chain: name, steps: […]")
        self._keys((), data, ("chain", "steps", "input", "policy", "on_fail", "description"), "a chain")
        name, steps = data.get("chain"), data.get("steps")
        if not isinstance(name, str) or not NAME.match(name):
            self.wrong(("chain",), "a chain has no proper name", name, "chain: lower_case_name")
        if not isinstance(steps, list) or not steps:
            return self.wrong(("steps",), "a chain has no steps", steps, "steps: a list of at least one step")
        read = self._steps(steps, ("steps",))
        policy = self._policy(("policy",), data.get("policy"))
        if "input" in data:
            self._schema(("input",), data["input"])
        nodes = self._beside(self._nodes(read), read) if any("needs" in one.raw for one in read) else self._nodes(read)
        on_fail = self._target(("on_fail",), data["on_fail"], read) if "on_fail" in data else None
        if self.problems or not nodes:
            return None
        plan = BehaviorPlan(chain=str(name), nodes=tuple(nodes), policy=policy, chains=self._chains, on_fail=on_fail,
                            input=data.get("input"))  # fmt: skip
        (self._order if plan.branches else self._ways)(plan, {one.id: one for one in read})
        if not self.problems:
            self._types(plan)
        return plan

    def _types(self, plan: BehaviorPlan) -> None:
        """Nothing names, compares or hands over what can never be there."""
        found = ChainTypes(plan, self.known.signature).mistakes(self._written, self._used, self._held)
        for path, what, value, expected in sorted(found, key=lambda one: self.text.place(*one[0])):
            self.wrong(path, what, value, expected)

    def _steps(self, raw: list[Json], path: Path) -> list[Step]:
        found: list[Step] = []
        for number, one in enumerate(raw):
            place = (*path, number)
            if not isinstance(one, dict):
                self.wrong(place, "a step is not an object", one, f"one of {', '.join(KINDS)}")
                continue
            named = [key for key in KINDS if key in one]
            kinds = [key for key in named if not any(key in KINDS[other] for other in named)]  # the rest are options
            if "jump_if" in kinds and "then" not in one:
                self.wrong(place, "jump_if does not say where to", one, "then: the id of a step")
            if len(kinds) != 1:
                self._no_kind(place, one, kinds)
                continue
            kind = kinds[0]
            self._keys(place, one, (kind, *KINDS[kind]), f"a {kind} step")
            step = Step(place, kind, one)
            if kind == "callback":
                self._callback(step, found)
            else:
                step.id = self._id(step)
                found.append(step)
        return found

    def _no_kind(self, place: Path, one: dict[str, Json], kinds: list[str]) -> None:
        if kinds:
            self.wrong(place, "a step is two things at once", " and ".join(kinds), "one of them a step")
            return
        key = next((str(key) for key in one if key not in COMMON), "nothing")
        self.wrong(place, "a step is nothing that is known", key, one_of(key, KINDS))

    def _callback(self, step: Step, before: list[Step]) -> None:
        names = step.raw["callback"] if isinstance(step.raw["callback"], list) else [step.raw["callback"]]
        owner = before[-1] if before else None
        if owner is None or owner.kind not in STEPS:
            self.wrong(step.path, "a callback handles the result of the step before it, and there is none", names)
            return
        for name in names:
            self._name((*step.path, "callback"), name, "a callback", self.known.callbacks)
            owner.callbacks.append(str(name))

    def _id(self, step: Step) -> str:
        given = step.raw.get("id")
        path = (*step.path, "id")
        if given is None:
            named = step.raw[step.kind] if step.kind in {"reasoner", "signal"} else None
            base = named if isinstance(named, str) and NAME.match(named) else UNNAMED.get(step.kind, step.kind)
            given, n = base, 1
            while given in self._taken:
                n += 1
                given = f"{base}-{n}"
        elif not isinstance(given, str) or not NAME.match(given):
            self.wrong(path, "a step has no proper id", given, "a lower_case_name")
            return str(given)
        elif given in {*plans.TARGETS, plans.START, "skip", "retry_reasoner"}:
            self.wrong(path, "this id means something else", given, "another id")
        elif given in self._taken:
            self.wrong(
                path, "two steps have this id", given, f"another id than at {self.text.where(*self._taken[given])}"
            )
        self._taken[given] = step.path
        return given

    # --- branches

    def _beside(self, nodes: list[Any], steps: list[Step]) -> list[Any]:
        """The nodes of a chain with `needs`: who names none follows the step before it, and nobody jumps."""
        for step in steps:
            jumps = step.kind in {"jump", "jump_if", "switch"} or step.raw.get("tools") == "chosen"
            targets = [
                key for key in ("on_fail", "on_timeout") if step.raw.get(key) not in {None, "skip", *plans.TARGETS}
            ]
            if jumps or targets:
                self.wrong((*step.path, *(targets[:1] or [step.kind])), "nothing jumps in a chain with needs", step.id,
                           "when: on the steps themselves, or a chain of its own for the loop")  # fmt: skip
        before: dict[str, tuple[str, ...]] = {}
        for number, one in enumerate(nodes):
            before[one.id] = one.needs if one.needs is not None else (nodes[number - 1].id,) if number else ()
        return [one.model_copy(update={"needs": before[one.id], "next": None}) for one in nodes]

    def _order(self, plan: BehaviorPlan, steps: Mapping[str, Step]) -> None:
        """Every step that is needed is there, and no two need one another."""
        ids = {one.id for one in plan.nodes}
        for path, name in self._needed:
            if name not in ids:
                self.wrong(path, "no step has this id", name, one_of(name, ids))
        if self.problems:
            return
        left = {one.id: set(one.needs or ()) for one in plan.nodes}
        while ready := {name for name, needs in left.items() if not needs & left.keys()}:
            left = {name: needs for name, needs in left.items() if name not in ready}
        for name in left:
            self.wrong(steps[name].path, "these steps need one another", ", ".join(sorted(left)), "an order")
            break

    # --- ways

    def _ways(self, plan: BehaviorPlan, steps: Mapping[str, Step]) -> None:
        """Every way leads to a step that is there, every step is reached, and from each one there is a way to an end."""
        ids = {one.id for one in plan.nodes}
        for path, name in self._named:
            if name not in ids and name not in plans.TARGETS:
                self.wrong(path, "no step has this id", name, one_of(name, ids | set(plans.TARGETS)))
        if self.problems:
            return
        ways = {one.id: set(_ways(one)) for one in plan.nodes}
        reached = _closure({plan.first.id}, ways)
        for one in plan.nodes:
            if one.id not in reached:
                self.wrong(steps[one.id].path, "no way leads to this step", one.id, "a jump to it, or its removal")
        back: dict[str, set[str]] = {}
        for start, targets in ways.items():
            for target in targets:
                back.setdefault(target, set()).add(start)
        ending = _closure({plans.END}, back)
        for one in plan.nodes:
            if one.id in reached and one.id not in ending:
                self.wrong(
                    steps[one.id].path, "no way leads from this step to an end", one.id, "a condition, or an end"
                )


def _ways(node: Any) -> Iterable[str]:
    """Where a node may lead; END stands for every end."""
    following = node.next or plans.END
    match node:
        case plans.Finish() | plans.Give():
            yield plans.END
            if node.when is None:
                return
        case plans.Jump():
            yield resolved(node.then, following) or plans.END
            if node.when is None:
                return
        case plans.Switch(cases=cases):
            yield from (resolved(one.then, following) or plans.END for one in cases)
        case _:
            pass
    for target in (node.on_fail, node.on_timeout):
        if target is not None:
            yield resolved(target, following) or plans.END
    yield following


def _closure(start: set[str], ways: Mapping[str, set[str]]) -> set[str]:
    seen, todo = set(start), list(start)
    while todo:
        for target in ways.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen
