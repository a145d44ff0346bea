"""What would be decided next of a trace, asked of `advance` without doing anything: no claim, no code of the user's.

A decision is foreseen where all that it depends on is recorded: a step has joined, a time runs out. Otherwise `why` says
what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from agentmesh.behavior.agents import AgentSpec
from agentmesh.behavior.reasoners import ReasonerBase
from agentmesh.errors import MeshError
from agentmesh.execution.advance import Began, Decision, Handle, Joined, Ruled
from agentmesh.execution.callbacks import StepResult, default_verdict
from agentmesh.execution.draft import Position
from agentmesh.execution.executors import NO_SUCCESS
from agentmesh.execution.moving import Mover
from agentmesh.execution.views import HostedAgent, Parts, Views
from agentmesh.infrastructure import jsontext
from agentmesh.records import Action, Json
from agentmesh.state.traces import Taken


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Of one open step: the decision that ends it (None: not before something happens), and why."""

    step: int
    node: str
    decision: dict[str, Json] | None
    why: str


class Foresight:
    """Looks at one open step as an executor would have taken it."""

    def __init__(self, parts: Parts, taken: Taken) -> None:
        plan = parts.plan(taken.trace.tenant_id, taken.trace.plan_hash)
        agent = HostedAgent(AgentSpec(agent=taken.trace.agent), plan, ReasonerBase())
        self._step, self._views = taken.step, Views(agent, parts)
        self._mover = Mover(agent, parts, self._views)
        at = Position.of(taken)
        self._at = replace(at, policy=self._mover.policy(at.held, at.base, at.node))

    def session(self) -> dict[str, Json]:
        """What a reasoner or a callback of the step would be shown."""
        view = self._views.session(self._at)
        return view.behavior() | view.variables(("steps", "vars", "result", "step", "iteration", "node", "policy"))

    def next(self) -> Foreseen:
        """What ends the step."""
        try:
            decision, why = self._next()
        except MeshError as exc:
            decision, why = None, f"nobody can say: {exc.what}"
        return Foreseen(self._step["ordinal"], self._at.node, None if decision is None else _said(decision), why)

    def _next(self) -> tuple[Decision | None, str]:
        at, step = self._at, self._step
        if at.kind == "start":
            said = at.action or {}
            began = Began(said.get("to"))
            return self._mover.decide(at, began, result=self._views.before(at, said)), "the trace begins here"
        if self._mover.node(at) is None:
            return None, "what was done is undone, and the trace goes on from there"
        if at.phase == "callback":
            return self._ruled(self._views.result(at), "it has its result")
        if at.kind == "wait":
            over = StepResult(at.step_id, at.node, ok=True, answered=False, value=None)
            return self._ruled(over, f"its time is over at {step['wake_at']}")
        return None, self._missing()

    def _ruled(self, result: StepResult, why: str) -> tuple[Decision, str]:
        """As the executor would conclude the step, where no callback rules otherwise."""
        at = self._at
        result = replace(result, otherwise=self._mover.node(at).otherwise)
        failure = None if result.ok else result.failure or NO_SUCCESS
        decision = self._mover.decide(at, Joined(result.ok, failure), result=result.value)
        if isinstance(decision, Handle):
            ruled = Ruled(default_verdict(result, at.policy), failure)
            decision = self._mover.decide(at, ruled, result=result.value)
            if at.policy.callbacks:
                why += f"; {', '.join(at.policy.callbacks)} may rule otherwise"
        return decision, why if failure is None else f"{why}: {failure.code} {failure.message}"

    def _missing(self) -> str:
        """What has to happen before anything is decided."""
        step = self._step
        if step["kind"] == "reason":
            tried = f", after {step['failures']} failures" if step["failures"] else ""
            doing = "is deciding" if step["status"] == "running" else "is to decide"
            return f"its reasoner {doing}{tried}"
        if step["kind"] in {"signal", "approval"}:
            until = f", until {step['wake_at']}" if step["wake_at"] else ""
            return f"it waits for {step['waits_for']}{until}"
        waiting = sorted({f"{one.call['label']} ({one.call['status']})" for one in self._at.calls if one.call["status"]
                          in {"held", "ready", "running"}})  # fmt: skip
        if self._at.terms is not None:
            ended = [f"{one.call['label']} {_counts(one.call['heard'])}" for one in self._at.calls if one.call["heard"]]
            return (
                f"{len(ended)} of {step['slots']} have ended: {', '.join(ended) or 'none'}; open: {', '.join(waiting)}"
            )
        return f"{step['wins']} of the {step['need']} it needs have succeeded, {step['pending']} are open: {', '.join(waiting)}"


def _counts(heard: Mapping[str, Json]) -> str:
    """What the end of an agent among others counts for."""
    if heard.get("vote") is not None:
        return f"votes {jsontext.canonical(heard['vote']).decode()[:80]}"
    if "accepted" in heard:
        return "is accepted" if heard["accepted"] else "is refused"
    return "counts for nothing"


def _said(decision: Decision) -> dict[str, Json]:
    """A decision as JSON, under its name in `kind`."""
    parts: dict[str, Any] = {name: _plain(value) for name, value in asdict(decision).items()}
    return {"kind": type(decision).__name__} | parts


def _plain(value: Any) -> Any:
    if isinstance(value, Action):
        return value.model_dump(mode="json", exclude_none=True)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
