"""What decides: reasoners, and the action a reasoner's answer is read as.

A reasoner is given a session and returns an action; it writes nothing. What it wants recorded it
notes on the session. Whether a tool exists and may be called is the tool router's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Protocol

from pydantic import ValidationError

from agentmesh.behavior.expressions import Expression
from agentmesh.behavior.session import Session
from agentmesh.behavior.templates import compiled, filled, is_true, prepared
from agentmesh.errors import BadAction, BadJson, BadName, BadRule, MeshError, ReasonerFailed
from agentmesh.infrastructure import jsontext
from agentmesh.records import Action, Json, Strategy, ToolUse, check_name

MAX_CALLS = 10_000
ACTION_KEYS = frozenset({"answer", "tools", "strategy", "require", "candidates", "propensity", "policy_version"})
STRATEGIES: tuple[Strategy, ...] = ("serial", "parallel", "fallback", "mixed")


class Reasoner(Protocol):
    """What the executor needs of anything that decides."""

    def select_action(self, session: Session) -> Action | dict[str, Json]: ...

    def feedback(self, action_result: Json) -> None: ...


class ReasonerBase:
    """The base of every reasoner: prompt, decision, feedback.

    The constructor's parts may be None; a reasoner reads them, if at all, and never writes. `prompts` False: it decides
    without a prompt, and none is made for it.
    """

    prompts: ClassVar[bool] = True

    def __init__(self, memory_engine: Any = None, tool_registry: Any = None, trace_writer: Any = None) -> None:
        self.memory = memory_engine
        self.tools = tool_registry
        self.trace = trace_writer

    def inject_prompt(self, behavior: Session | Mapping[str, Json]) -> str:
        """The prompt for one decision; noted as REASONER_PROMPT when a session is given."""
        session = behavior if isinstance(behavior, Session) else None
        prompt = prompt_of(session.behavior() if session else behavior)  # type: ignore[arg-type]
        if session:
            session.note("REASONER_PROMPT", {"prompt": prompt})
        return prompt

    def select_action(self, session: Session) -> Action | dict[str, Json]:
        """The one next action. Raises what the reasoner cannot help; the step fails with it."""
        raise NotImplementedError(f"{type(self).__name__} decides nothing")

    def feedback(self, action_result: Json) -> None:
        """Called with what the action came to; the base keeps nothing of it."""


def ask(reasoner: Reasoner, session: Session) -> Action | dict[str, Json]:
    """What the reasoner decides, prompted first where it wants to be."""
    if getattr(reasoner, "prompts", False):
        reasoner.inject_prompt(session)  # type: ignore[attr-defined]
    return reasoner.select_action(session)


def prompt_of(behavior: Mapping[str, Json]) -> str:
    """Intent, payload, memory, results and tools in named sections, data as one line of JSON."""
    meta, command = behavior.get("meta", {}), behavior.get("command", {})
    context = behavior.get("context", {})
    sections = [
        ("agent", meta.get("to")),
        ("from", meta.get("from")),
        ("context_id", context.get("context_id")),
        ("intent", command.get("intent")),
        ("payload", command.get("payload", {})),
        ("memory", behavior.get("memory", {})),
        ("results", behavior.get("results", {})),
        ("tools", behavior.get("tools", [])),
    ]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False, sort_keys=True)}" for name, value in sections]
    return "\n".join([*lines, 'Choose {"answer": …} or {"tools": […], "strategy": …, "require": …}.'])


class FunctionReasoner(ReasonerBase):
    """A plain function `decide(session) -> action` as a reasoner."""

    prompts: ClassVar[bool] = False

    def __init__(self, decide: Callable[[Session], Action | dict[str, Json]]) -> None:
        super().__init__()
        self.decide = decide

    def select_action(self, session: Session) -> Action | dict[str, Json]:
        return self.decide(session)


@dataclass(frozen=True, slots=True)
class Rule:
    """When `when` is true (None: always), `then`, in which Expressions stand for values."""

    when: Expression | None
    then: Json
    source: str


class RuleReasoner(ReasonerBase):
    """The first rule whose condition is true decides. Rules are read once, when this is made."""

    prompts: ClassVar[bool] = False

    def __init__(
        self,
        rules: Sequence[Mapping[str, Json]],
        *,
        source: str = "rules",
        where: Callable[..., str] | None = None,
        memory_engine: Any = None,
        tool_registry: Any = None,
        trace_writer: Any = None,
    ) -> None:  # fmt: skip
        """`where(index, *path)` is where a rule stands, for errors. Raises BadRule or BadAction."""
        super().__init__(memory_engine, tool_registry, trace_writer)
        place = where or (lambda *path: f"{source}[{path[0]}]")
        if not rules:
            raise BadRule(f"{source} is empty", expected="at least one {when, then}")
        self.rules = tuple(read_rule(rule, number, place) for number, rule in enumerate(rules))

    def select_action(self, session: Session) -> Action:
        decided = self.first(session)
        if decided is None:
            raise ReasonerFailed(
                f"no rule matches intent {session.intent}",
                expected="a last rule without 'when' that says what to do otherwise",
                next="agentmesh agents show",
            )
        return decided

    def first(self, session: Session) -> Action | None:
        """What the first rule that matches decides; None when none matches. Raises ReasonerFailed."""
        variables = session.variables()
        for number, rule in enumerate(self.rules):
            try:
                if rule.when is not None and not is_true(rule.when, variables):
                    continue
                action = parse_action(filled(rule.then, variables))
            except MeshError as exc:
                raise ReasonerFailed(
                    f"{rule.source}: rule {number + 1} failed: {exc.what}",
                    value=exc.value,
                    expected=exc.expected,
                ) from exc
            return action.model_copy(update={"candidates": (f"rule {number + 1}",)})
        return None


def read_rule(rule: object, number: int, where: Callable[..., str]) -> Rule:
    """A rule with its expressions compiled and its action checked as far as it is known now."""
    place = where(number)
    if not isinstance(rule, Mapping):
        raise BadRule(f"{place}: a rule is not an object", value=rule, expected="{when, then}")
    odd = sorted(set(rule) - {"when", "then"})
    if odd or "then" not in rule:
        raise BadRule(
            f"{place}: a rule has other keys",
            value=odd or sorted(rule),
            expected="when (optional), then",
        )
    when = rule.get("when")
    if when is not None and not isinstance(when, str):
        raise BadRule(
            f"{where(number, 'when')}: a condition is not text",
            value=when,
            expected="CEL in quotes",
        )
    condition = None if when is None else compiled(when, where(number, "when"))
    return Rule(condition, read_action(rule["then"], lambda *path: where(number, "then", *path)), place)


def read_action(then: Json, where: Callable[..., str]) -> Json:
    """An action to be, its expressions compiled; `where(*path)` is where it stands. Raises BadRule or BadAction."""
    made = prepared(then, where)
    _check_shape(made, where())
    return made


def _check_shape(then: Json, place: str) -> None:
    """Refuse now what could never be an action; computed values count as absent."""
    if isinstance(then, Expression):
        return
    try:
        parse_action(_blank(then))
    except BadAction as exc:
        raise BadAction(f"{place}: {exc.what}", value=exc.value, expected=exc.expected) from None


def _blank(value: Json) -> Json:
    match value:
        case Expression():
            return None
        case dict():
            return {
                key: _blank(one) for key, one in value.items() if not isinstance(one, Expression) or key in ACTION_KEYS
            }
        case list():
            return [_blank(one) for one in value]
        case _:
            return value


# --- what a reasoner returned, read as an action


def parse_action(raw: object, *, default_strategy: Strategy = "serial") -> Action:
    """The action that `raw` means: an Action, {"answer"}, or {"tools", "strategy", "require"}.

    Tools are names or {"tool", "args", "as"}; lists among them make the strategy mixed. Raises
    BadAction.
    """
    if isinstance(raw, Action):
        return _limited(raw)
    if not isinstance(raw, Mapping):
        _refuse("an action is not an object", raw)
    raw = _as_json(raw)
    odd = sorted(str(key) for key in set(raw) - ACTION_KEYS)
    if odd:
        _refuse("an action has keys that mean nothing", odd, f"only {', '.join(sorted(ACTION_KEYS))}")
    if ("answer" in raw) == ("tools" in raw):
        _refuse("an action has either an answer or tools", sorted(map(str, raw)))
    extras = {key: raw[key] for key in ("candidates", "propensity", "policy_version") if key in raw}
    if "candidates" in extras and isinstance(extras["candidates"], list):
        extras["candidates"] = tuple(extras["candidates"])
    if "answer" in raw:
        return _made(answer=raw["answer"], **extras)
    strategy = raw.get("strategy") or _implied(raw["tools"], default_strategy)
    if strategy not in STRATEGIES:
        _refuse("an action names no strategy", strategy, f"one of {', '.join(STRATEGIES)}")
    slots = _slots(raw["tools"], strategy)
    require = raw.get("require", "all")
    return _limited(_made(slots=slots, strategy=strategy, require=require, **extras))


def _implied(tools: object, default: Strategy) -> Strategy:
    nested = isinstance(tools, list | tuple) and any(isinstance(one, list | tuple) for one in tools)
    return "mixed" if nested else default


def _slots(tools: object, strategy: Strategy) -> tuple[tuple[ToolUse, ...], ...]:
    if not isinstance(tools, list | tuple) or not tools:
        _refuse("an action has no tools", tools, "a list of at least one tool")
    listed = [one if isinstance(one, list | tuple) else [one] for one in tools]
    if strategy == "mixed":
        if not all(listed):
            _refuse("a slot has no tools", tools, "every slot a list of at least one tool")
        return tuple(tuple(_use(one) for one in slot) for slot in listed)
    if any(isinstance(one, list | tuple) for one in tools):
        _refuse("only the strategy mixed takes lists of tools", strategy)
    uses = tuple(_use(one) for one in tools)
    return tuple((use,) for use in uses) if strategy == "parallel" else (uses,)


def _use(raw: object) -> ToolUse:
    if isinstance(raw, ToolUse):
        return raw
    if isinstance(raw, str):
        raw = {"tool": raw}
    if not isinstance(raw, Mapping):
        _refuse("a tool is neither a name nor an object", raw)
    odd = sorted(str(key) for key in set(raw) - {"tool", "args", "as", "for"})
    if odd:
        _refuse("a tool has keys that mean nothing", odd, "only tool, args, as, for")
    try:
        tool = check_name(raw.get("tool"), "a tool")
        as_ = raw.get("as")
        label = None if as_ is None else check_name(as_, "the result of a tool")
    except BadName as exc:
        _refuse(exc.what, raw.get("as") if raw.get("as") else raw.get("tool"), exc.expected)
    args = raw.get("args")
    if args is not None and not (isinstance(args, Mapping) and all(isinstance(key, str) for key in args)):
        _refuse("the args of a tool are not an object", args)
    given = {"for": raw["for"], "with": dict(args or {})} if "for" in raw else dict(args or {})
    return ToolUse.model_validate({"tool": tool, "args": given, "as": label})


def _as_json(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of `raw`: plain values, so that they are the same now and when they are read again."""
    try:
        said: dict[str, Any] = jsontext.loads(jsontext.dumps(dict(raw), what="the action"), what="the action")
    except BadJson as bad:
        _refuse(bad.what, bad.value)
    return said


def _limited(action: Action) -> Action:
    """`action`, if its calls are few enough, its results have names and `require` can be met."""
    calls = sum(len(slot) for slot in action.slots)
    if calls > MAX_CALLS:
        _refuse("an action has too many calls", calls, f"at most {MAX_CALLS}")
    if action.strategy not in {"parallel", "mixed"}:
        if action.require != "all":
            _refuse("only parallel and mixed actions have 'require'", action.require)
        return action
    if isinstance(action.require, int) and action.require > len(action.slots):
        _refuse("an action requires more than it has", action.require, f"at most {len(action.slots)}")
    seen: set[str] = set()
    for slot in action.slots:
        labels = {use.label for use in slot}
        if twice := sorted(labels & seen):
            _refuse("two results would go by one name", twice[0], "a different 'as' for each")
        seen |= labels
    return action


def _made(**fields: object) -> Action:
    try:
        return Action.model_validate(fields)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "action"
        _refuse(f"an action has a wrong {name}", first["input"], first["msg"])


def _refuse(what: str, value: object, expected: str | None = None) -> NoReturn:
    raise BadAction(what, value=value, expected=expected)
