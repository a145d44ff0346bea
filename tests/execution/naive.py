"""A second interpreter of plans, deliberately naive, to hold `advance` against.

It runs a whole trace in one loop over changing variables, from what the docstrings of plan.py promise. It shares the
plan's records with the engine and nothing else: its expressions are Python functions beside their text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from agentmesh.execution import plan as plans
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.records import Action, Failure, Json, Policy, Verdict

Variables = dict[str, Any]


class Wrong(Exception):
    """The trace fails with this code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


# --- expressions, each with what it means


def _n(v: Variables) -> int:
    found = v["vars"].get("n")
    if type(found) is not int:
        raise Wrong("E_RULE")
    return found


def _list(v: Variables) -> list[Json]:
    if "list" not in v["vars"]:
        raise Wrong("E_RULE")
    return v["vars"]["list"]


def _no() -> Json:
    raise Wrong("E_RULE")


def _bare(found: Json) -> bool:
    """A plain path as a condition: false where it leads nowhere."""
    if found is None or isinstance(found, bool):
        return bool(found)
    raise Wrong("E_RULE")


CONDITIONS: dict[str, Callable[[Variables], bool]] = {
    "true": lambda v: True,
    "false": lambda v: False,
    "vars.n > 2": lambda v: _n(v) > 2,
    "has(vars.n) && vars.n < 3": lambda v: "n" in v["vars"] and _n(v) < 3,
    "result.flag": lambda v: _bare(v["result"].get("flag") if isinstance(v["result"], dict) else None),
    "result": lambda v: _bare(v["result"]),
    "vars.deep.flag": lambda v: False,
    "payload.kind == 'a'": lambda v: v["payload"]["kind"] == "a",
    "payload.kind": lambda v: _bare(v["payload"]["kind"]),
}
VALUES: dict[str, Callable[[Variables], Json]] = {
    "vars.n + 1": lambda v: _n(v) + 1,
    "has(vars.n) ? vars.n + 1 : 0": lambda v: _n(v) + 1 if "n" in v["vars"] else 0,
    "result": lambda v: v["result"],
    "vars.list": _list,
    "null": lambda v: None,
    "payload.items": lambda v: v["payload"]["items"],
    "item": lambda v: v["item"],
    "index * 10": lambda v: v["index"] * 10 if "index" in v else _no(),
    "'2030-01-01T00:00:00+01:00'": lambda v: "2030-01-01T00:00:00+01:00",
    "'2030-01-01T00:00:00'": lambda v: "soon",
    "-1": lambda v: -1,
}
TERMS: dict[str, Callable[[Variables], Json]] = {
    "result.kind": lambda v: {},
    "has(vars.n) ? vars.n + 1 : 0": lambda v: {"vars": {"n": v["vars"]["n"]} if "n" in v["vars"] else {}},
    "result.flag": lambda v: {},
    "payload.kind == 'a'": lambda v: {"payload": {"kind": "a"}},
}
"""What the expressions that answers are counted by name, but for the answer."""

PAYLOAD: Json = {"kind": "a", "items": [7, 8]}


def _put(template: Json, v: Variables) -> Json:
    if isinstance(template, list):
        return [_put(one, v) for one in template]
    if isinstance(template, dict):
        return VALUES[template["="]](v) if list(template) == ["="] else {k: _put(one, v) for k, one in template.items()}
    return template


# --- what the world does


@dataclass(frozen=True)
class Turn:
    """What happens at one step: what its reasoner says, or what it comes to, and how its callback rules, try by try."""

    says: tuple[Action | Failure, ...]
    failure: Failure | None
    value: Json
    rules: tuple[Verdict | Failure | None, ...]  # None: no handler rules


@dataclass(frozen=True)
class Told:
    """How a trace went: every step, jump and the end in order, what was sent off, and its variables at the end."""

    log: list[tuple[Any, ...]]
    sent: list[tuple[Any, ...]]
    vars: Variables
    turns: dict[str, int]


# --- the interpreter


class _Over(Exception):
    """The trace has ended."""


class Naive:
    def __init__(self, plan: BehaviorPlan, policy: Policy, turns: list[Turn]) -> None:
        self.plan, self.policy, self.world = plan, policy, turns
        self.nodes = {one.id: one for one in plan.nodes}
        self.order = [one.id for one in plan.nodes]
        self.log: list[tuple[Any, ...]] = []
        self.sent: list[tuple[Any, ...]] = []
        self.v: Variables = {"vars": {}, "result": None, "payload": PAYLOAD}
        self.jumped: Counter[str] = Counter()
        self.steps = 0
        self.at, self.round = "", 1  # a round begins wherever the trace goes back, or stays
        self.came_by: set[str] = set()  # since the last step or jump

    def tell(self) -> Told:
        try:
            first = self.plan.nodes[0]
            if not (first.kind == "reason" and first.when is None):
                self.steps = 1  # the start is a step
            at: str | None = first.id
            while at is not None:
                at = self.visit(at)
            self.end("done", self.v["result"], None)
        except Wrong as wrong:
            self.log.append(("end", "failed", wrong.code))
        except _Over:
            pass
        return Told(self.log, self.sent, self.v["vars"], dict(self.jumped))

    def visit(self, name: str) -> str | None:  # noqa: PLR0911 - one a kind
        """Do what a node says; the node after it (None: the end)."""
        node = self.nodes[name]
        self.goes(name)
        if name in self.came_by:
            raise Wrong("E_LOOP_LIMIT")
        self.came_by.add(name)
        if node.when is not None and not CONDITIONS[node.when](self.v):
            return self.after(node)
        if node.kind == "set":
            new = {key: _put(one, self.v) for key, one in node.values.items()}
            self.v["vars"] = self.v["vars"] | new
            return self.after(node)
        if node.kind == "delegate" and not node.wait:
            self.sent += [(node.id, one.label, _put(one.payload, self.v)) for one in node.errands]
            return self.after(node)
        if node.kind == "jump":
            return self.jump(node, node.then, node.limit)
        if node.kind == "switch":
            for case in node.cases:
                if CONDITIONS[case.when](self.v):
                    return self.jump(node, case.then, node.limit)
            return self.after(node)
        if node.kind == "finish":
            self.end("done", self.v["result"] if node.result is None else _put(node.result, self.v), None)
        if node.kind == "fail":
            raise Wrong(node.code)
        return self.step(node)

    def goes(self, name: str) -> None:
        if self.at and self.order.index(name) <= self.order.index(self.at):
            self.round += 1
        self.at = name

    def step(self, node: Any) -> str | None:
        if self.steps >= self.policy.max_steps:
            raise Wrong("E_STEP_LIMIT")
        if node.kind == "reason":
            return self.reason(node)
        if node.kind == "for_each":
            return self.for_each(node)
        if node.kind == "tools":
            if node.slots is None:
                raise Wrong("E_CHAIN")
            calls = [tuple((use.label, use.tool, _put(use.args, self.v)) for use in slot) for slot in node.slots]
            return self.run_tools(node, calls, node.strategy, node.require, None)
        if node.kind == "delegate" and node.each is not None:
            return self.send_each(node)
        if node.kind == "delegate":
            sent = [(one.label, _put(one.payload, self.v)) for one in node.errands]
            self.enter("send", node, sent, self.terms(node))
        else:
            self.rest(node)
        return self.comes_to(node)

    def terms(self, node: Any) -> Json:
        """How the answers become one: the expression, with what it names besides the answer as it is now."""
        if node.vote is not None:
            said = {"vote": node.vote, "given": TERMS[node.vote](self.v)}
            return said if node.quorum is None else said | {"quorum": node.quorum}
        return None if node.accept is None else {"accept": node.accept, "given": TERMS[node.accept](self.v)}

    def send_each(self, node: Any) -> str | None:
        items = VALUES[node.each](self.v)
        if not isinstance(items, list):
            raise Wrong("E_RULE")
        if not items:
            self.v["result"] = []
            return self.after(node)
        values = [self.v | {"item": item, "index": index} for index, item in enumerate(items)]
        sent = [(f"item-{index}", _put(node.errands[0].payload, here)) for index, here in enumerate(values)]
        self.enter("send", node, sent, None)
        return self.comes_to(node)

    def for_each(self, node: Any) -> str | None:
        items = VALUES[node.items](self.v)
        if not isinstance(items, list):
            raise Wrong("E_RULE")
        if not items:
            self.v["result"] = []
            return self.after(node)
        calls = []
        for index, item in enumerate(items):
            here = self.v | {"item": item, "index": index}
            calls.append(((f"item-{index}", node.use.tool, _put(node.use.args, here)),))
        return self.run_tools(node, calls, "parallel", node.require, node.limit)

    def rest(self, node: Any) -> None:
        if node.kind == "wait":
            seconds, until = _put(node.seconds, self.v), _put(node.until, self.v)
            if node.seconds is not None and (type(seconds) not in {int, float} or seconds < 0):
                raise Wrong("E_RULE")
            if node.until is not None and (type(until) is not str or until == "soon"):
                raise Wrong("E_RULE")
            self.enter("wait", node, seconds, until, node.cron)
        if node.kind == "signal":
            self.enter("signal", node, node.signal, node.payload_schema, node.within_s)
        if node.kind == "approval":
            shown, who, options = _put(node.ask, self.v), list(node.who), list(node.options)
            late = node.escalate and (node.escalate.after_s, list(node.escalate.who))
            self.enter("approval", node, shown, who, options, node.reason_required, late, node.within_s)

    def run_tools(self, node: Any, slots: Any, strategy: str, require: Any, limit: int | None) -> str | None:
        if isinstance(require, int) and require > len(slots):
            require = "all"
        self.enter("tools", node, strategy, require, limit, list(slots))
        return self.comes_to(node)

    def reason(self, node: Any) -> str | None:
        self.enter("reason", node)
        place = self.nodes.get(node.next)
        for attempt in range(1, self.policy.reasoner_attempts + 1):
            said = self.turn.says[min(attempt, len(self.turn.says)) - 1]
            if isinstance(said, Action):
                break
            if said.permanent or attempt == self.policy.reasoner_attempts:
                self.v["result"] = None
                return self.failed(node, said.code)
        if not said.slots:
            self.v["result"] = said.answer
            return self.ruled(node, None)
        if place is None or place.kind != "tools" or place.slots is not None:
            self.v["result"] = None
            return self.failed(node, "E_ACTION")
        if self.steps >= self.policy.max_steps:
            self.v["result"] = None
            return self.failed(node, "E_STEP_LIMIT")
        calls = [tuple((use.label, use.tool, use.args) for use in slot) for slot in said.slots]
        self.goes(place.id)
        self.enter("tools", place, said.strategy, said.require, None, calls)
        return self.comes_to(place)

    def comes_to(self, node: Any) -> str | None:
        """The end of a step that is not the reasoner's own."""
        failure = self.turn.failure
        self.v["result"] = self.turn.value
        if failure is not None and self.policy.on_fail == "fail":
            return self.failed(node, failure.code)
        return self.ruled(node, failure)

    def ruled(self, node: Any, failure: Failure | None) -> str | None:
        for attempt in range(1, self.policy.callback_attempts + 1):
            rule = self.turn.rules[min(attempt, len(self.turn.rules)) - 1]
            if not isinstance(rule, Failure):
                break
            if rule.permanent or attempt == self.policy.callback_attempts:
                if self.policy.on_callback_fail == "fail":
                    raise Wrong(rule.code)
                self.end("done", self.v["result"], None)
        if rule is None and failure is not None:
            return self.failed(node, failure.code)
        if rule is None:
            goes_on = node.otherwise == "next" or (node.otherwise == "trigger" and self.policy.trigger_next_action)
            if not goes_on:
                self.end("done", self.v["result"], None)
            return self.after(node)
        if rule.kind == "continue":
            return self.after(node)
        if rule.kind == "abort":
            raise Wrong("E_ABORTED")
        if rule.kind == "goto" and rule.to in self.nodes:
            return rule.to
        if rule.kind == "goto":
            raise Wrong("E_CALLBACK")
        return self.end("done", self.v["result"] if rule.result is None else rule.result, rule.to)

    def failed(self, node: Any, code: str) -> str | None:
        target = node.on_fail or self.plan.on_fail
        if code == "E_TIMEOUT" and node.on_timeout is not None:
            target = node.on_timeout
        if target == "compensate":
            self.end("undone", code, None)
        if target in {None, "fail"}:
            raise Wrong(code)
        return self.jump(node, target, plans.MAX_TURNS)

    def jump(self, node: Any, target: str, limit: int) -> str | None:
        if self.jumped[node.id] == limit:
            raise Wrong("E_LOOP_LIMIT")
        self.jumped[node.id] += 1
        self.log.append(("jump", node.id, target))
        self.came_by.clear()
        if target == "fail":
            raise Wrong("E_CHAIN")
        if target == "compensate":
            self.end("undone", "E_CHAIN", None)
        return {"next": self.after(node), "end": None}.get(target, target)

    def after(self, node: Any) -> str | None:
        """What stands behind a node; behind a reasoner, what stands behind the place of its tools."""
        place = self.nodes.get(node.next)
        if node.kind == "reason" and place is not None and place.kind == "tools" and place.slots is None:
            return place.next
        return node.next

    def enter(self, *line: Any) -> None:
        kind, node, *more = line
        self.turn = self.world[self.steps % len(self.world)]
        self.steps += 1
        self.came_by.clear()
        self.log.append((kind, node.id, self.round, *more))

    def end(self, status: str, result: Json, to: str | None) -> NoReturn:
        self.log.append(("end", status, result, to))
        raise _Over
