"""advance: total, deterministic, never stalls, bounded; the same ends as a naive interpreter of the same plans."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmesh.execution.advance import (
    Again,
    Began,
    Broke,
    CallTools,
    Decided,
    Decision,
    Fact,
    Fail,
    Finish,
    Handle,
    Joined,
    Rest,
    Ruled,
    Send,
    State,
    Undo,
    Visit,
    advance,
)  # fmt: skip
from agentmesh.execution.callbacks import StepResult, default_verdict
from agentmesh.execution.plan import BehaviorPlan, default_plan
from agentmesh.records import Failure, Json, Policy, Verdict
from tests.execution.naive import PAYLOAD, Naive, Told, Turn
from tests.execution.random_plans import Pick, make_plan, make_policy, make_world

PLAN = default_plan()
ENDS = ("E_RULE", "E_STEP_LIMIT", "E_LOOP_LIMIT", "E_CHAIN", "E_ACTION", "E_MINE", "E_X", "E_TIMEOUT")


@dataclass
class Shell:
    """Runs a trace as executors do, without rows: facts to `advance`, its decisions to a log like the naive one's."""

    plan: BehaviorPlan
    policy: Policy
    world: list[Turn]
    log: list[tuple[Any, ...]] = field(default_factory=list)
    sent: list[tuple[Any, ...]] = field(default_factory=list)
    visited: list[tuple[str, int]] = field(default_factory=list)
    vars: dict[str, Json] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    steps: int = 1
    iteration: int = 1

    def tell(self) -> Told:
        self.node, kind = self.plan.opening
        decision: Decision
        if kind == "start":
            decision = self.decide(Began(), None)
        else:
            self.note("reason", self.node, 1)
            decision = self.reason()
        while not isinstance(decision, Finish | Fail | Undo):
            decision = self.enter(decision)
        self.passed(decision)
        match decision:
            case Finish(result=result, delegate=delegate):
                self.log.append(("end", "done", result, delegate.to if delegate else None))
            case Fail(failure=failure):
                self.log.append(("end", "failed", failure.code))
            case Undo(failure=failure):
                self.log.append(("end", "undone", failure.code, None))
        return Told(self.log, self.sent, self.vars, self.turns)

    def decide(self, fact: Fact, result: Json) -> Decision:
        variables = {"vars": self.vars, "result": result, "payload": PAYLOAD}
        return advance(
            self.plan, State(self.node, self.iteration, self.steps, self.policy, fact, result, variables, self.turns)
        )

    def enter(self, decision: Decision) -> Decision:
        """Open the step that was decided on, and let the world have its turn at it."""
        assert isinstance(decision, Visit | CallTools | Rest | Send), decision
        self.passed(decision)
        self.node, self.iteration, self.steps = decision.node, decision.iteration, self.steps + 1
        node = self.plan.node(decision.node)
        match decision:
            case Visit():
                self.note("reason", self.node, self.iteration)
                return self.reason()
            case CallTools(action=action, limit=limit):
                slots = [tuple((one.label, one.tool, one.args) for one in slot) for slot in action.slots]
                if node.kind == "for_each":
                    slots = [(one,) for slot in slots for one in slot]
                self.note("tools", self.node, self.iteration, action.strategy, action.require, limit, slots)
            case Send(errands=errands, terms=terms):
                self.note("send", self.node, self.iteration, list(errands), terms)
            case Rest() if node.kind == "wait":
                self.note(
                    "wait", self.node, self.iteration, decision.seconds, decision.until, decision.asked.get("cron")
                )
            case Rest() if node.kind == "signal":
                asked = decision.asked
                self.note("signal", self.node, self.iteration, asked["signal"], asked.get("schema"), decision.seconds)
            case Rest():
                asked = decision.asked
                late = asked.get("escalate") and (asked["escalate"]["after_s"], list(asked["escalate"]["who"]))
                self.note("approval", self.node, self.iteration, asked["ask"], asked["who"], asked["options"],
                          asked["reason_required"], late, decision.seconds)  # fmt: skip
        turn = self.turn
        return self.concludes(turn.failure, turn.value)

    def note(self, kind: str, node: str, iteration: int, *more: Any) -> None:
        self.turn = self.world[(self.steps - 1) % len(self.world)]
        self.log.append((kind, node, iteration, *more))
        self.visited.append((node, iteration))

    def passed(self, decision: Any) -> None:
        route = decision.route
        self.log += [("jump", *one) for one in route.jumps]
        self.sent += route.sent
        self.vars = self.vars if route.vars is None else dict(route.vars)
        self.turns = self.turns if route.turns is None else dict(route.turns)

    def tries(self, of: tuple[Any, ...]) -> Iterator[tuple[int, Any]]:
        """Each try with its number; whoever asks for more than a policy allows was not stopped."""
        for n in range(1, 5):
            yield n, of[min(n, len(of)) - 1]
        pytest.fail("tried again and again")

    def reason(self) -> Decision:
        for n, said in self.tries(self.turn.says):
            if isinstance(said, Failure):
                decision = self.decide(Broke(said, n, callback=False), None)
            else:
                decision = self.decide(Decided(said), None)
                if isinstance(decision, Handle):
                    return self.concludes(None, said.answer)
                if isinstance(decision, Fail):  # as executors do: what cannot be done is the reasoner's failure
                    decision = self.decide(Broke(decision.failure, n, callback=False), None)
            if not isinstance(decision, Again):
                return decision
        raise AssertionError

    def concludes(self, failure: Failure | None, value: Json) -> Decision:
        decision = self.decide(Joined(failure is None, failure), value)
        if not isinstance(decision, Handle):
            return decision
        for n, rule in self.tries(self.turn.rules):
            if isinstance(rule, Failure):
                decision = self.decide(Broke(rule, n, callback=True), value)
            elif rule is None:
                otherwise = self.plan.node(self.node).otherwise
                result = StepResult(UUID(int=0), self.node, ok=failure is None, answered=False, value=value,
                                    otherwise=otherwise)  # fmt: skip
                decision = self.decide(Ruled(default_verdict(result, self.policy), failure), value)
            else:
                decision = self.decide(Ruled(rule), value)
            if not isinstance(decision, Again):
                return decision
        raise AssertionError


def same_way(pick: Pick) -> Told:
    """Make a plan and a world; `advance` leads through them as the naive interpreter goes, twice the same."""
    plan, policy, world = make_plan(pick), make_policy(pick), make_world(pick)
    shell = Shell(plan, policy, world)
    told = shell.tell()
    assert told == Naive(plan, policy, world).tell()
    assert shell.steps <= policy.max_steps
    assert len(set(shell.visited)) == len(shell.visited)  # no visit has the idempotency keys of another
    again = BehaviorPlan.model_validate_json(plan.model_dump_json(by_alias=True))
    assert (again.hash, Shell(again, policy, world).tell()) == (plan.hash, told)
    return told


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_plan_goes_the_way_a_naive_interpreter_goes(data):
    same_way(lambda of: data.draw(st.sampled_from(of)))


def test_thousands_of_plans_do_and_every_kind_of_node_and_end_is_among_them():
    seen = Counter()
    for seed in range(3000):
        told = same_way(random.Random(seed).choice)
        seen.update({one[0] if one[0] != "end" else one[2] if one[1] == "failed" else one[1] for one in told.log})
        seen["sent"] += bool(told.sent)
        seen[f"{min(9, len(told.log))} lines"] += 1
    for one in (
        "tools",
        "reason",
        "jump",
        "wait",
        "signal",
        "approval",
        "send",
        "done",
        "undone",
        "sent",
        *ENDS,
        "9 lines",
    ):
        assert seen[one] >= 20, seen


def state(plan: BehaviorPlan, node: str, fact: Fact, **more: Any) -> State:
    return State(node, 1, 1, Policy(), fact, **more)


def chain(*nodes: dict[str, Json]) -> BehaviorPlan:
    return BehaviorPlan.model_validate_json(json.dumps({"chain": "c", "nodes": nodes}))


def test_a_thousand_empty_lists_in_a_row_are_passed_in_one_decision():
    use = {"tool": "t"}
    nodes = [
        {"id": f"n{n}", "kind": "for_each", "items": "vars.none", "use": use, "next": f"n{n + 1}"} for n in range(999)
    ]
    plan = chain(*nodes, {"id": "n999", "kind": "finish"})
    variables = {"vars": {"none": []}, "result": 1}
    assert advance(plan, state(plan, "start", Began(), variables=variables)) == Finish([])


def test_ten_thousand_jumps_are_taken_in_one_decision():
    plan = chain(
        {"id": "add", "kind": "set", "values": {"n": {"=": "has(vars.n) ? vars.n + 1 : 1"}}, "next": "back"},
        {"id": "back", "kind": "jump", "then": "add", "when": "vars.n < 10000", "limit": 10_000},
    )
    decision = advance(plan, state(plan, "start", Began(), variables={"vars": {}, "result": None}))
    assert isinstance(decision, Finish)
    assert decision.route.vars == {"n": 10_000}
    assert decision.route.turns == {"back": 9_999}


def test_a_plan_that_comes_round_to_itself_without_a_step_fails():
    plan = chain(
        {"id": "a", "kind": "set", "values": {}, "next": "b"}, {"id": "b", "kind": "set", "values": {}, "next": "a"}
    )
    decision = advance(plan, state(plan, "start", Began()))
    assert isinstance(decision, Fail)
    assert decision.failure.code == "E_LOOP_LIMIT"


def test_a_verdict_without_a_result_finishes_with_the_steps_own():
    assert advance(PLAN, state(PLAN, "reason", Ruled(Verdict(kind="finish")), result=42)) == Finish(42)


def test_failed_tools_go_to_the_callback_unless_the_policy_says_fail():
    assert isinstance(advance(PLAN, State("tools", 1, 2, Policy(), Joined(ok=False))), Handle)
    assert isinstance(advance(PLAN, State("tools", 1, 2, Policy(on_fail="fail"), Joined(ok=False))), Fail)


def test_the_same_plan_has_the_same_hash_and_another_has_another():
    other = BehaviorPlan(chain="other", nodes=PLAN.nodes)
    assert default_plan().hash == PLAN.hash != other.hash
