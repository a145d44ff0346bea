"""Executors: run the steps of a trace that this worker holds, one commit a step.

The shell around `advance`: gather the facts, let it decide, land the decision whole, ring what is ready now. The
commit that ends a step also starts the next one, so that nothing runs unrecorded. Whoever lost the trace stops.
"""

from __future__ import annotations

import json
import random
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar
from uuid import UUID

import structlog
from structlog.contextvars import bound_contextvars

from agentmesh.behavior.reasoners import parse_action
from agentmesh.behavior.session import Session
from agentmesh.behavior.strategies import SUMMARY
from agentmesh.errors import Mistake, NothingOpen, UnknownPlan
from agentmesh.execution import inline
from agentmesh.execution.advance import (
    Again,
    Began,
    Broke,
    CallTools,
    Decided,
    Decision,
    Fail,
    Finish,
    Handle,
    Joined,
    Ruled,
)  # fmt: skip
from agentmesh.execution.callbacks import StepResult, effects_of
from agentmesh.execution.draft import MAX_TEXT, Draft, Position
from agentmesh.execution.failures import AWAY, failure_of, refused, theirs
from agentmesh.execution.moving import Mover
from agentmesh.execution.summaries import SHARE, shared, sum_up
from agentmesh.execution.views import HostedAgent, Parts, Views, answered
from agentmesh.infrastructure.faults import point
from agentmesh.infrastructure.logging import about
from agentmesh.records import Action, Failure, Json, Policy, Ring, Strategy, check_name, new_id
from agentmesh.state import byhand, rewind, steering, traces
from agentmesh.state.changes import DeadLetter, NewAttempt, NewTrace
from agentmesh.state.traces import Held, Taken

log = structlog.get_logger("agentmesh.executor")

DECIDED = ("reason", "tools")
"""Steps whose results are fed back to the reasoner: its answers, and what the tools it chose came to."""

NO_SUCCESS = Failure("E_TOOLS", "the tools of this step did not succeed")


ITSELF: Json = object()
"""In place of a result: the step does its own work."""

BY_HAND = "executor"
"""Who it was, in the events of what is driven by hand."""


class Executor:
    """Runs the steps of held traces of one agent. Subclasses choose how an action that does not say so is run.

    `run` is what workers call. `run_step` and `run_next_step` drive a trace by hand; `claim`, by which they take it, is
    the runtime's.
    """

    strategy: ClassVar[Strategy] = "serial"

    def __init__(self, agent: HostedAgent, parts: Parts) -> None:
        self.agent, self.parts = agent, parts
        self._views = Views(agent, parts)
        self._mover = Mover(agent, parts, self._views)

        self.claim: Callable[[Ring], AbstractContextManager[Taken | None]] = _unclaimed
        self._driven = threading.local()  # the trace that a thread ran last, for what it does next by hand

    def run(self, taken: Taken) -> str:
        """Work the trace until it ends, waits, is handed on or is lost; which of these it was."""
        self._driven.trace = (taken.trace.tenant_id, taken.trace.id)
        at: Position | None
        try:
            at = Position.of(taken)
            last = at = replace(at, policy=self._mover.policy(at.held, at.base, at.node))
        except (ValueError, UnknownPlan) as exc:  # a policy that this release does not read, a plan that is gone
            last = Position.of(taken, Policy())
            at = self._crashed(last, exc)
        with bound_contextvars(trace_id=str(taken.trace.id), agent=taken.trace.agent):
            while at is not None:
                with about(step_id=at.step_id, attempt=at.attempt_n):
                    last, at = at, self._step(at)
        return last.outcome

    # --- by hand --------------------------------------------------------------------------------------------------

    def run_step(self, index: int, *, trace_id: UUID | None = None) -> str:
        """The trace that this thread ran last (or `trace_id`) begins anew at its `index`-th step, as `agentmesh rewind`
        has it, and runs as far as it goes here; what became of it, as of `run`. "lost": it is paused, or another has it.

        Raises Mistake where there is no such trace, or NotRewindable.
        """
        tenant, trace = self._by_hand(trace_id)
        back = rewind.rewind(self.parts.db, tenant=tenant, trace_id=trace, ordinal=index, by=BY_HAND)
        with self.claim(back.rings[0]) as taken:
            return "lost" if taken is None else self.run(taken)

    def run_next_step(self, result: Json = ITSELF, *, trace_id: UUID | None = None) -> str:
        """One step of the trace that this thread ran last (or of `trace_id`), which is paused afterwards, so that nobody
        goes on with it: `resume` lets it go, and this takes it one step further.

        With a `result` the open step is settled, whatever it runs or waits for, and its callback rules on that. Without,
        the step does its own work; calls of tools are let go, and what they return waits for the next time. What became
        of the trace, as of `run`. Raises Mistake where there is no such trace, NothingOpen where no step is ready, or
        not exactly one is open to be settled.
        """
        tenant, trace = self._by_hand(trace_id)
        who: dict[str, Any] = {"tenant": tenant, "trace_id": trace, "by": BY_HAND}
        if result is not ITSELF:
            kept = self.parts.blobs.shrink(tenant, result, what="the result of a step")
            byhand.settle(self.parts.db, result=kept, **who)
        resumed = steering.resume(self.parts.db, **who)
        calls = [one for one in resumed.rings if one.kind == "call"]
        ring = traces.free_ring(self.parts.db, trace, agent=self.agent.spec.agent)
        if ring is None:
            if calls or resumed.changed:
                steering.pause(self.parts.db, **who)
            self.parts.ring(calls)
            if calls:
                return "waiting"
            raise NothingOpen("no step of this trace is ready to run", value=str(trace))
        with self.claim(ring) as taken:
            steering.pause(self.parts.db, **who)
            return "lost" if taken is None else self.run(taken)

    def _by_hand(self, trace_id: UUID | None) -> tuple[str, UUID]:
        tenant, last = getattr(self._driven, "trace", (self.agent.spec.tenants[0], None))
        trace: UUID | None = trace_id or last
        if trace is None:
            raise Mistake("this executor has run no trace here", expected="executor.run(session) before, or trace_id=…")
        return tenant, trace

    def own_time_s(self, taken: Taken) -> float | None:
        """How long the step that was taken may run by its node's policy; None where that is what the trace's says."""
        if taken.step["kind"] == "start":
            return None
        try:
            base = Policy.model_validate_json(json.dumps(taken.trace.policy))
            policy = self._mover.policy(taken.trace, base, taken.step["node"])
        except (ValueError, UnknownPlan):
            return None  # its run ends for that
        field = "callback_timeout_s" if taken.step["phase"] == "callback" else "reasoner_timeout_s"
        own: float = getattr(policy, field)
        return None if own == getattr(base, field) else own

    def branches(self, held: Held) -> bool:
        """Whether steps of this trace may be open beside one another."""
        return self._mover.branches(held)

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
        return self._mover.end(at, draft, Fail(failure), failure=failure)

    def _advance(self, at: Position) -> Position | None:
        if at.phase == "callback":
            return self._conclude(at, self._views.result(at), Draft(at))
        match at.kind:
            case "tools":
                return self._inline(at)
            case "start":
                draft = Draft(at)
                draft.ends(at.attempt_id, "won")
                said = at.action or {}
                began = self._mover.decide(at, Began(said.get("to")), result=self._views.before(at, said))
                return self._mover.go(at, draft, began)
            case _:
                return self._reason(at)

    def _reason(self, at: Position) -> Position | None:
        if at.failures >= at.policy.reasoner_attempts:
            return self._broke(at, Draft(at), at.last_failure(), spent=True)
        draft = Draft(at)
        try:
            view = self._shown(at, draft)
            point("reason.before")
            action = parse_action(theirs(lambda: self._asked(at, view)), default_strategy=self.strategy)
            point("reason.after_answer")
            draft.notes(view.taken_notes(), self.parts.redact)
            decision = self._mover.decide(at, Decided(action))
            if isinstance(decision, Fail):
                return self._broke(at, Draft(at), decision.failure)
            opened = self._mover.resolved(at, decision) if isinstance(decision, CallTools) else None
            draft.event("REASONER_ACTION", **self._views.chosen(at, action, view))
            draft.step(**self._views.kept(at, action))
        except AWAY:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a reasoner raises is its step's failure
            return self._broke(at, Draft(at), failure_of(exc, code="E_REASONER"))
        if opened is not None and isinstance(decision, CallTools):
            draft.ends(at.attempt_id, "won")
            return self._mover.call(at, draft, decision, *opened)
        return self._answered(at.answering(action, view), draft, action)

    def _shown(self, at: Position, draft: Draft) -> Session:
        """What the reasoner is shown; where the context was summed up for it, the summary is in the draft."""
        values = self._views.values(at)
        summed = sum_up(self.agent, values)
        if summed is None:
            return self._views.shown(at, values)
        draft.notes(summed.notes, self.parts.redact)
        if summed.entry is not None:
            draft.remember([self._views.summary(at, summed.entry)])
            values["memory"] = {**values["memory"], SUMMARY: summed.entry}
        return self._views.shown(at, values | {"policy": shared(at.policy, 1 - SHARE)})

    def _asked(self, at: Position, view: Session) -> object:
        reasoner = self.agent.decides(self._mover.node(at))
        if getattr(reasoner, "prompts", False):
            reasoner.inject_prompt(view)  # type: ignore[attr-defined]
        return reasoner.select_action(view)

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
        node = self._mover.node(at)
        if node is None:
            draft.ends(at.attempt_id if at.phase == "callback" else None, "won")
            return self._mover.undone(at, draft)
        result = replace(result, otherwise=node.otherwise)
        failure = None if result.ok else result.failure or NO_SUCCESS
        decision = self._mover.decide(at, Joined(result.ok, failure), result=result.value)
        if not isinstance(decision, Handle):
            if at.phase == "callback":
                draft.ends(at.attempt_id, "won")
            return self._mover.go(at, draft, decision, failure=failure)
        try:
            view = replace(at.view or self._views.session(at), result=result.value)
            point("callback.before")
            if at.kind in DECIDED:
                theirs(lambda: self.agent.decides(node).feedback(result.value))
            outcome = theirs(lambda: self.parts.callback.handle(result, at.policy, view))
            point("callback.after_handler")
            draft.notes(view.taken_notes(), self.parts.redact)
            output = self._views.aside(at, at.output(result), "the result of a step")
            memory = self._views.remembered(at, outcome.memory)
            unhandled = failure if outcome.defaulted else None
            ruled = Ruled(outcome.verdict, unhandled)
            decision = self._mover.decide(at, ruled, result=result.value, memory=outcome.memory)
            child = self._child(at, decision)
        except AWAY:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a handler raises is its callback's failure
            return self._broke(at, draft, failure_of(exc, code="E_CALLBACK"), callback=True, result=result.value)
        if at.kind in DECIDED:
            draft.event("REASONER_FEEDBACK", ok=result.ok)
        if at.phase == "callback":
            draft.ends(at.attempt_id, "won")
        if isinstance(decision, Fail) and unhandled is not None:  # nobody handled it: a retry by hand may still do so
            return self._mover.go(at, draft, decision, failure=failure)
        draft.handled(outcome, memory, result)
        draft.step(output=output)
        if child is not None:
            draft.children.append(child)
            draft.event("EXEC_DELEGATE", to=child.agent, intent=child.intent, trace=str(child.id))
        return self._mover.go(at, draft, decision, failure=unhandled)

    def _child(self, at: Position, decision: Decision) -> NewTrace | None:
        if isinstance(decision, Finish) and decision.delegate is not None:
            return self.parts.delegate(at.held, decision.delegate)
        return None

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
        decision = self._mover.decide(at, Broke(failure, failures, callback), result=result)
        if own:
            draft.ends(at.attempt_id, "released" if spent else "failed", failure.as_json())
        draft.event("EXEC_ROLLBACK", error=failure.as_json(), failures=failures)
        if isinstance(decision, Again):
            phase = "callback" if callback else "run"
            draft.step(status="ready", phase=phase, failures=failures, error=failure.as_json(),
                       wake_s=_pause_s(at.policy, decision))  # fmt: skip
            return at.left("retrying") if draft.land(self.parts.db, keep=False) else at.lost()
        return self._mover.go(at, draft, decision, failure=failure)


def _unclaimed(ring: Ring) -> AbstractContextManager[Taken | None]:
    raise Mistake("this executor has no runtime that could take a trace", value=str(ring.trace_id),
                  expected="mesh.runtime(agent).executor")  # fmt: skip


class SequentialExecutor(Executor):
    """An action that names no strategy runs its tools one after the other."""

    strategy: ClassVar[Strategy] = "serial"


class ParallelExecutor(Executor):
    """An action that names no strategy runs its tools at once."""

    strategy: ClassVar[Strategy] = "parallel"


class ConditionalExecutor(Executor):
    """An action that names no strategy tries its tools in order until one succeeds."""

    strategy: ClassVar[Strategy] = "fallback"


class DAGExecutor(ParallelExecutor):
    """As ParallelExecutor. What runs beside what is the plan's to say, by `needs`, for every executor alike: the name tells a
    reader that this agent's chain does."""


EXECUTORS: dict[str, type[Executor]] = {
    "sequential": SequentialExecutor, "parallel": ParallelExecutor, "conditional": ConditionalExecutor, "dag": DAGExecutor,
}  # fmt: skip
"""The executors agents choose from, by name; `register_executor` adds to them."""


def register_executor(name: str) -> Callable[[type[Executor]], type[Executor]]:
    """Make a subclass of Executor one that agents may choose by this name. A plugin's entry point, or an import that the
    settings list, runs it."""
    check_name(name, "an executor")

    def declare(made: type[Executor]) -> type[Executor]:
        EXECUTORS[name] = made
        return made

    return declare


def _pause_s(policy: Policy, again: Again) -> float:
    if again.after_s is not None:
        return again.after_s
    ceiling: float = min(policy.backoff.cap_s, policy.backoff.base_s * 2.0 ** (again.failures - 1))
    return random.uniform(0, ceiling)  # noqa: S311 - spreads retries, guards nothing
