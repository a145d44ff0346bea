"""What the steps of a chain can come to, by the schemas of its tools and signals, and what in it can never fit.

An expression that names a field which is not there, or compares what can never match, is found before a trace meets it;
so is an argument that a tool does not take. Whatever no schema speaks of may be anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from agentmesh.behavior.grammar import nearest
from agentmesh.behavior.inference import infer
from agentmesh.behavior.shapes import (
    ANYTHING,
    NULL,
    NUMBER,
    TEXT,
    Shape,
    list_of,
    object_of,
    of_schema,
    of_value,
    text_of,
    union,
)  # fmt: skip
from agentmesh.behavior.templates import compiled, expressions
from agentmesh.errors import BadArguments, BadTool
from agentmesh.execution import plan as plans
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.execution.schemas import Declared, Signature
from agentmesh.records import Json, Policy, ToolUse

Path = tuple[str | int, ...]
Found = tuple[Path, str, Json, str | None]
"""A mistake: where, what, the value, and what was expected."""

UNKNOWN, FAILED = "?", "!"
"""Among the steps whose result may be `result` somewhere: nobody can say, and one that failed and has none."""


@dataclass(frozen=True, slots=True)
class Written:
    """An expression where it was written, and what the step does with it. `each`: it may name an item; `answer`: its
    `result` is what another agent answered."""

    path: Path
    step: str
    text: str
    role: Literal["value", "condition", "items"]
    each: bool = False
    answer: bool = False


@dataclass(frozen=True, slots=True)
class Used:
    """A tool as a step uses it, and where its arguments were written."""

    path: Path
    step: str
    use: ToolUse
    each: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A chain that a step holds, and the payload that is written for it."""

    path: Path
    step: str
    chain: str
    payload: Json
    each: bool = False


class ChainTypes:
    """The types of one plan; `signature` tells the schemas of a tool, None of one that is not known."""

    def __init__(self, plan: BehaviorPlan, signature: Callable[[str], Signature | None]) -> None:
        self._plan, self._signature = plan, signature
        self._steps = {one.id: self._result(one) for one in plan.nodes if not _passed(one)}
        self._before = None if plan.branches else _sources(plan)
        self._shared = _everywhere() | {
            "payload": ANYTHING if plan.input is None else of_schema(plan.input),
            "results": object_of(self._labels(), open=any(_unnamed(one) for one in plan.nodes)),
            "steps": object_of({name: union([one, NULL]) for name, one in self._steps.items()}),
        }  # fmt: skip
        self._shared["vars"] = object_of(self._assigned())  # what they are made of may be other variables, of any type

    def mistakes(self, written: list[Written], used: list[Used], held: list[Held]) -> Iterator[Found]:
        """What can never be, of expressions, of arguments, and of what chains within this one are given."""
        for one in written:
            yield from self._expression(one)
        for tool in used:
            yield from self._arguments(tool)
        for inner in held:
            yield from self._payload(inner)

    # --- what is known where an expression stands

    def known(self, step: str, *, each: bool = False) -> dict[str, Shape]:
        """The names that expressions of this step may use."""
        found = self._shared | {"result": self._incoming(step)}
        if each:
            node = self._plan.node(step)
            items = self._shape({"=": node.items if isinstance(node, plans.ForEach) else node.each}, found)
            found |= {"index": NUMBER, "item": items.items or ANYTHING}
        return found

    def _incoming(self, step: str) -> Shape:
        if self._before is None or UNKNOWN in self._before[step]:
            return ANYTHING
        return union([NULL if one == FAILED else self._steps[one] for one in sorted(self._before[step])] or [ANYTHING])

    def _labels(self) -> dict[str, Shape]:
        found: dict[str, Shape] = {}
        for node in self._plan.nodes:
            match node:
                case plans.Tools(slots=tuple() as slots):
                    made = {use.label: self._returns(use) for slot in slots for use in slot}
                case plans.ForEach():
                    made = {node.id: self._steps[node.id]}
                case plans.Delegate(each=str()):
                    made = {node.id: list_of(ANYTHING)}
                case plans.Delegate(errands=errands):
                    made = {one.label: ANYTHING for one in errands}
                case _:
                    made = {}
            found |= {name: union([one, found.get(name, one)]) for name, one in made.items()}
        return found

    def _assigned(self) -> dict[str, Shape]:
        """What `set` gives the variables, anywhere."""
        found: dict[str, Shape] = {}
        for node in self._plan.nodes:
            if isinstance(node, plans.Assign):
                known = self.known(node.id)
                for name, value in node.values.items():
                    made = self._shape(value, known)
                    found[name] = union([made, found.get(name, made)])
        return found

    # --- what steps come to

    def _result(self, node: plans.Place) -> Shape:  # noqa: PLR0911 - one a kind
        match node:
            case plans.Tools(slots=tuple() as slots):
                return self._of_tools(node, [use for slot in slots for use in slot])
            case plans.ForEach(use=use):
                return list_of(union([self._returns(use), NULL]))
            case plans.Delegate(each=str()):
                return list_of(ANYTHING)
            case plans.Signal(payload_schema=schema) if schema is not None:
                return of_schema(schema)
            case plans.Approval(options=options):
                return object_of({"choice": text_of(options), "by": TEXT, "reason": TEXT})
            case plans.Wait():
                return NULL
            case _:
                return ANYTHING

    def _of_tools(self, node: plans.Tools, uses: list[ToolUse]) -> Shape:
        """As DESIGN names it: parallel an object by label, serial the last, fallback the winner's."""
        if node.strategy in {"parallel", "mixed"}:
            fields: dict[str, Shape] = {}
            for use in uses:
                fields[use.label] = union([self._returns(use), fields.get(use.label, self._returns(use))])
            return object_of(fields, open=True)  # of names, not of a schema: result.low_confidence may be asked of it
        if node.strategy == "serial" and node.require == "all":
            return self._returns(uses[-1])
        return union(map(self._returns, uses))

    def _returns(self, use: ToolUse) -> Shape:
        said = self._signature(use.tool)
        made = ANYTHING if said is None else of_schema(said.returns)
        return list_of(made) if "for" in use.args else made

    def _shape(self, value: Json, known: Mapping[str, Shape]) -> Shape:
        """Of a value with expressions in it."""
        if isinstance(value, Mapping):
            if set(value) == {"="} and isinstance(value["="], str):
                return infer(value["="], compiled(value["="], "an expression").tree, known)[0]
            return object_of({key: self._shape(one, known) for key, one in value.items()})
        if isinstance(value, list | tuple):
            return list_of(union([self._shape(one, known) for one in value]) if value else ANYTHING)
        return of_value(value)

    # --- what can never be

    def _expression(self, one: Written) -> Iterator[Found]:
        known = self.known(one.step, each=one.each) | ({"result": ANYTHING} if one.answer else {})
        found, misfits = infer(one.text, compiled(one.text, "an expression").tree, known)
        yield from ((one.path, misfit.what, misfit.value, misfit.expected) for misfit in misfits)
        if misfits:
            return
        if one.role == "condition" and not found.can_be("bool"):
            yield (
                one.path,
                "a condition is neither true nor false",
                str(found),
                "a comparison, or a field that is true or false",
            )
        if one.role == "items" and not found.can_be("list"):
            yield one.path, "for_each goes over what is no list", str(found), "a list"

    def _arguments(self, used: Used) -> Iterator[Found]:
        said = self._signature(used.use.tool)
        args = used.use.args
        if said is None or not isinstance(said.arguments, Mapping) or set(args) == {"="}:
            return
        check = _Arguments(used.use.tool, said.arguments, lambda value: self._shape(value, known))
        known = self.known(used.step, each=used.each)
        if "for" not in args:
            yield from check.of(args, used.path)
            return
        inputs, common = args["for"], args.get("with") or {}
        listed = isinstance(inputs, list) and all(isinstance(one, Mapping) and set(one) != {"="} for one in inputs)
        for one in inputs if listed else ():
            yield from check.of({**common, **one}, used.path)
        if not listed:
            yield from check.given(common, used.path)

    def _payload(self, inner: Held) -> Iterator[Found]:
        below = self._plan.chains[inner.chain]
        schema = None if isinstance(below, str) else below.input
        if schema is None or not isinstance(inner.payload, Mapping) or set(inner.payload) == {"="}:
            return
        known = self.known(inner.step, each=inner.each)
        check = _Arguments(f"chain {inner.chain}", schema, lambda value: self._shape(value, known))
        known_names = schema.get("properties", {})
        yield from check.of({name: value for name, value in inner.payload.items() if name in known_names}, inner.path)


@dataclass(frozen=True, slots=True)
class _Arguments:
    """What a tool takes, by the JSON Schema of its arguments."""

    tool: str
    schema: Mapping[str, Any]
    shape: Callable[[Json], Shape]

    def of(self, args: Mapping[str, Json], path: Path) -> Iterator[Found]:
        yield from self.given(args, path)
        for name in self.schema.get("required", ()):
            if name not in args:
                yield path, f"{self.tool} is not given {name}", None, f"{name}: …"

    def given(self, args: Mapping[str, Json], path: Path) -> Iterator[Found]:
        """Of arguments that may not be all."""
        whole = of_schema(self.schema)
        for name, value in args.items():
            if name not in whole.fields:
                if not whole.open:
                    yield (
                        (*path, name),
                        f"{self.tool} takes no such argument",
                        name,
                        nearest(name, sorted(whole.fields)),
                    )
            elif next(expressions(value), None) is None:
                yield from self._literal(name, value, (*path, name))
            elif not (made := self.shape(value)).matches(whole.fields[name]):
                yield (*path, name), f"{self.tool} does not take this as {name}", str(made), str(whole.fields[name])

    def _literal(self, name: str, value: Json, path: Path) -> Iterator[Found]:
        try:
            Declared({**self.schema, "required": []}, what=self.tool).check(self.tool, {name: value})
        except BadArguments as exc:
            yield path, exc.what, value, None
        except BadTool:  # a schema that this reads no further
            return


@cache
def _everywhere() -> dict[str, Shape]:
    """What is the same in every chain."""
    texts = ("intent", "from_", "context_id", "agent", "tenant", "node")
    policy = of_schema(Policy.model_json_schema(mode="serialization"))
    return dict.fromkeys(texts, TEXT) | {"step": NUMBER, "iteration": NUMBER, "policy": policy}


def _unnamed(node: plans.Place) -> bool:
    """Whether nobody knows the names of its results before it runs: a reasoner chooses its tools, or its agents are chosen."""
    match node:
        case plans.Tools(slots=slots):
            return not slots
        case plans.Delegate(errands=errands):
            return any(one.count is not None for one in errands)
        case _:
            return False


def _passed(node: plans.Place) -> bool:
    return isinstance(node, plans.MOVES) or (isinstance(node, plans.Delegate) and not node.wait)


def _sources(plan: BehaviorPlan) -> dict[str, set[str]]:
    """Of each node the steps whose result may be `result` there. A callback may lead anywhere."""
    anywhere = {one.id for one in plan.nodes if one.policy.callbacks}
    found = {one.id: set(anywhere) for one in plan.nodes}
    found[plan.first.id].add(UNKNOWN)
    while sum(_grows(found, plan, node) for node in plan.nodes):
        pass
    return found


def _grows(found: dict[str, set[str]], plan: BehaviorPlan, node: Any) -> bool:
    """Hand on what may be `result` behind a node; whether that was new anywhere."""
    new = False
    for target, results in _edges(plan, node, found[node.id]):
        if target in found and not results <= found[target]:
            found[target] |= results
            new = True
    return new


def _edges(plan: BehaviorPlan, node: Any, incoming: set[str]) -> Iterator[tuple[str, set[str]]]:
    """Where a node leads, and whose result `result` may be there; `next` is resolved."""

    def to(target: str | None) -> str:
        return str(node.next if target == plans.NEXT else target)

    if _passed(node):
        cases = node.cases if isinstance(node, plans.Switch) else ()
        for target in (*((node.then,) if isinstance(node, plans.Jump) else ()), *(one.then for one in cases)):
            yield to(target), incoming
        yield to(plans.NEXT), incoming
        return
    behind = [plans.NEXT]
    if isinstance(node, plans.Reason) and node.next:
        place = plan.node(node.next)
        behind += [str(place.next)] if isinstance(place, plans.Tools) and place.slots is None else []
    for target in behind:
        yield to(target), {node.id} | (incoming if node.when is not None else set())
    for target in (node.on_fail or plan.on_fail, node.on_timeout):
        yield to(target), {node.id, FAILED}
