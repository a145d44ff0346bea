"""The one place that decides what happens next: `advance(plan, state) -> decision`. Pure.

No clock, no I/O, no randomness: the same facts give the same decision, in a worker, in a test and in a replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from agentmesh.execution.plan import BehaviorPlan
from agentmesh.records import Action, Failure, Json, Policy, Verdict

# --- facts: what has just become true of the step at hand


@dataclass(frozen=True, slots=True)
class Decided:
    """The reasoner chose."""

    action: Action


@dataclass(frozen=True, slots=True)
class Joined:
    """The slots of a tools step are satisfied, or can no longer be."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Ruled:
    """The callback gave its verdict."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Broke:
    """The reasoner or the callback raised or ran out of time, for the `failures`-th time."""

    failure: Failure
    failures: int
    callback: bool


Fact = Decided | Joined | Ruled | Broke


@dataclass(frozen=True, slots=True)
class State:
    """The open part of a trace: where it stands and what has just happened there."""

    node: str
    iteration: int
    steps: int
    policy: Policy
    fact: Fact
    result: Json = None


# --- decisions


@dataclass(frozen=True, slots=True)
class CallTools:
    """End this reason step and visit `node` with the action's tools."""

    node: str
    action: Action


@dataclass(frozen=True, slots=True)
class Handle:
    """Let the callback handle this step's result, on this step."""

    node: str


@dataclass(frozen=True, slots=True)
class Visit:
    """End this step and go to `node`, for the `iteration`-th time."""

    node: str
    iteration: int


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


@dataclass(frozen=True, slots=True)
class Fail:
    """End the trace failed."""

    failure: Failure


Decision = CallTools | Handle | Visit | Again | Finish | Fail


def advance(plan: BehaviorPlan, state: State) -> Decision:
    """The one next decision for the step at hand; same facts in, same decision out."""
    match state.fact:
        case Decided(action=action):
            return CallTools(plan.of_kind("tools").id, action) if action.slots else Handle(plan.of_kind("callback").id)
        case Joined(ok=ok):
            if ok or state.policy.on_fail == "callback":
                return Handle(plan.of_kind("callback").id)
            return Fail(Failure("E_TOOLS", "the tools of this step did not succeed"))
        case Ruled(verdict=verdict):
            return _obey(plan, state, verdict)
        case Broke() as broke:
            return _after_failure(state, broke)
        case _:
            assert_never(state.fact)


def _obey(plan: BehaviorPlan, state: State, verdict: Verdict) -> Decision:
    match verdict.kind:
        case "continue":
            if state.steps >= state.policy.max_steps:
                return Fail(Failure("E_STEP_LIMIT", f"no end within {state.policy.max_steps} steps"))
            return Visit(plan.first.id, state.iteration + 1)
        case "finish":
            return Finish(state.result if verdict.result is None else verdict.result)
        case "delegate":
            return Finish(state.result if verdict.result is None else verdict.result, delegate=verdict)
        case "abort":
            return Fail(Failure("E_ABORTED", verdict.reason or "the callback gave up"))
        case _:
            assert_never(verdict.kind)


def _after_failure(state: State, broke: Broke) -> Decision:
    policy = state.policy
    attempts = policy.callback_attempts if broke.callback else policy.reasoner_attempts
    if not broke.failure.permanent and broke.failures < attempts:
        return Again(broke.failures, broke.failure.after_s)
    if broke.callback and policy.on_callback_fail == "finish":
        return Finish(state.result)
    return Fail(broke.failure)
