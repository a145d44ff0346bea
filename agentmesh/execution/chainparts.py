"""The parts that the steps of a chain are read from, with every mistake noted where it stands."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from agentmesh.behavior.templates import EACH, compiled
from agentmesh.errors import BadRule
from agentmesh.execution import plan as plans
from agentmesh.execution.chaintypes import Held, Used, Written
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.execution.schemas import Signature
from agentmesh.infrastructure import jsontext
from agentmesh.infrastructure.settings import Seconds
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import NAME, Json, PolicyPatch

Path = tuple[str | int, ...]

COMMON = (
    "id", "when", "needs", "on_fail", "on_timeout", "retry", "timeout", "write_memory", "record_trace",
    "trigger_next_action", "policy",
)  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    "reasoner": COMMON, "tools": (*COMMON, "strategy", "require", "race"), "callback": (), "set": ("id", "when", "needs"),
    "for_each": (*COMMON, "tool", "args", "limit", "require"),
    "jump_if": ("id", "then", "else", "limit"), "jump": ("id", "limit"), "switch": ("id", "else", "limit"),
    "wait": COMMON, "signal": (*COMMON, "schema", "within"),
    "approval": (*COMMON, "who", "options", "within", "escalate", "reason"),
    "delegate": (*COMMON, "intent", "payload", "permissions", "wait", "require", "vote", "quorum", "accept", "within",
                 "for_each"),
    "chain": (*COMMON, "payload", "for_each", "require"), "parallel": (*COMMON, "payload", "require"),
    "finish": ("id", "when", "needs"), "fail": ("id", "when", "needs", "code"),
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
    """The names a chain may use. None: they are not known here, and not checked.

    `signature` tells the schemas of a tool's arguments and result, None of a tool that it does not know.
    """

    tools: Collection[str] | None = None
    reasoners: Collection[str] | None = None
    callbacks: Collection[str] | None = None
    chains: Mapping[str, YamlText] | None = None
    signature: Callable[[str], Signature | None] = lambda _: None


@dataclass(slots=True)
class Step:
    """A step as it was written, and the node it becomes."""

    path: Path
    kind: str
    raw: dict[str, Json]
    id: str = ""
    callbacks: list[str] = field(default_factory=list)


class Parts:
    """Reads parts of steps; `problems` are the mistakes so far."""

    def __init__(self, text: YamlText, known: Known, within: tuple[str, ...] = ()) -> None:
        self.text, self.known, self._within = text, known, within
        self.problems: list[Problem] = []
        self._chains: dict[str, BehaviorPlan | str] = {}
        self._taken: dict[str, Path] = {}
        self._named: list[tuple[Path, str]] = []
        self._needed: list[tuple[Path, str]] = []
        self._written: list[Written] = []
        self._used: list[Used] = []
        self._held: list[Held] = []
        self._here = ""  # the step that is being read

    # --- parts of steps

    def _step_policy(self, step: Step) -> PolicyPatch:
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
                    (*path, key), "a policy has a key that means nothing", key, one_of(key, PolicyPatch.model_fields)
                )
            else:
                self.wrong((*path, key), f"{key} is not allowed", first["input"], first["msg"])
            return PolicyPatch()

    def _target(self, path: Path, said: Json, before: list[Step]) -> str:
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

    def _needs(self, path: Path, said: Json) -> tuple[str, ...]:
        """The ids of nodes; they are looked for when all ids are known."""
        listed = said if isinstance(said, list) else [said]
        for number, one in enumerate(listed):
            if isinstance(one, str):
                self._needed.append(((*path, number) if isinstance(said, list) else path, one))
            else:
                self.wrong(path, "this is no step to need", one, "the ids of steps")
        return tuple(str(one) for one in listed)

    def _condition(self, path: Path, text: Json, *, answer: bool = False) -> str:
        found = self._expression(path, text, role="condition", answer=answer)
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

    def _expression(
        self, path: Path, text: Json, *, each: bool = False, role: Literal["value", "condition", "items"] = "value",
        answer: bool = False,
    ) -> str:  # fmt: skip
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
        self._written.append(Written(path, self._here, text, role, each, answer))
        return text

    def _template(self, path: Path, value: Json, *, each: bool = False) -> None:
        if isinstance(value, Mapping):
            if set(value) == {"="}:
                self._expression((*path, "="), value["="], each=each)
                return
            for key, one in value.items():
                self._template((*path, key), one, each=each)
        elif isinstance(value, list | tuple):
            for number, one in enumerate(value):
                self._template((*path, number), one, each=each)

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
            self.wrong(path, f"{what} of this name is not known", name, one_of(name, known))
        return len(self.problems) > before

    def _keys(self, path: Path, raw: Mapping[str, Json], allowed: Iterable[str], what: str) -> None:
        for key in raw:
            if key not in set(allowed):
                self.wrong((*path, key), f"{what} has a key that means nothing", key, one_of(str(key), allowed))

    def wrong(self, path: Path, what: str, value: Json = None, expected: str | None = None) -> Any:
        """Note a mistake; None, for who has nothing to return now."""
        self.problems.append(Problem(self.text.where(*path), what, value, expected))


def given(raw: Mapping[str, Json], *keys: str) -> dict[str, Any]:
    return {key: raw[key] for key in keys if key in raw}


def one_of(value: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"one of {', '.join(names) or 'none'}" + (f" · did you mean {near[0]}?" if near else "")
