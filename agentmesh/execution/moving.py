"""From a decision to the next step: what ends, what opens, landed in one commit and rung after it.

Every method of the Mover takes a position, a draft that knows how the step at hand has ended, and returns where the run
goes on here (None: nowhere).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from agentmesh.errors import BadPayload, MeshError, UnknownPlan
from agentmesh.execution import plan as plans
from agentmesh.execution.advance import (
    Again,
    Began,
    Branch,
    CallTools,
    Decision,
    Fact,
    Fail,
    Finish,
    Handle,
    Rest,
    Route,
    Send,
    State,
    Undo,
    Visit,
    advance,
)  # fmt: skip
from agentmesh.execution.callbacks import effects_of
from agentmesh.execution.draft import Draft, LiveCall, Position
from agentmesh.execution.errands import Errands, begin, pay
from agentmesh.execution.failures import AWAY, failure_of
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.execution.router import Dispatch
from agentmesh.execution.views import HostedAgent, Parts, Views
from agentmesh.infrastructure import jsontext
from agentmesh.infrastructure.database import Row
from agentmesh.infrastructure.faults import point
from agentmesh.records import Action, Failure, Json, Policy, Ring, ToolUse, new_id
from agentmesh.state import compensation
from agentmesh.state.admission import Lane
from agentmesh.state.calls import CONTINUATION, call_ring, step_ring
from agentmesh.state.changes import DeadLetter, End, MemoryWrite, NewAttempt, NewStep
from agentmesh.state.traces import Held, Landed

log = structlog.get_logger("agentmesh.executor")

MAX_VARS_BYTES = 65_536


class Mover:
    """Moves the traces of one agent from step to step."""

    def __init__(self, agent: HostedAgent, parts: Parts, views: Views) -> None:
        self._agent, self._parts, self._views = agent, parts, views
        self._errands = Errands(parts, views)

    # --- what is decided

    def plan(self, held: Held) -> BehaviorPlan:
        """The plan this trace is pinned to: a deploy changes no running trace."""
        if held.plan_hash == self._agent.plan.hash:
            return self._agent.plan
        return self._parts.plan(held.tenant_id, held.plan_hash)

    def branches(self, held: Held) -> bool:
        """Whether steps of this trace may be open beside one another; where its plan is gone, they may."""
        try:
            return self.plan(held).branches
        except UnknownPlan:
            return True

    def node(self, at: Position) -> Any:
        """The node of the step at hand; None at the start, and where what was done is undone."""
        return None if at.node in plans.VIRTUAL else self.plan(at.held).node(at.node)

    def policy(self, held: Held, base: Policy, node: str) -> Policy:
        """The policy of a node: the plan's and its own over the agent's, under what the intent itself has set."""
        plan = self.plan(held)
        if node == plans.COMPENSATE:
            return base.model_copy(update={"callbacks": ()})
        values = {name: value for name, value in plan.policies[node].items() if name not in base.given}
        if values.get("max_steps", base.max_steps) > self._parts.max_steps:
            values["max_steps"] = self._parts.max_steps
        return base.model_copy(update=values) if values else base

    def decide(self, at: Position, fact: Fact, *, result: Json = None, memory: Sequence[MemoryWrite] = ()) -> Decision:
        """What comes next; `memory` is what the callback of the step at hand writes, and nobody has committed yet."""
        plan = self.plan(at.held)
        variables = self._views.variables(at, plan.reads, result)
        if "memory" in variables:
            variables["memory"] |= {f"{one.type}:{one.key}": one.value for one in memory}
        kept = at.held.state
        return advance(plan, State(
            at.node, at.iteration, at.held.steps, at.policy, fact, result, variables, kept.get("turns") or {},
            kept.get("marks") or {}, tuple(kept.get("open") or ()),
        ))  # fmt: skip

    # --- what is done

    def go(self, at: Position, draft: Draft, decision: Decision, *, failure: Failure | None = None) -> Position | None:
        """Do what was decided. `failure`: the step at hand has failed with it."""
        if not isinstance(decision, Again | Handle):
            try:
                self._pass(at, draft, decision.route)
            except AWAY:
                raise
            except MeshError as exc:
                decision = Fail(failure_of(exc, code=exc.code))
        match decision:
            case Visit():
                return self._visit(at, draft, decision, failure)
            case Rest():
                return self._rest(at, draft, decision, failure)
            case Branch():
                return self._branch(at, draft, decision, failure)
            case Undo():
                return self._undo(at, draft, decision, failure)
            case CallTools() | Send():
                return self._work(at, draft, decision, failure)
            case _:
                return self.end(at, draft, decision, failure=failure)

    def _work(self, at: Position, draft: Draft, decision: CallTools | Send, failure: Failure | None) -> Position | None:
        """Open a step of errands, or of tools; the trace fails where those are refused."""
        if isinstance(decision, Send):
            return self._send(at, draft, decision, failure)
        try:
            step, dispatch = self.resolved(at, decision)
        except AWAY:
            raise
        except MeshError as exc:
            return self.end(at, draft, Fail(failure_of(exc, code=exc.code)), failure=failure)
        return self.call(at, draft, decision, step, dispatch, failure=failure)

    def _pass(self, at: Position, draft: Draft, route: Route) -> None:
        """Note what was passed on the way. Raises BadPayload for variables that are too large."""
        if route.sent:
            self._errands.let_go(at, draft, self.plan(at.held), route.sent)
        for start, target in route.jumps:
            draft.event("EXEC_JUMP", node=start, to=target)
        if route.vars is None and route.turns is None and route.open is None:
            return
        state = dict(at.held.state)
        state |= {} if route.vars is None else {"vars": dict(route.vars)}
        state |= {} if route.turns is None else {"turns": dict(route.turns)}
        state |= {} if route.open is None else {"marks": dict(route.marks or {}), "open": list(route.open)}
        size = len(jsontext.dumps(state, what="the variables of the chain").encode())
        if size > MAX_VARS_BYTES:
            raise BadPayload("the variables of the chain are too large", value=f"{size} bytes",
                             expected=f"at most {MAX_VARS_BYTES} bytes")  # fmt: skip
        draft.state = state

    def _visit(self, at: Position, draft: Draft, decision: Visit, failure: Failure | None) -> Position | None:
        policy = self.policy(at.held, at.base, decision.node)
        step = NewStep(
            new_id(), decision.node, "reason", "running", decision.iteration, at.held.steps + 1, at.step_id,
            timeout_s=policy.reasoner_timeout_s,
        )  # fmt: skip
        attempt = NewAttempt(new_id(), step.id, "reason", 1, 1)
        draft.new_attempts.append(attempt)
        landed = self._opened(at, draft, step, failure, keep=True)
        point("callback.after_commit")
        if landed is None:
            return at.lost()
        return (
            at.at_step(landed, step, policy=policy, state=draft.state, attempt=attempt)
            if landed.kept
            else at.left("paused")
        )

    def _rest(self, at: Position, draft: Draft, decision: Rest, failure: Failure | None) -> Position | None:
        node = self.plan(at.held).node(decision.node)
        asked, seconds = dict(decision.asked), decision.seconds
        match node:
            case plans.Signal(signal=name):
                waits_for = f"signal:{name}"
            case plans.Approval():
                waits_for = f"approval:{node.id}"
                if node.escalate is not None:
                    asked["left_s"] = None if seconds is None else max(0.0, seconds - node.escalate.after_s)
                    seconds = node.escalate.after_s
            case _:
                waits_for = "time"
        step = NewStep(
            new_id(), decision.node, node.kind, "waiting", decision.iteration, at.held.steps + 1, at.step_id, action=asked,
            wake_s=seconds, wake_at=self._parts.moment(asked) if "cron" in asked else decision.until, waits_for=waits_for,
        )  # fmt: skip
        draft.waits_for = None if self.branches(at.held) else waits_for
        draft.listens = (step.id, node.signal) if node.kind == "signal" else None
        draft.event("EXEC_WAIT", step.id, node=decision.node, waits_for=waits_for)
        landed = self._opened(at, draft, step, failure, keep=False)
        point("callback.after_commit")
        if landed is None:
            return at.lost()
        if landed.heard is not None:
            names = ("id", "epoch", "queue", "agent", "priority")
            self._parts.ring([step_ring({f"step_{name}": landed.heard[name] for name in names}, at.held.id)])
        return at.left("waiting")

    def _opened(
        self, at: Position, draft: Draft, step: NewStep, failure: Failure | None, *, keep: bool
    ) -> Landed | None:
        """Land the end of the step at hand with the opening of this one."""
        _ends(draft, failure)
        draft.new_steps.append(step)  # its groups, if it has any, stand before it
        if step.iteration > at.iteration:
            draft.event("EXEC_LOOP", step.id, node=step.node, iteration=step.iteration)
        landed = draft.land(self._parts.db, keep=keep)
        if landed is not None:
            begin(self._parts, draft.children)
        return landed

    def _branch(self, at: Position, draft: Draft, decision: Branch, failure: Failure | None) -> Position | None:
        """Each node begins with a step of its own, which whoever is free takes; here one after another."""
        _ends(draft, failure)
        heads = [
            NewStep(
                new_id(), plans.START, plans.START, "ready", at.iteration, at.held.steps + place, action={"to": node}
            )
            for place, node in enumerate(decision.nodes, 1)
        ]  # fmt: skip
        draft.new_steps += heads
        landed = draft.land(self._parts.db, keep=False)
        point("callback.after_commit")
        if landed is None:
            return at.lost()
        self._parts.ring([_step_ring(at, one) for one in heads])
        begin(self._parts, draft.children)
        return at.left("waiting")

    # --- child traces

    def _send(self, at: Position, draft: Draft, decision: Send, failure: Failure | None) -> Position | None:
        """Open the step that waits for the errands; one that they are refused to has failed, and goes where that goes."""
        plan, policy = self.plan(at.held), self.policy(at.held, at.base, decision.node)
        refused: list[Ring] = []
        try:
            step = self._errands.step(at, draft, decision, plan, policy)
        except AWAY:
            raise
        except MeshError as exc:
            step = self._errands.refused(at, draft, decision, policy, failure_of(exc, code=exc.code))
            refused.append(_step_ring(at, step))
        landed = self._opened(at, draft, step, failure, keep=False)
        point("callback.after_commit")
        if landed is None:
            return at.lost()
        self._parts.ring(refused)
        return at.left("waiting")

    # --- tools

    def resolved(self, at: Position, decision: CallTools) -> tuple[NewStep, Dispatch]:
        """The step and the calls of an action. Raises what the tool router refuses."""
        action, undoes = decision.action, decision.node == plans.COMPENSATE
        node = None if undoes else self.plan(at.held).node(decision.node)
        allowed = [one.tool for slot in action.slots for one in slot] if undoes else self._agent.spec.tools
        step = NewStep(
            new_id(), decision.node, "tools", "waiting", decision.iteration, at.held.steps + 1, at.step_id,
            action={"strategy": action.strategy} | (
                {"for_each": True, "limit": node.limit} if isinstance(node, plans.ForEach) else {}
            ),
        )  # fmt: skip
        found = self._parts.router.resolve(
            action, held=at.held, step=step, allowed=allowed, limit=decision.limit,
            policy=self.policy(at.held, at.base, decision.node),
        )  # fmt: skip
        return step, self._views.resolved(at, found)

    def call(
        self, at: Position, draft: Draft, decision: CallTools, step: NewStep, dispatch: Dispatch, *,
        failure: Failure | None = None,
    ) -> Position | None:  # fmt: skip
        """End the step at hand and open the tools step: on this worker when all of it is inline, else as a chord."""
        policy = self.policy(at.held, at.base, decision.node)
        made = replace(
            step, status="running" if dispatch.inline else "waiting", require=dispatch.require, need=dispatch.need,
            slots=dispatch.slots, pending=dispatch.slots, callbacks=effects_of(policy),
            timeout_s=sum(one.timeout_s for one in dispatch.calls),
        )  # fmt: skip
        draft.new_steps += dispatch.groups
        draft.new_calls += dispatch.calls
        draft.event("TOOL_DISPATCH", made.id, strategy=decision.action.strategy, require=dispatch.require,
                    tools=[one.label for one in dispatch.calls])  # fmt: skip
        live = [LiveCall.of(one, new_id() if one.status == "running" else None) for one in dispatch.calls]
        point("tools.before_commit")
        landed = self._opened(at, draft, made, failure, keep=dispatch.inline)
        point("tools.after_commit")
        if landed is None:
            return at.lost()
        if landed.kept:
            point("next.after_commit")
            return at.at_step(landed, made, policy=policy, state=draft.state, calls=live)
        header = [call_ring(one.call | {"trace_id": at.held.id}) for one in live if one.call["status"] != "held"]
        self._parts.chord(header, _step_ring(at, made))
        point("tools.after_ring")
        return at.left("waiting")

    # --- undoing

    def _undo(self, at: Position, draft: Draft, decision: Undo, failure: Failure | None) -> Position | None:
        """Call what undoes the calls that were done, newest first, one after the other whatever each comes to."""
        held = at.held
        said: dict[str, Json] = dict(at.action or {}) if at.kind == plans.START else {}
        why = decision.failure.as_json() if decision.failure else said.get("failure")
        spec = {
            "then": said.get("then"),
            "after": said.get("after"),
            "end": said.get("end", "failed"),
            "failure": why,
        }
        done = compensation.done(self._parts.db, held.tenant_id, held.id, only=said.get("calls"))
        if not done:
            return self._after(at, draft, spec, failure)
        uses = tuple(
            ToolUse.model_validate({
                "tool": one["compensate"], "as": f"undo-{n}", "args": {
                    "args": self._views.whole(at, one["args"]), "result": self._views.whole(at, one["result"]),
                }}) for n, one in enumerate(done)
        )  # fmt: skip
        action = Action(slots=(uses,), strategy="serial", require="each")
        call = CallTools(plans.COMPENSATE, action, at.iteration + 1)
        try:
            step, dispatch = self.resolved(at, call)
        except MeshError as exc:
            refused = {"error": failure_of(exc, code=exc.code).as_json()}
            draft.letters += [_parked(at, one, refused) for one in done]
            return self._after(at, draft, spec, failure)
        draft.closes = "calls" not in said and self.branches(held)
        draft.event("EXEC_COMPENSATE", tools=[one["label"] for one in done])
        asked = (step.action or {}) | {"undo": spec, "calls": [str(one["id"]) for one in done]}
        return self.call(at, draft, call, replace(step, action=asked), dispatch, failure=failure)

    def undone(self, at: Position, draft: Draft) -> Position | None:
        """What was done is undone, and what could not be is parked for a person; the trace goes where it was to go."""
        asked = dict(at.action or {})
        for place, one in enumerate(at.calls):
            if one.call["status"] != "done":
                undid = {"id": asked["calls"][place], "tool": one.call["tool"], "label": one.call["label"]}
                draft.letters.append(_parked(at, undid, {"error": one.error}))
        ok = all(one.call["status"] == "done" for one in at.calls)
        draft.event("CALLBACK_RESULT", ok=ok, callbacks=[])
        draft.effects += [(at.step_id, name) for name in effects_of(at.policy)]
        draft.step(output={"ok": ok, "results": at.results()})
        return self._after(at, draft, asked["undo"], None)

    def _after(self, at: Position, draft: Draft, spec: dict[str, Json], failure: Failure | None) -> Position | None:
        if spec["then"]:
            anew = Began(None if spec["then"] == plans.START else spec["then"])
            return self.go(at, draft, self.decide(at, anew, result=self._views.before(at, spec)), failure=failure)
        if spec["end"] == "cancelled":
            return self.end(at, draft, Cancel(), failure=failure)
        why = spec["failure"] or {}
        return self.end(
            at,
            draft,
            Fail(Failure(str(why.get("code", "E_CHAIN")), str(why.get("message", "the chain gave up")))),
            failure=failure,
        )

    # --- ends

    def end(
        self, at: Position, draft: Draft, decision: Decision | Cancel, *, failure: Failure | None = None
    ) -> Position | None:
        """End the trace. `failure`: the step at hand has failed with it."""
        _ends(draft, failure)
        draft.closes = self.branches(at.held)
        match decision:
            case Finish(result=result):
                value = self._views.aside(at, result, "the result of the trace")
                draft.event("EXEC_DONE")
                draft.end = End("done", result=value)
            case Fail(failure=why):
                draft.step(error=why.as_json())
                draft.event("EXEC_FAIL", error_code=why.code, message=why.message[:500])
                draft.end = End("failed", error=why.as_json())
            case Cancel():
                draft.event("EXEC_CANCEL", by="mesh", reason="what was done is undone")
                draft.end = End("cancelled")
            case _:
                raise AssertionError(f"{decision} is no end")
        point("finish.before_commit")
        landed = draft.land(self._parts.db, keep=False)
        point("finish.after_commit")
        if landed is None:
            return at.lost()
        name = {"done": "EXEC_DONE", "failed": "EXEC_FAIL"}.get(draft.end.status, "EXEC_CANCEL")
        log.info(name, trace_id=str(at.held.id), agent=at.held.agent)
        begin(self._parts, draft.children)
        if at.held.parent_call_id is not None:
            self._parts.ring(pay(self._parts.db, at.held.id))
        if at.held.lane is not None:
            self._parts.ended(Lane(at.held.tenant_id, at.held.agent, at.held.lane))
        return at.left(draft.end.status)


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the trace cancelled: a person had wanted that, once what was done is undone."""


def _parked(at: Position, call: Row | dict[str, Json], evidence: dict[str, Json]) -> DeadLetter:
    """What could not be undone, for a person."""
    about: dict[str, Json] = {"call": str(call["id"]), "tool": call["tool"], "label": call["label"]}
    return DeadLetter("E_NOT_UNDONE", f"E_NOT_UNDONE:{call['tool']}", at.step_id, about | evidence)


def _ends(draft: Draft, failure: Failure | None) -> None:
    if failure is None:
        draft.step(status="done")
    else:
        draft.step(status="failed", error=failure.as_json())


def _step_ring(at: Position, step: NewStep) -> Ring:
    held = at.held
    return Ring("step", step.id, 1, held.queue, f"agent.{held.agent}", held.id, min(9, held.priority + CONTINUATION))
