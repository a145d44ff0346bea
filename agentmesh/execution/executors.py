"""Executors: run the steps of a trace that this worker holds, one commit a step.

The shell around `advance`: gather the facts, let it decide, land the decision whole, ring what is ready now. The
commit that ends a step also starts the next one, so that nothing runs unrecorded. Whoever lost the trace stops.
"""

from __future__ import annotations

import random
import traceback
from dataclasses import replace
from typing import Any, ClassVar

import structlog

from agentmesh.behavior.reasoners import parse_action
from agentmesh.behavior.session import Session
from agentmesh.execution import inline
from agentmesh.execution.advance import (
    Again,
    Broke,
    CallTools,
    Decided,
    Fact,
    Fail,
    Finish,
    Joined,
    Ruled,
    State,
    Visit,
    advance,
)  # fmt: skip
from agentmesh.execution.callbacks import StepResult, effects_of
from agentmesh.execution.draft import MAX_TEXT, Draft, LiveCall, Position
from agentmesh.execution.failures import AWAY, failure_of, refused, theirs
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.execution.router import Dispatch
from agentmesh.execution.views import HostedAgent, Parts, Views, answered
from agentmesh.infrastructure.faults import point
from agentmesh.records import Action, Failure, Json, Policy, Ring, Strategy, new_id
from agentmesh.state.calls import CONTINUATION, call_ring
from agentmesh.state.changes import DeadLetter, End, NewAttempt, NewStep, NewTrace
from agentmesh.state.traces import Taken

log = structlog.get_logger("agentmesh.executor")


class Executor:
    """Runs the steps of held traces of one agent. Subclasses choose how an action that does not say so is run."""

    strategy: ClassVar[Strategy] = "serial"

    def __init__(self, agent: HostedAgent, parts: Parts) -> None:
        self.agent, self.parts = agent, parts
        self._views = Views(agent, parts)

    def run(self, taken: Taken) -> str:
        """Work the trace until it ends, waits, is handed on or is lost; which of these it was."""
        at: Position | None
        try:
            last = at = Position.of(taken)
        except ValueError as exc:  # a policy that this release does not read
            last = Position.of(taken, Policy())
            at = self._crashed(last, exc)
        while at is not None:
            last, at = at, self._step(at)
        return last.outcome

    # --- one step -------------------------------------------------------------------------------------------------

    def _step(self, at: Position) -> Position | None:
        """Where it goes on from here. What nobody foresaw ends the trace: given back, it would come again for ever."""
        landed = at.fate.landed
        try:
            return self._advance(at)
        except Exception as exc:
            away = isinstance(exc, AWAY) and not refused(exc)
            if away or at.fate.landed != landed:  # it is no longer where `at` says
                raise
            return self._crashed(at, exc)

    def _crashed(self, at: Position, exc: Exception) -> Position | None:
        log.error("EXEC_FAIL", trace_id=str(at.held.id), agent=at.held.agent, exc_info=exc)
        failure = failure_of(exc, code="E_INTERNAL")
        draft = Draft(at)
        draft.ends(at.attempt_id, "failed", failure.as_json())
        inline.abandon(at, failure, draft)
        trace = "".join(traceback.format_exception(exc))[-MAX_TEXT:]
        draft.letters.append(
            DeadLetter(failure.code, f"{failure.code}:{at.held.agent}:{at.node}", at.step_id, {"traceback": trace})
        )
        return self._end(at, draft, Fail(failure), status="failed")

    def _advance(self, at: Position) -> Position | None:
        if at.phase == "callback":
            return self._conclude(at, self._views.result(at), Draft(at))
        if at.kind == "tools":
            return self._inline(at)
        return self._reason(at)

    def _reason(self, at: Position) -> Position | None:
        if at.failures >= at.policy.reasoner_attempts:
            return self._broke(at, Draft(at), at.last_failure(), spent=True)
        draft = Draft(at)
        try:
            view = self._views.session(at)
            point("reason.before")
            action = parse_action(theirs(lambda: self._asked(view)), default_strategy=self.strategy)
            point("reason.after_answer")
            draft.notes(view.taken_notes(), self.parts.redact)
            step = self._tools_step(at)
            decision = self._decide(at, Decided(action))
            plan = self._resolve(at, action, step) if isinstance(decision, CallTools) else None
            draft.event("REASONER_ACTION", **self._views.chosen(at, action))
            draft.step(**self._views.kept(at, action))
        except AWAY:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a reasoner raises is its step's failure
            return self._broke(at, Draft(at), failure_of(exc, code="E_REASONER"))
        if plan is not None:
            return self._dispatch(at, draft, action, step, plan)
        return self._answered(at.answering(action, view), draft, action)

    def _asked(self, view: Session) -> object:
        if getattr(self.agent.reasoner, "prompts", False):
            self.agent.reasoner.inject_prompt(view)  # type: ignore[attr-defined]
        return self.agent.reasoner.select_action(view)

    def _resolve(self, at: Position, action: Action, step: NewStep) -> Dispatch:
        plan = self.parts.router.resolve(
            action, held=at.held, step=step, allowed=self.agent.spec.tools, policy=at.policy
        )
        return self._views.resolved(at, plan)

    def _dispatch(self, at: Position, draft: Draft, action: Action, step: NewStep, plan: Dispatch) -> Position | None:
        """End the reason step and open the tools step: on this worker when all of it is inline, else as a chord."""
        draft.step(status="done")
        draft.ends(at.attempt_id, "won")
        made = replace(
            step, status="running" if plan.inline else "waiting", require=plan.require, need=plan.need, slots=plan.slots,
            pending=plan.slots, callbacks=effects_of(at.policy), timeout_s=sum(one.timeout_s for one in plan.calls),
            action={"strategy": action.strategy},
        )  # fmt: skip
        draft.new_steps += [made, *plan.groups]
        draft.new_calls += plan.calls
        draft.event("TOOL_DISPATCH", made.id, strategy=action.strategy, require=plan.require,
                    tools=[one.label for one in plan.calls])  # fmt: skip
        live = [LiveCall.of(one, new_id() if one.status == "running" else None) for one in plan.calls]
        draft.new_attempts += [one.attempt() for one in live if one.attempt_id is not None]
        point("tools.before_commit")
        landed = draft.land(self.parts.db, keep=plan.inline)
        point("tools.after_commit")
        if landed is None:
            return at.lost()
        if landed.kept:
            point("next.after_commit")
            return at.on(landed, made, calls=live, steps=at.held.steps + 1)
        header = [call_ring(one.call | {"trace_id": at.held.id}) for one in live if one.call["status"] != "held"]
        body = Ring("step", made.id, 1, at.held.queue, f"agent.{at.held.agent}", at.held.id, _up(at.held.priority))
        self.parts.chord(header, body)
        point("tools.after_ring")
        return at.left("waiting")

    def _answered(self, at: Position, draft: Draft, action: Action) -> Position | None:
        """The reasoner answered: its callback runs on the same step, in the same commit unless a handler must run."""
        callbacks = effects_of(at.policy)
        draft.step(callbacks=callbacks)
        draft.ends(at.attempt_id, "won")
        if not at.policy.callbacks:
            return self._conclude(at, answered(at, action), draft)
        return self._open_callback(at, draft)

    def _open_callback(self, at: Position, draft: Draft) -> Position | None:
        """Land what is known and start the callback as an attempt of its own: its handlers may take their time."""
        attempt = NewAttempt(new_id(), at.step_id, "callback", at.attempt_n + 1, at.step_epoch)
        draft.step(status="running", phase="callback", failures=0, timeout_s=at.policy.callback_timeout_s)
        draft.new_attempts.append(attempt)
        landed = draft.land(self.parts.db, keep=True)
        point("reason.after_commit")
        if landed is None:
            return at.lost()
        return at.calling_back(landed, attempt) if landed.kept else at.left("paused")

    # --- inline tools ---------------------------------------------------------------------------------------------

    def _inline(self, at: Position) -> Position | None:
        """One round of the calls whose turn it is, all at once; then the next of their slots, or the callback."""
        running = [one for one in at.calls if one.call["status"] == "running"]
        outcomes = inline.run_round(running, at, self.parts)
        draft = Draft(at)
        folded, calls = inline.count(at, outcomes, draft)
        if folded.joined:
            done = at.with_calls(calls, wins=folded.wins)
            draft.step(pending=0, wins=folded.wins)
            if at.policy.callbacks:
                return self._open_callback(done, draft)
            return self._conclude(done, self._views.result(done), draft)
        keep = not folded.later
        draft.step(status="running" if keep else "waiting", pending=folded.pending, wins=folded.wins,
                   timeout_s=sum(one.call["timeout_s"] for one in calls))  # fmt: skip
        rings = inline.start_next(at, calls, folded, draft, keep=keep)
        landed = draft.land(self.parts.db, keep=keep)
        if landed is None:
            return at.lost()
        if not landed.kept:
            self.parts.ring(rings)
            return at.left("waiting")
        point("next.after_commit")
        return at.with_calls(calls, landed=landed, wins=folded.wins, pending=folded.pending)

    # --- the callback ---------------------------------------------------------------------------------------------

    def _conclude(self, at: Position, result: StepResult, draft: Draft) -> Position | None:
        """Handle the result and land the verdict with everything it means."""
        if at.failures >= at.policy.callback_attempts and at.phase == "callback":
            return self._broke(at, draft, at.last_failure(), callback=True, spent=True, result=result.value)
        decision = self._decide(at, Joined(result.ok))
        if isinstance(decision, Fail):
            if at.phase == "callback":
                draft.ends(at.attempt_id, "won")
            return self._end(at, draft, Fail(_first(result) or decision.failure), status="failed")
        try:
            view = replace(at.view or self._views.session(at), result=result.value)
            point("callback.before")
            theirs(lambda: self.agent.reasoner.feedback(result.value))
            outcome = theirs(lambda: self.parts.callback.handle(result, at.policy, view))
            point("callback.after_handler")
            draft.notes(view.taken_notes(), self.parts.redact)
            output = self._views.aside(at, at.output(result), "the result of a step")
            memory = self._views.remembered(at, outcome.memory)
            decision = self._decide(at, Ruled(outcome.verdict), result=result.value)
            child = self._child(at, decision)
        except AWAY:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a handler raises is its callback's failure
            return self._broke(at, draft, failure_of(exc, code="E_CALLBACK"), callback=True, result=result.value)
        draft.event("REASONER_FEEDBACK", ok=result.ok)
        if at.phase == "callback":
            draft.ends(at.attempt_id, "won")
        if isinstance(decision, Fail) and outcome.defaulted:  # nobody handled it: a retry by hand may still do so
            return self._end(at, draft, Fail(_first(result) or decision.failure), status="failed")
        if memory:
            draft.memory += memory
            draft.event("MEMORY_WRITE", keys=[f"{one.type}:{one.key}" for one in memory])
        draft.event("CALLBACK_RESULT", ok=result.ok, callbacks=list(outcome.effects))
        draft.event("CALLBACK_NEXT_ACTION", verdict=outcome.verdict.kind)
        draft.effects += [(at.step_id, name) for name in outcome.effects]
        draft.step(output=output)
        if isinstance(decision, Visit):
            return self._loop(at, draft, decision)
        if child is not None:
            draft.children.append(child)
            draft.event("EXEC_DELEGATE", to=child.agent, intent=child.intent, trace=str(child.id))
        return self._end(at, draft, decision)

    def _child(self, at: Position, decision: object) -> NewTrace | None:
        if isinstance(decision, Finish) and decision.delegate is not None:
            return self.parts.delegate(at.held, decision.delegate)
        return None

    def _loop(self, at: Position, draft: Draft, decision: Visit) -> Position | None:
        step = NewStep(
            new_id(), decision.node, "reason", "running", decision.iteration, at.held.steps + 1, at.step_id,
            timeout_s=at.policy.reasoner_timeout_s,
        )  # fmt: skip
        attempt = NewAttempt(new_id(), step.id, "reason", 1, 1)
        draft.step(status="done")
        draft.new_steps.append(step)
        draft.new_attempts.append(attempt)
        draft.event("EXEC_LOOP", step.id, node=decision.node, iteration=decision.iteration)
        landed = draft.land(self.parts.db, keep=True)
        point("callback.after_commit")
        if landed is None:
            return at.lost()
        return at.looped(landed, step, attempt) if landed.kept else at.left("paused")

    # --- ends -----------------------------------------------------------------------------------------------------

    def _broke(
        self,
        at: Position,
        draft: Draft,
        failure: Failure,
        *,
        callback: bool = False,
        spent: bool = False,
        result: Json = None,
    ) -> Position | None:
        """The reasoner or the callback failed: once more after a back-off, or the end its policy says.

        `spent`: its attempts were used up before this one, which is ended without having run.
        """
        own = callback == (at.phase == "callback")  # else it ran in the same commit as what it handles
        failures = (at.failures if own else 0) + (0 if spent else 1)
        decision = self._decide(at, Broke(failure, failures, callback), result=result)
        if own:
            draft.ends(at.attempt_id, "released" if spent else "failed", failure.as_json())
        draft.event("EXEC_ROLLBACK", error=failure.as_json(), failures=failures)
        if isinstance(decision, Again):
            phase = "callback" if callback else "run"
            draft.step(status="ready", phase=phase, failures=failures, error=failure.as_json(),
                       wake_s=_pause_s(at.policy, decision))  # fmt: skip
            return at.left("retrying") if draft.land(self.parts.db, keep=False) else at.lost()
        return self._end(at, draft, decision, status="failed")

    def _end(self, at: Position, draft: Draft, decision: object, *, status: str = "done") -> Position | None:
        match decision:
            case Finish(result=result):
                value = self._views.aside(at, result, "the result of the trace")
                draft.step(status="done" if status == "done" else "failed")
                draft.event("EXEC_DONE")
                draft.end = End("done", result=value)
            case Fail(failure=failure):
                draft.step(status=status, error=failure.as_json())
                draft.event("EXEC_FAIL", error_code=failure.code, message=failure.message[:500])
                draft.end = End("failed", error=failure.as_json())
            case _:
                raise AssertionError(f"{decision} is no end")
        point("finish.before_commit")
        landed = draft.land(self.parts.db, keep=False)
        point("finish.after_commit")
        if landed is None:
            return at.lost()
        log.info(
            "EXEC_DONE" if draft.end.status == "done" else "EXEC_FAIL", trace_id=str(at.held.id), agent=at.held.agent
        )
        self.parts.ring([_first_ring(child) for child in draft.children])
        return at.left(draft.end.status)

    # --- facts ----------------------------------------------------------------------------------------------------

    def _decide(self, at: Position, fact: Fact, *, result: Json = None) -> Any:
        return advance(self._plan(at), State(at.node, at.iteration, at.held.steps, at.policy, fact, result))

    def _plan(self, at: Position) -> BehaviorPlan:
        """The plan this trace is pinned to: a deploy changes no running trace."""
        if at.held.plan_hash == self.agent.plan.hash:
            return self.agent.plan
        return self.parts.plan(at.held.tenant_id, at.held.plan_hash)

    def _tools_step(self, at: Position) -> NewStep:
        node = self._plan(at).of_kind("tools").id
        return NewStep(new_id(), node, "tools", "waiting", at.iteration, at.held.steps + 1, at.step_id)


class SequentialExecutor(Executor):
    """An action that names no strategy runs its tools one after the other."""

    strategy: ClassVar[Strategy] = "serial"


class ParallelExecutor(Executor):
    """An action that names no strategy runs its tools at once."""

    strategy: ClassVar[Strategy] = "parallel"


EXECUTORS: dict[str, type[Executor]] = {"sequential": SequentialExecutor, "parallel": ParallelExecutor}
"""The executors agents choose from, by name."""


def _first(result: StepResult) -> Failure | None:
    if not result.failures:
        return None
    first = result.failures[0]
    return Failure(str(first.get("code") or "E_TOOLS"), str(first.get("message") or "a tool failed"),
                   detail={"tool": first.get("tool")})  # fmt: skip


def _pause_s(policy: Policy, again: Again) -> float:
    if again.after_s is not None:
        return again.after_s
    ceiling: float = min(policy.backoff.cap_s, policy.backoff.base_s * 2.0 ** (again.failures - 1))
    return random.uniform(0, ceiling)  # noqa: S311 - spreads retries, guards nothing


def _first_ring(trace: NewTrace) -> Ring:
    return Ring("trace", trace.id, 1, trace.queue, f"agent.{trace.agent}", trace.id, trace.priority, trace.jws)


def _up(priority: int) -> int:
    return min(9, priority + CONTINUATION)
