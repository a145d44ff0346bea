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

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from agentmesh.behavior.reasoners import parse_action
from agentmesh.behavior.templates import EACH, compiled, expressions, prepared
from agentmesh.errors import BadAction, BadChain, BadRule
from agentmesh.execution import plan as plans
from agentmesh.execution.plan import BehaviorPlan, Place
from agentmesh.infrastructure import jsontext, yamlfiles
from agentmesh.infrastructure.settings import Seconds
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import NAME, Json, PolicyPatch, ToolUse

Path = tuple[str | int, ...]

COMMON = (
    "id", "when", "on_fail", "on_timeout", "retry", "timeout", "write_memory", "record_trace", "trigger_next_action", "policy",
)  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    "reasoner": COMMON, "tools": (*COMMON, "strategy", "require", "race"), "callback": (), "set": ("id", "when"),
    "for_each": (*COMMON, "tool", "args", "limit", "require"),
    "jump_if": ("id", "then", "else", "limit"), "jump": ("id", "limit"), "switch": ("id", "else", "limit"),
    "wait": COMMON, "signal": (*COMMON, "schema", "within"),
    "approval": (*COMMON, "who", "options", "within", "escalate", "reason"),
    "delegate": (*COMMON, "intent", "payload", "permissions", "wait", "require"),
    "chain": (*COMMON, "payload"), "parallel": (*COMMON, "payload", "require"),
    "finish": ("id", "when"), "fail": ("id", "when", "code"),
}  # fmt: skip
"""What a step may say, by the key that names its kind."""

UNNAMED = {"reasoner": "reason", "fail": "give-up", "jump_if": "jump"}
"""What steps without an id are called, where it is not their kind."""

STEPS = frozenset({
    "reasoner", "tools", "for_each", "wait", "signal", "approval", "delegate", "chain", "parallel",
})  # fmt: skip
BOOLEAN = frozenset({"&&", "||", "==", "!=", "<", "<=", ">", ">=", "in"})
LITERALS = frozenset({"text", "int", "uint", "float", "bytes", "list", "map"})
_seconds: TypeAdapter[float] = TypeAdapter(Seconds)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where, what, and what was expected."""

    where: str
    what: str
    value: Json = None
    expected: str | None = None

    def __str__(self) -> str:
        said = f"{self.where}: {self.what}"
        return said + (f" · {self.expected}" if self.expected else "")


@dataclass(frozen=True, slots=True)
class Known:
    """The names a chain may use. None: they are not known here, and not checked."""

    tools: Collection[str] | None = None
    reasoners: Collection[str] | None = None
    callbacks: Collection[str] | None = None
    chains: Mapping[str, YamlText] | None = None


@dataclass(slots=True)
class _Step:
    """A step as it was written, and the node it becomes."""

    path: Path
    kind: str
    raw: dict[str, Json]
    id: str = ""
    callbacks: list[str] = field(default_factory=list)


def read(text: YamlText, known: Known | None = None) -> BehaviorPlan:
    """The plan of a chain. Raises BadChain, which names the first mistake and carries all of them."""
    plan, problems = lint(text, known)
    if problems or plan is None:
        first = problems[0]
        raise BadChain(f"{first.where}: {first.what}", value=first.value, expected=first.expected, problems=problems)
    return plan


def lint(text: YamlText, known: Known | None = None) -> tuple[BehaviorPlan | None, list[Problem]]:
    """The plan, None where there is none, and every mistake in the order of the text."""
    reader = _Reader(text, known or Known())
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


class _Reader:
    def __init__(self, text: YamlText, known: Known, within: tuple[str, ...] = ()) -> None:
        self.text, self.known, self._within = text, known, within
        self.problems: list[Problem] = []
        self._chains: dict[str, BehaviorPlan] = {}
        self._taken: dict[str, Path] = {}
        self._named: list[tuple[Path, str]] = []

    # --- the whole

    def read(self) -> Any:
        data = self.text.data
        if not isinstance(data, dict):
            return self.wrong((), "a chain is not an object", data, "chain: name, steps: […]")
        self._keys((), data, ("chain", "steps", "policy", "on_fail", "description"), "a chain")
        name, steps = data.get("chain"), data.get("steps")
        if not isinstance(name, str) or not NAME.match(name):
            self.wrong(("chain",), "a chain has no proper name", name, "chain: lower_case_name")
        if not isinstance(steps, list) or not steps:
            return self.wrong(("steps",), "a chain has no steps", steps, "steps: a list of at least one step")
        read = self._steps(steps, ("steps",))
        policy = self._policy(("policy",), data.get("policy"))
        nodes = self._nodes(read)
        on_fail = self._target(("on_fail",), data["on_fail"], read) if "on_fail" in data else None
        if self.problems or not nodes:
            return None
        plan = BehaviorPlan(chain=str(name), nodes=tuple(nodes), policy=policy, chains=self._chains, on_fail=on_fail)
        self._ways(plan, {one.id: one for one in read})
        return plan

    def _steps(self, raw: list[Json], path: Path) -> list[_Step]:
        found: list[_Step] = []
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
            step = _Step(place, kind, one)
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
        self.wrong(place, "a step is nothing that is known", key, _one_of(key, KINDS))

    def _callback(self, step: _Step, before: list[_Step]) -> None:
        names = step.raw["callback"] if isinstance(step.raw["callback"], list) else [step.raw["callback"]]
        owner = before[-1] if before else None
        if owner is None or owner.kind not in STEPS:
            self.wrong(step.path, "a callback handles the result of the step before it, and there is none", names)
            return
        for name in names:
            self._name((*step.path, "callback"), name, "a callback", self.known.callbacks)
            owner.callbacks.append(str(name))

    def _id(self, step: _Step) -> str:
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

    # --- steps as nodes

    def _nodes(self, read: list[_Step]) -> list[Any]:
        nodes = []
        for number, step in enumerate(read):
            following = read[number + 1].id if number + 1 < len(read) else None
            if (made := self._node(step, read[: number + 1], following)) is not None:
                nodes.append(made)
        return nodes

    def _node(self, step: _Step, before: list[_Step], following: str | None) -> Any:
        raw, path = step.raw, step.path
        fields: dict[str, Any] = {"id": step.id, "next": following}
        if "when" in raw:
            fields["when"] = self._condition((*path, "when"), raw["when"])
        for key in ("on_fail", "on_timeout"):
            if key in raw:
                fields[key] = self._target((*path, key), raw[key], before)
        if step.kind in STEPS:
            fields["policy"] = self._step_policy(step)
        make: Callable[[_Step, dict[str, Any], list[_Step]], Any] = getattr(self, f"_{step.kind}")
        made = len(self.problems)
        try:
            node = make(step, fields, before)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False)[0]
            key = next((str(part) for part in first["loc"] if part in raw), step.kind)
            return self.wrong((*path, key), f"{key} is not allowed", first["input"], first["msg"])
        return node if len(self.problems) == made else None

    def _reasoner(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Place:
        name = step.raw["reasoner"]
        if name is not None:
            self._name((*step.path, "reasoner"), name, "a reasoner", self.known.reasoners)
        return plans.Reason(**fields, kind="reason", reasoner=name)

    def _tools(self, step: _Step, fields: dict[str, Any], before: list[_Step]) -> Any:
        raw, path = step.raw, (*step.path, "tools")
        if raw["tools"] == "chosen":
            if len(before) < 2 or before[-2].kind != "reasoner":
                return self.wrong(
                    path, "no reasoner stands before the tools it is to choose", "chosen", "a reasoner before it"
                )
            return plans.Tools(**fields, kind="tools")
        said: dict[str, Json] = {"tools": raw["tools"]}
        said |= {key: raw[key] for key in ("strategy", "require") if key in raw}
        if raw.get("race"):
            said |= {"strategy": raw.get("strategy", "parallel"), "require": "any"}
        try:
            prepared(raw["tools"], lambda *_: self.text.where(*path))
            action = parse_action(said)
        except BadRule as exc:
            return self.wrong(path, exc.what, exc.value, exc.expected)
        except BadAction as exc:
            return self.wrong(path, exc.what, exc.value, exc.expected)
        for slot in action.slots:
            for use in slot:
                self._name(path, use.tool, "a tool", self.known.tools)
                self._template(path, use.args)
        return plans.Tools(**fields, kind="tools", slots=action.slots, strategy=action.strategy, require=action.require)

    def _for_each(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Any:
        raw, path = step.raw, step.path
        items = self._expression((*path, "for_each"), raw["for_each"])
        if self._name((*path, "tool"), raw.get("tool"), "a tool", self.known.tools):
            return None
        args = raw.get("args") or {}
        self._template((*path, "args"), args, each=True)
        if not isinstance(args, dict):
            return self.wrong((*path, "args"), "the args of a tool are not an object", args)
        more = {key: raw[key] for key in ("limit", "require") if key in raw}
        return plans.ForEach(**fields, kind="for_each", items=items, use=ToolUse(tool=raw["tool"], args=args), **more)

    def _set(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Any:
        values, path = step.raw["set"], (*step.path, "set")
        if not isinstance(values, dict) or not values:
            return self.wrong(path, "set does not say which variables", values, "set: {name: value}")
        self._template(path, values)
        return plans.Assign(**fields, kind="set", values=values)

    def _jump_if(self, step: _Step, fields: dict[str, Any], before: list[_Step]) -> Place:
        raw, path = step.raw, step.path
        fields["when"] = self._condition((*path, "jump_if"), raw["jump_if"])
        then = self._target((*path, "then"), raw.get("then"), before)
        if "else" in raw:
            fields["next"] = _resolved(self._target((*path, "else"), raw["else"], before), fields["next"])
        return plans.Jump(**fields, kind="jump", then=then, **_given(raw, "limit"))

    def _jump(self, step: _Step, fields: dict[str, Any], before: list[_Step]) -> Place:
        then = self._target((*step.path, "jump"), step.raw["jump"], before)
        return plans.Jump(**fields, kind="jump", then=then, **_given(step.raw, "limit"))

    def _switch(self, step: _Step, fields: dict[str, Any], before: list[_Step]) -> Any:
        raw, path = step.raw, (*step.path, "switch")
        if not isinstance(raw["switch"], list) or not raw["switch"]:
            return self.wrong(path, "a switch has no cases", raw["switch"], "switch: [{when, then}]")
        cases = []
        for number, one in enumerate(raw["switch"]):
            place = (*path, number)
            if not isinstance(one, dict) or set(one) != {"when", "then"}:
                self.wrong(place, "a case is not {when, then}", one, "{when, then}")
                continue
            then = self._target((*place, "then"), one["then"], before)
            cases.append(plans.Case(when=self._condition((*place, "when"), one["when"]), then=then))
        if "else" in raw:
            fields["next"] = _resolved(self._target((*step.path, "else"), raw["else"], before), fields["next"])
        return plans.Switch(**fields, kind="switch", cases=tuple(cases), **_given(raw, "limit"))

    def _wait(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Any:
        said, path = step.raw["wait"], (*step.path, "wait")
        if not isinstance(said, dict) or set(said) == {"="}:
            said = {"seconds": said}
        self._keys(path, said, ("seconds", "until", "cron", "timezone"), "a wait")
        if len({"seconds", "until", "cron"} & said.keys()) != 1:
            return self.wrong(path, "a wait says how long in one way", said, "a duration, until or cron")
        if "seconds" in said and not isinstance(said["seconds"], dict):
            said = said | {"seconds": self._duration(path, said["seconds"])}
        self._template(path, said)
        return plans.Wait(**fields, kind="wait", **said)

    def _signal(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Place:
        raw, path = step.raw, step.path
        within = self._duration((*path, "within"), raw["within"]) if "within" in raw else None
        if "schema" in raw:
            self._schema((*path, "schema"), raw["schema"])
        return plans.Signal(
            **fields, kind="signal", signal=raw["signal"], payload_schema=raw.get("schema"), within_s=within
        )

    def _approval(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Any:
        raw, path = step.raw, step.path
        self._template((*path, "approval"), raw["approval"])
        more: dict[str, Any] = {key: tuple(raw[key]) for key in ("who", "options") if isinstance(raw.get(key), list)}
        if "within" in raw:
            more["within_s"] = self._duration((*path, "within"), raw["within"])
        if "escalate" in raw:
            said = raw["escalate"]
            if not isinstance(said, dict) or set(said) != {"after", "who"} or not isinstance(said["who"], list):
                return self.wrong((*path, "escalate"), "escalate is not {after, who}", said, "{after: 1d, who: [name]}")
            after = self._duration((*path, "escalate", "after"), said["after"])
            more["escalate"] = plans.Escalation(after_s=after, who=tuple(said["who"]))
        if raw.get("reason") not in {None, "required", "optional"}:
            return self.wrong((*path, "reason"), "reason is neither required nor optional", raw["reason"])
        more["reason_required"] = raw.get("reason") == "required"
        return plans.Approval(**fields, kind="approval", ask=raw["approval"], **more)

    def _delegate(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Any:
        raw, path = step.raw, step.path
        listed = raw["delegate"] if isinstance(raw["delegate"], list) else [raw["delegate"]]
        errands = []
        for number, one in enumerate(listed):
            place = (*path, "delegate", number) if isinstance(raw["delegate"], list) else (*path, "delegate")
            said = {"to": one} if isinstance(one, str) else one
            if not isinstance(said, dict) or "to" not in said:
                return self.wrong(
                    place, "an errand does not say for whom", one, "the name of an agent, or {to, intent, payload, as}"
                )
            self._keys(place, said, ("to", "intent", "payload", "permissions", "as"), "an errand")
            said = _given(raw, "intent", "payload", "permissions") | said
            if self._name(place, said["to"], "an agent", None):
                return None
            self._template(place, said.get("payload"))
            label = str(said.get("as") or said["to"])
            permissions = said.get("permissions")
            errands.append(plans.Errand(
                label=label, agent=said["to"], intent=said.get("intent"), payload=said.get("payload"),
                permissions=None if permissions is None else tuple(permissions),
            ))  # fmt: skip
        if twice := [one.label for n, one in enumerate(errands) if one.label in {two.label for two in errands[:n]}]:
            return self.wrong(
                (*path, "delegate"), "two errands would go by one name", twice[0], "a different 'as' for each"
            )
        return plans.Delegate(**fields, kind="delegate", errands=tuple(errands), **_given(raw, "require", "wait"))

    def _chain(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Any:
        raw, path = step.raw, (*step.path, "chain")
        name = raw["chain"]
        if self._name(path, name, "a chain", self.known.chains) or not self._adopt(path, name):
            return None
        self._template(path, raw.get("payload"))
        errand = plans.Errand(label=name, chain=name, payload=raw.get("payload"))
        return plans.Delegate(**fields, kind="delegate", errands=(errand,))

    def _adopt(self, path: Path, name: str) -> bool:
        """Whether the chain of this name, and all that it names, can be read."""
        if name in self._within or name == self.text.data.get("chain"):
            self.wrong(path, "a chain holds itself", name, "delegate to the agent for a recursion")
            return False
        if name not in self._chains and self.known.chains is not None:
            reader = _Reader(self.known.chains[name], self.known, (*self._within, str(self.text.data.get("chain"))))
            made = reader.read()
            self.problems += reader.problems
            if made is None or reader.problems:
                return False
            self._chains[name] = made
        if name not in self._chains:
            self.wrong(path, "a chain of this name is not known here", name)
            return False
        return True

    def _parallel(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Any:
        raw, path = step.raw, (*step.path, "parallel")
        branches = raw["parallel"]
        if not isinstance(branches, dict) or not branches:
            return self.wrong(path, "there are no branches", branches, "parallel: {name: [steps], name: [steps]}")
        errands = []
        for name, steps in branches.items():
            marks = {
                key[len(path) + 1 :]: mark
                for key, mark in self.text.marks.items()
                if key[: len(path) + 1] == (*path, name)
            }
            text = YamlText(
                {"chain": name, "steps": steps}, self.text.source,
                {("steps", *key): mark for key, mark in marks.items()} | {("chain",): marks.get((), (1, 1))},
            )  # fmt: skip
            reader = _Reader(text, self.known, (*self._within, str(self.text.data.get("chain"))))
            made = reader.read()
            self.problems += reader.problems
            if made is None or reader.problems:
                continue
            key = f"{step.id}-{name}"
            self._chains[key] = made
            errands.append(plans.Errand(label=name, chain=key, payload=raw.get("payload")))
        self._template((*step.path, "payload"), raw.get("payload"))
        if len(errands) < len(branches):
            return None
        return plans.Delegate(**fields, kind="delegate", errands=tuple(errands), **_given(raw, "require"))

    def _finish(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Place:
        self._template((*step.path, "finish"), step.raw["finish"])
        return plans.Finish(**fields, kind="finish", result=step.raw["finish"])

    def _fail(self, step: _Step, fields: dict[str, Any], _before: list[_Step]) -> Place:
        self._template((*step.path, "fail"), step.raw["fail"])
        return plans.Give(**fields, kind="fail", message=step.raw["fail"], **_given(step.raw, "code"))

    # --- parts of steps

    def _step_policy(self, step: _Step) -> PolicyPatch:
        raw, path = step.raw, step.path
        values: dict[str, Json] = {}
        if isinstance(raw.get("policy"), dict):
            values |= raw["policy"]
        values |= {key: raw[key] for key in ("write_memory", "record_trace", "trigger_next_action") if key in raw}
        who = "reasoner" if step.kind == "reasoner" else "tool"
        if "timeout" in raw:
            values[f"{who}_timeout_s"] = self._duration((*path, "timeout"), raw["timeout"])
        if "retry" in raw:
            said = raw["retry"] if isinstance(raw["retry"], dict) else {"attempts": raw["retry"]}
            self._keys((*path, "retry"), said, ("attempts", "backoff"), "retry")
            values |= {f"{who}_attempts": said["attempts"]} if "attempts" in said else {}
            values |= {"backoff": said["backoff"]} if "backoff" in said else {}
        if step.callbacks:
            values["callbacks"] = step.callbacks
        return self._policy((*path, "policy"), values)

    def _policy(self, path: Path, values: Json) -> PolicyPatch:
        if not values:
            return PolicyPatch()
        try:
            return PolicyPatch.model_validate_json(jsontext.dumps(values, what="a policy"))
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False)[0]
            key = str(first["loc"][0]) if first["loc"] else "policy"
            if first["type"] == "extra_forbidden":
                self.wrong(
                    (*path, key), "a policy has a key that means nothing", key, _one_of(key, PolicyPatch.model_fields)
                )
            else:
                self.wrong((*path, key), f"{key} is not allowed", first["input"], first["msg"])
            return PolicyPatch()

    def _target(self, path: Path, said: Json, before: list[_Step]) -> str:
        """The id of a node, or next, end, fail; it is looked for when all ids are known."""
        if said == "retry_reasoner":
            found = next((one.id for one in reversed(before) if one.kind == "reasoner"), None)
            if found is None:
                self.wrong(path, "no reasoner stands before this step", said)
            return found or plans.FAIL
        if said == "skip":
            return plans.NEXT
        if not isinstance(said, str):
            self.wrong(path, "this is no step to go to", said, "the id of a step, or next, end, fail")
            return plans.FAIL
        self._named.append((path, said))
        return said

    def _condition(self, path: Path, text: Json) -> str:
        found = self._expression(path, text)
        if isinstance(text, str) and len(self.problems) == 0:
            tree = compiled(text, self.text.where(*path)).tree
            kind = tree.value if tree.kind == "chain" else None
            arithmetic = isinstance(kind, tuple) and not set(kind) & BOOLEAN
            if tree.kind in LITERALS or arithmetic or (tree.kind == "call" and tree.name == "size"):
                self.wrong(
                    path,
                    "a condition is neither true nor false",
                    text,
                    "a comparison, or a field that is true or false",
                )
        return found

    def _expression(self, path: Path, text: Json, *, each: bool = False) -> str:
        if isinstance(text, bool):
            return "true" if text else "false"
        if not isinstance(text, str):
            self.wrong(path, "an expression is not text", text, "CEL in quotes")
            return "false"
        try:
            tree = compiled(text, self.text.where(*path)).paths
        except BadRule as exc:
            self.wrong(path, exc.what.removeprefix(f"{self.text.where(*path)}: "), exc.value, exc.expected)
            return text
        if not each and (odd := sorted({one[0] for one in tree} & set(EACH))):
            self.wrong(path, f"{odd[0]} means something only in the args of a for_each", text)
        return text

    def _template(self, path: Path, value: Json, *, each: bool = False) -> None:
        for text in expressions(value):
            self._expression(path, text, each=each)

    def _duration(self, path: Path, value: Json) -> float:
        try:
            return _seconds.validate_python(value)
        except ValidationError:
            self.wrong(path, "this is no duration", value, "such as 30s, 5min, 2h or 3d")
            return 1.0

    def _schema(self, path: Path, value: Json) -> None:
        from jsonschema_rs import ValidationError as BadSchema  # noqa: PLC0415 - only chains with schemas need it
        from jsonschema_rs import validator_for  # noqa: PLC0415

        try:
            validator_for(value)
        except (BadSchema, ValueError, TypeError) as exc:
            self.wrong(path, f"this is no JSON Schema: {str(exc).splitlines()[0]}", value)

    def _name(self, path: Path, name: Json, what: str, known: Collection[str] | None) -> bool:
        """Whether the name is wrong."""
        before = len(self.problems)
        if not isinstance(name, str) or not NAME.match(name):
            self.wrong(path, f"{what} has a name that is not allowed", name, "a lower_case_name")
        elif known is not None and name not in known:
            self.wrong(path, f"{what} of this name is not known", name, _one_of(name, known))
        return len(self.problems) > before

    def _keys(self, path: Path, raw: Mapping[str, Json], allowed: Iterable[str], what: str) -> None:
        for key in raw:
            if key not in set(allowed):
                self.wrong((*path, key), f"{what} has a key that means nothing", key, _one_of(str(key), allowed))

    def wrong(self, path: Path, what: str, value: Json = None, expected: str | None = None) -> Any:
        """Note a mistake; None, for who has nothing to return now."""
        self.problems.append(Problem(self.text.where(*path), what, value, expected))

    # --- ways

    def _ways(self, plan: BehaviorPlan, steps: Mapping[str, _Step]) -> None:
        """Every way leads to a step that is there, every step is reached, and from each one there is a way to an end."""
        ids = {one.id for one in plan.nodes}
        for path, name in self._named:
            if name not in ids and name not in plans.TARGETS:
                self.wrong(path, "no step has this id", name, _one_of(name, ids | set(plans.TARGETS)))
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
            yield _resolved(node.then, following) or plans.END
            if node.when is None:
                return
        case plans.Switch(cases=cases):
            yield from (_resolved(one.then, following) or plans.END for one in cases)
        case _:
            pass
    for target in (node.on_fail, node.on_timeout):
        if target is not None:
            yield _resolved(target, following) or plans.END
    yield following


def _resolved(target: str, following: str | None) -> str | None:
    """What a target means where this is the next node; None: an end."""
    if target == plans.NEXT:
        return following
    return None if target in {plans.END, plans.FAIL, plans.COMPENSATE} else target


def _closure(start: set[str], ways: Mapping[str, set[str]]) -> set[str]:
    seen, todo = set(start), list(start)
    while todo:
        for target in ways.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def _given(raw: Mapping[str, Json], *keys: str) -> dict[str, Any]:
    return {key: raw[key] for key in keys if key in raw}


def _one_of(value: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"one of {', '.join(names) or 'none'}" + (f" · did you mean {near[0]}?" if near else "")
