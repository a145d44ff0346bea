"""The one place that decides what happens next: `advance(plan, state) -> decision`. Pure.

No clock, no I/O, no randomness: the same facts give the same decision, in a worker, in a test and in a replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import assert_never

from agentmesh.behavior.templates import fill, holds
from agentmesh.errors import BadRule, MeshError
from agentmesh.execution import plan as plans
from agentmesh.execution.cooperation import terms_of
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.infrastructure.fit import misfit
from agentmesh.records import Action, Failure, Json, Policy, Require, ToolUse, Verdict

MAX_WAIT_S = 366 * 86_400

# --- facts: what has just become true of the step at hand


@dataclass(frozen=True, slots=True)
class Began:
    """The trace begins, or begins anew, at this node (None: the first one)."""

    at: str | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """The reasoner chose."""

    action: Action


@dataclass(frozen=True, slots=True)
class Joined:
    """The slots of a step are satisfied, or can no longer be; or what it waited for is there, or never came."""

    ok: bool
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Ruled:
    """The callback gave its verdict. `failure`: the step had not succeeded, and nobody ruled otherwise."""

    verdict: Verdict
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Broke:
    """The reasoner or the callback raised or ran out of time, for the `failures`-th time."""

    failure: Failure
    failures: int
    callback: bool


Fact = Began | Decided | Joined | Ruled | Broke


@dataclass(frozen=True, slots=True)
class State:
    """The open part of a trace: where it stands and what has just happened there.

    `variables` are what expressions may name, `vars` among them; `turns` counts the jumps taken so far by their nodes.
    """

    node: str
    iteration: int
    steps: int
    policy: Policy
    fact: Fact
    result: Json = None
    variables: Mapping[str, Json] = field(default_factory=dict)
    turns: Mapping[str, int] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    open: tuple[str, ...] = ()


# --- decisions


@dataclass(frozen=True, slots=True)
class Route:
    """What was passed on the way to a decision: jumps, as (from, to), and the variables and turns after it.

    `vars`, `turns` and `open` None: as before. `marks` are the nodes that have ended and how, `open` those that have begun
    and not ended, both only in plans with branches. `sent` are errands that nobody waits for: (node, label, payload) each.
    """

    jumps: tuple[tuple[str, str], ...] = ()
    sent: tuple[tuple[str, str, Json], ...] = ()
    vars: Mapping[str, Json] | None = None
    turns: Mapping[str, int] | None = None
    marks: Mapping[str, str] | None = None
    open: tuple[str, ...] | None = None


STRAIGHT = Route()


@dataclass(frozen=True, slots=True)
class CallTools:
    """End this step and visit `node` with the action's tools. `limit`: so many slots at once (None: all)."""

    node: str
    action: Action
    iteration: int
    limit: int | None = None
    route: Route = STRAIGHT


@dataclass(frozen=True, slots=True)
class Handle:
    """Let the callback handle this step's result, on this step."""


@dataclass(frozen=True, slots=True)
class Visit:
    """End this step and let the reasoner of `node` decide, for the `iteration`-th time."""

    node: str
    iteration: int
    route: Route = STRAIGHT


@dataclass(frozen=True, slots=True)
class Rest:
    """End this step and wait at `node`: for a time, a signal, a person. `asked` is what is kept on the step.

    `seconds` or `until` (RFC 3339) say for how long at most; both None: for ever.
    """

    node: str
    iteration: int
    asked: Mapping[str, Json]
    seconds: float | None = None
    until: str | None = None
    route: Route = STRAIGHT


@dataclass(frozen=True, slots=True)
class Send:
    """End this step and have child traces do the errands of `node`: (label, payload) each.

    `terms` are how their answers become one (None: they do not), see cooperation.
    """

    node: str
    iteration: int
    errands: tuple[tuple[str, Json], ...]
    route: Route = STRAIGHT
    terms: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """End this step; each of these nodes begins, side by side. None of them: others are open, and go on."""

    nodes: tuple[str, ...] = ()
    route: Route = STRAIGHT


@dataclass(frozen=True, slots=True)
class Undo:
    """End this step and undo what the trace's tools have done, newest first; then the trace fails with `failure`."""

    failure: Failure | None = None
    route: Route = STRAIGHT


@dataclass(frozen=True, slots=True)
class Again:
    """Try this step's reasoner or callback once more, after the back-off that follows `failures` failures."""

    failures: int
    after_s: float | None


@dataclass(frozen=True, slots=True)
class Finish:
    """End the trace done; `delegate` names what another agent goes on with (None: nothing)."""

    result: Json
    delegate: Verdict | None = None
    route: Route = STRAIGHT


@dataclass(frozen=True, slots=True)
class Fail:
    """End the trace failed."""

    failure: Failure
    route: Route = STRAIGHT


Decision = CallTools | Handle | Visit | Rest | Send | Branch | Undo | Again | Finish | Fail


def advance(plan: BehaviorPlan, state: State) -> Decision:
    """The one next decision for the step at hand; same facts in, same decision out."""
    match state.fact:
        case Began(at=node):
            return _begun(plan, state, node)
        case Decided(action=action):
            return _chosen(plan, state, action) if action.slots else Handle()
        case Joined(ok=ok, failure=failure):
            if ok or state.policy.on_fail == "callback":
                return Handle()
            return _failed(plan, state, failure or Failure("E_TOOLS", "the tools of this step did not succeed"))
        case Ruled(verdict=verdict, failure=failure):
            return _obey(plan, state, verdict) if failure is None else _failed(plan, state, failure)
        case Broke() as broke:
            return _after_failure(plan, state, broke)
        case _:
            assert_never(state.fact)


def _begun(plan: BehaviorPlan, state: State, node: str | None) -> Decision:
    if node == plans.COMPENSATE:
        return Undo()
    if node is None and plan.input is not None and (wrong := misfit(plan.input, state.variables.get("payload"))):
        return Fail(
            Failure("E_PAYLOAD", f"the payload does not fit the input of {plan.chain}: {wrong}", permanent=True)
        )
    if plan.branches:
        return _Branches(plan, state).after(None) if node is None else _Branches(plan, state).begin(node)
    return _Walk(plan, state).to(node or plan.first.id)


def _chosen(plan: BehaviorPlan, state: State, action: Action) -> Decision:
    """The reasoner's tools, at the node behind it, which has to be the place for them."""
    node = plan.node(state.node)
    place = plan.node(node.next) if node.next else None
    if not isinstance(place, plans.Tools) or place.slots is not None:
        return Fail(Failure("E_ACTION", f"the chain has no place for tools that {state.node} chooses", permanent=True))
    if state.steps >= state.policy.max_steps:
        return Fail(_endless(state.policy))
    return CallTools(place.id, action, state.iteration + plan.leads_back(node.id, place.id))


def _obey(plan: BehaviorPlan, state: State, verdict: Verdict) -> Decision:
    match verdict.kind:
        case "continue":
            return _Branches(plan, state).after("done") if plan.branches else _Walk(plan, state).on()
        case "goto":
            if plan.branches or verdict.to is None or verdict.to not in {one.id for one in plan.nodes}:
                return Fail(Failure("E_CALLBACK", f"the verdict goes to a node that is not there: {verdict.to}"))
            return _Walk(plan, state).to(verdict.to)
        case "finish":
            return Finish(state.result if verdict.result is None else verdict.result)
        case "delegate":
            return Finish(state.result if verdict.result is None else verdict.result, delegate=verdict)
        case "abort":
            return Fail(Failure("E_ABORTED", verdict.reason or "the callback gave up"))
        case _:
            assert_never(verdict.kind)


def _failed(plan: BehaviorPlan, state: State, failure: Failure) -> Decision:
    """Where the step's node says a failure goes, or the end."""
    target = plan.on_fail
    if state.node not in plans.VIRTUAL:
        node = plan.node(state.node)
        target = (node.on_timeout if failure.code == "E_TIMEOUT" else None) or node.on_fail or target
    if target == plans.COMPENSATE:
        return Undo(failure)
    if plan.branches and target == plans.NEXT:
        return _Branches(plan, state).after("failed")
    return Fail(failure) if target in {None, plans.FAIL} else _Walk(plan, state).turn(state.node, str(target))


def _after_failure(plan: BehaviorPlan, state: State, broke: Broke) -> Decision:
    policy = state.policy
    attempts = policy.callback_attempts if broke.callback else policy.reasoner_attempts
    if not broke.failure.permanent and broke.failures < attempts:
        return Again(broke.failures, broke.failure.after_s)
    if broke.callback and policy.on_callback_fail == "finish":
        return Finish(state.result)
    return Fail(broke.failure) if broke.callback else _failed(plan, state, broke.failure)


class _Walk:
    """One way through the nodes that are no steps, from the step at hand to the decision."""

    def __init__(self, plan: BehaviorPlan, state: State) -> None:
        self._plan, self._state = plan, state
        self._at, self._iteration = state.node, state.iteration
        self._variables: dict[str, Json] = dict(state.variables)
        self._result = state.result
        self._route = STRAIGHT
        self._passed: set[str] = set()  # since the last jump: a way back that nothing counts has no end

    @property
    def route(self) -> Route:
        return self._route

    @property
    def result(self) -> Json:
        return self._result

    def along(self, route: Route) -> _Walk:
        """This walk, with what has been passed so far."""
        self._route = route
        return self

    def passes(self, node: plans.Place) -> Decision | str | None:
        """How a node of a plan with branches ends at once, or the decision that ends the trace; None: it is a step."""
        if node.when is not None and not holds(node.when, self._variables, _source(node, "when")):
            return "skipped"
        if isinstance(node, plans.ForEach) or (isinstance(node, plans.Delegate) and node.each is not None):
            return "done" if self._items(node) == [] else None
        if not _is_move(node):
            return None
        found = self._move(node)
        return "done" if isinstance(found, _Onward) else found

    def opened(self, name: str) -> Decision | None:
        """The visit to a step of a plan with branches; None where there is nothing left for it to do."""
        self._iteration += self._plan.leads_back(self._at, name)
        self._at = name
        found = self._open(self._plan.node(name))
        return None if isinstance(found, _Onward) else found

    def on(self) -> Decision:
        """Past the step at hand."""
        return self.to(self._following(self._at))

    def turn(self, node: str, target: str, *, limit: int = plans.MAX_TURNS) -> Decision:
        """To where a jump or a failure leads, unless it was taken too often."""
        found = self._turned(node, target, limit)
        return self.to(found.target) if isinstance(found, _Onward) else found

    def to(self, target: str | None) -> Decision:
        """The decision that going to this node comes to."""
        try:
            while target is not None:
                if target in {plans.FAIL, plans.COMPENSATE}:
                    failure = Failure("E_CHAIN", f"{self._at} led to a failure", permanent=True)
                    return Fail(failure, self._route) if target == plans.FAIL else Undo(failure, self._route)
                self._iteration += self._plan.leads_back(self._at, target)
                self._at = target
                if target in self._passed:
                    return Fail(_circle(f"{target} comes round to itself without a step or a jump"), self._route)
                self._passed.add(target)
                found = self._enter(self._plan.node(target))
                if not isinstance(found, _Onward):
                    return found
                target = found.target
        except MeshError as exc:
            return Fail(_broken(exc), self._route)
        return Finish(self._result, route=self._route)

    def _enter(self, node: plans.Place) -> Decision | _Onward:
        if node.when is not None and not holds(node.when, self._variables, _source(node, "when")):
            return _Onward(self._following(node.id))
        return self._move(node) if _is_move(node) else self._open(node)

    def _move(self, node: plans.Place) -> Decision | _Onward:
        """What a node that is no step comes to."""
        match node:
            case plans.Finish(result=result):
                return Finish(self._result if result is None else self._fill(node, result), route=self._route)
            case plans.Give(code=code, message=message):
                return Fail(Failure(code, str(self._fill(node, message)), permanent=True), self._route)
            case plans.Jump(then=then, limit=limit):
                return self._turned(node.id, then, limit)
            case plans.Switch(cases=cases, limit=limit):
                for case in cases:
                    if holds(case.when, self._variables, _source(node, "case")):
                        return self._turned(node.id, case.then, limit)
            case plans.Assign(values=values):
                self._assign({name: self._fill(node, one) for name, one in values.items()})
            case plans.Delegate(errands=errands):
                sent = tuple((node.id, one.label, self._fill(node, one.payload)) for one in errands)
                self._route = replace(self._route, sent=(*self._route.sent, *sent))
            case _:
                raise AssertionError(f"{node.id} is a step")
        return _Onward(node.next)

    def _open(self, node: plans.Place) -> Decision | _Onward:  # noqa: PLR0911 - one a kind
        """The visit to a node that is a step."""
        if self._state.steps >= self._state.policy.max_steps:
            return Fail(_endless(self._state.policy), self._route)
        match node:
            case plans.Reason():
                return Visit(node.id, self._iteration, self._route)
            case plans.Tools():
                return self._tools(node)
            case plans.ForEach():
                return self._each(node)
            case plans.Delegate(each=str()):
                return self._send_each(node)
            case plans.Delegate(errands=errands):
                sent = tuple((one.label, self._fill(node, one.payload)) for one in errands)
                return Send(node.id, self._iteration, sent, self._route, terms_of(node, self._variables))
            case plans.Wait() | plans.Signal() | plans.Approval():
                return self._rest(node)
            case _:
                raise AssertionError(f"{node.id} is no step")

    def _tools(self, node: plans.Tools) -> Decision:
        if node.slots is None:
            return Fail(
                Failure("E_CHAIN", f"{node.id} runs what a reasoner chose, and none stands before it"), self._route
            )
        slots = tuple(tuple(self._use(node, use) for use in slot) for slot in node.slots)
        action = Action(slots=slots, strategy=node.strategy, require=_need(node.require, len(slots)))
        return CallTools(node.id, action, self._iteration, route=self._route)

    def _each(self, node: plans.ForEach) -> Decision | _Onward:
        items = self._items(node)
        if not items:
            return _Onward(node.next)
        uses = []
        for index, item in enumerate(items):
            use = self._use(node, node.use, {"item": item, "index": index})
            uses.append((use.model_copy(update={"as_": f"item-{index}"}),))
        action = Action(slots=tuple(uses), strategy="parallel", require=_need(node.require, len(uses)))
        return CallTools(node.id, action, self._iteration, node.limit, self._route)

    def _send_each(self, node: plans.Delegate) -> Decision | _Onward:
        items, payload = self._items(node), node.errands[0].payload
        if not items:
            return _Onward(node.next)
        if len(items) > plans.MAX_ITEMS:
            raise BadRule(f"node {node.id} sends a child for each of too many", value=len(items),
                          expected=f"at most {plans.MAX_ITEMS} items")  # fmt: skip
        sent = tuple(
            (f"item-{index}", self._fill(node, payload, {"item": item, "index": index}))
            for index, item in enumerate(items)
        )
        return Send(node.id, self._iteration, sent, self._route)

    def _items(self, node: plans.ForEach | plans.Delegate) -> list[Json]:
        """What it is done for; where that is nothing, its result is an empty list. Raises BadRule for what is no list."""
        said = node.items if isinstance(node, plans.ForEach) else node.each
        items = fill({"=": said}, self._variables, _source(node, "for_each"))
        if not isinstance(items, list):
            raise BadRule(f"node {node.id} is for each of what is no list", value=items, expected="a list")
        if not items:
            self._result = self._variables["result"] = []
        return items

    def _rest(self, node: plans.Wait | plans.Signal | plans.Approval) -> Decision:
        match node:
            case plans.Wait(seconds=seconds, until=until, cron=cron):
                asked: dict[str, Json] = {"cron": cron, "timezone": node.timezone} if cron else {}
                after_s = None if seconds is None else _seconds(node, self._fill(node, seconds))
                moment = None if until is None else _moment(node, self._fill(node, until))
                return Rest(node.id, self._iteration, asked, after_s, moment, self._route)
            case plans.Signal():
                asked = {"signal": node.signal} | ({"schema": node.payload_schema} if node.payload_schema else {})
                return Rest(node.id, self._iteration, asked, node.within_s, route=self._route)
            case plans.Approval():
                asked = {
                    "ask": self._fill(node, node.ask), "who": list(node.who), "options": list(node.options),
                    "reason_required": node.reason_required,
                }  # fmt: skip
                if node.escalate is not None:
                    asked["escalate"] = node.escalate.model_dump(mode="json")
                return Rest(node.id, self._iteration, asked, node.within_s, route=self._route)

    # --- small parts

    def _turned(self, node: str, target: str, limit: int) -> Fail | _Onward:
        """Where a jump leads, which is noted; Fail when it was taken too often."""
        turns = self._state.turns if self._route.turns is None else self._route.turns
        taken = turns.get(node, 0) + 1
        if taken > limit:
            return Fail(_circle(f"{node} jumped more than {limit} times"), self._route)
        jumps = (*self._route.jumps, (node, target))
        self._route = replace(self._route, jumps=jumps, turns={**turns, node: taken})
        self._passed.clear()
        if target == plans.NEXT:
            return _Onward(self._following(node))
        return _Onward(None if target == plans.END else target)

    def _following(self, name: str) -> str | None:
        """The node after this one; past the place for chosen tools, where a reasoner chose none."""
        node = self._plan.node(name)
        following: str | None = node.next
        if isinstance(node, plans.Reason) and following is not None:
            place = self._plan.node(following)
            if isinstance(place, plans.Tools) and place.slots is None:
                return place.next
        return following

    def _assign(self, values: Mapping[str, Json]) -> None:
        now = {**(self._variables.get("vars") or {}), **values}
        self._variables["vars"] = now
        self._route = replace(self._route, vars=now)

    def _use(self, node: plans.Place, use: ToolUse, more: Mapping[str, Json] | None = None) -> ToolUse:
        return use.model_copy(update={"args": self._fill(node, use.args, more)})

    def _fill(self, node: plans.Place, value: Json, more: Mapping[str, Json] | None = None) -> Json:
        return fill(value, {**self._variables, **more} if more else self._variables, _source(node, "value"))


class _Branches:
    """What may begin when a step of a plan with branches has ended: every node whose needs have."""

    def __init__(self, plan: BehaviorPlan, state: State) -> None:
        self._plan, self._state = plan, state
        self._walk = _Walk(plan, state)

    def after(self, mark: str | None) -> Decision:
        """The decision once the node at hand has ended so; None: the trace begins."""
        return self._after(self._state.node, mark)

    def begin(self, name: str) -> Decision:
        """The visit to a node whose time has come, though what it is done for may be gone by now."""
        try:
            return self._walk.opened(name) or self._after(name, "done")
        except MeshError as exc:
            return Fail(_broken(exc), self._walk.route)

    def _after(self, ended: str, mark: str | None) -> Decision:
        so_far = self._walk.route
        marks = dict(self._state.marks if so_far.marks is None else so_far.marks)
        running = list(self._state.open if so_far.open is None else so_far.open)
        if mark is not None:
            marks[ended] = mark
            running = [one for one in running if one != ended]
        begun: list[str] = []
        try:
            while (node := self._next(marks, {*running, *begun})) is not None:
                found = self._walk.passes(node)
                if found is None:
                    begun.append(node.id)
                elif isinstance(found, str):
                    marks[node.id] = found
                else:
                    return found
        except MeshError as exc:
            return Fail(_broken(exc), self._walk.route)
        self._walk.along(replace(self._walk.route, marks=marks, open=(*running, *begun)))
        if len(begun) == 1 and not running:
            return self.begin(begun[0])
        if begun or running:
            return Branch(tuple(begun), self._walk.route)
        return Finish(self._walk.result, route=self._walk.route)

    def _next(self, marks: Mapping[str, str], begun: set[str]) -> plans.Place | None:
        for node in self._plan.nodes:
            if node.id not in marks and node.id not in begun and all(one in marks for one in node.needs or ()):
                return node
        return None


@dataclass(frozen=True, slots=True)
class _Onward:
    target: str | None


def _is_move(node: plans.Place) -> bool:
    return isinstance(node, plans.MOVES) or (isinstance(node, plans.Delegate) and not node.wait)


def _source(node: plans.Place, what: str) -> str:
    return f"node {node.id}, {what}"


def _seconds(node: plans.Wait, value: Json) -> float:
    """Raises BadRule for what is no number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WAIT_S:
        return value
    raise BadRule(f"node {node.id} waits for what is no number of seconds", value=value,
                  expected=f"a number from 0 to {MAX_WAIT_S}")  # fmt: skip


def _moment(node: plans.Wait, value: Json) -> str:
    """Raises BadRule for what is no moment."""
    try:
        if isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None:
            return value
    except ValueError:
        pass
    raise BadRule(f"node {node.id} waits until what is no moment", value=value, expected="RFC 3339, with its zone")


def _broken(exc: MeshError) -> Failure:
    return Failure(exc.code, f"{exc.what}: {exc.value}"[:2000], permanent=True)


def _circle(why: str) -> Failure:
    return Failure("E_LOOP_LIMIT", why, permanent=True)


def _endless(policy: Policy) -> Failure:
    return Failure("E_STEP_LIMIT", f"no end within {policy.max_steps} steps", permanent=True)


def _need(require: Require, slots: int) -> Require:
    """`require`, and all where it asks for more than there is."""
    return "all" if isinstance(require, int) and require > slots else require
