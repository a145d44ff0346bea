"""What a reasoner and a callback are shown of a trace, and what is kept of what they said. Reads; writes only blobs.

Big values stand aside in blobs: they are expanded here on the way to user code, and put aside on the way back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from agentmesh.behavior.agents import AgentSpec
from agentmesh.behavior.embedders import EmbedderSpec
from agentmesh.behavior.reasoners import Reasoner
from agentmesh.behavior.session import Lazy, LazyList, Session
from agentmesh.behavior.strategies import SUMMARY, Near, SessionBuilder, structured
from agentmesh.behavior.templates import EACH
from agentmesh.errors import Mistake
from agentmesh.execution.callbacks import CallbackHandler, StepResult
from agentmesh.execution.draft import Position
from agentmesh.execution.failures import AWAY, failure_of, ours, theirs
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.execution.router import Dispatch, ToolRouter
from agentmesh.infrastructure.database import Database
from agentmesh.infrastructure.embedding import Embedder, unit_vectors
from agentmesh.records import Action, Json, Ring, Verdict
from agentmesh.state import vectors
from agentmesh.state.admission import Lane
from agentmesh.state.blobs import BlobStore
from agentmesh.state.changes import MemoryWrite, NewCall, NewTrace
from agentmesh.state.contexts import SessionManager
from agentmesh.state.templates import Templates
from agentmesh.state.traces import Held
from agentmesh.state.vectors import text_of

LOOK_S = 10.0
SHARE = 0.3
"""What looking for the nearest entries may take: so long, and of a decision's time this share."""


@dataclass(frozen=True, slots=True)
class HostedAgent:
    """An agent as this process runs it."""

    spec: AgentSpec
    plan: BehaviorPlan
    reasoner: Reasoner
    reasoners: Mapping[str, Reasoner] = field(default_factory=dict)

    def decides(self, node: Any) -> Reasoner:
        """The reasoner of a node: the one it names, else the agent's own."""
        return self.reasoners.get(getattr(node, "reasoner", None) or "", self.reasoner)


@dataclass(frozen=True, slots=True)
class Parts:
    """What executors stand on; wiring fills it."""

    db: Database
    router: ToolRouter
    callback: CallbackHandler
    builder: SessionBuilder
    sessions: SessionManager
    blobs: BlobStore
    ring: Callable[[Sequence[Ring]], None]
    sent: Callable[[Sequence[Lane]], None]
    ended: Callable[[Lane], None]
    chord: Callable[[Sequence[Ring], Ring], None]
    delegate: Callable[[Held, Verdict], NewTrace]
    plan: Callable[[str, str], BehaviorPlan]
    child: Callable[..., NewTrace]
    depths: tuple[int, int]
    max_steps: int
    moment: Callable[[dict[str, Json]], str]
    pool: ThreadPoolExecutor
    embedder: Callable[[EmbedderSpec], Embedder]
    redact: Callable[[Json], Json] = field(default=lambda value: value)
    monotonic: Callable[[], float] = time.monotonic
    overrun: Callable[[Future[Any]], None] = field(default=lambda _: None)


class Views:
    """The eyes of one agent's executor."""

    def __init__(self, agent: HostedAgent, parts: Parts) -> None:
        self._agent, self._parts = agent, parts
        self._templates = Templates({agent.spec.agent: agent.spec.memory.announced()})

    def session(self, at: Position, values: dict[str, Any] | None = None) -> Session:
        """What user code is shown; memory, results and turns are read when they are first looked at."""
        return self._parts.builder.view(self._agent.spec.session, **(values or self.values(at)))

    def shown(self, at: Position, values: dict[str, Any]) -> Session:
        """What a reasoner is shown; where its agent wants the nearest entries of memory, those."""
        spec = self._agent.spec
        near = None if spec.session.nearest is None else self._near(at, values["payload"], spec.session.nearest)
        return self._parts.builder.view(spec.session, near, **values)

    def _near(self, at: Position, payload: Json, n: int) -> Near:
        """The entries nearest to the payload. An embedder that fails does not stop the decision: that is recorded, and the
        newest ones are shown."""
        held, policy, spec, db = at.held, at.policy, self._agent.spec.memory.embedder, self._parts.db
        if spec is None:
            raise Mistake("this agent has no embedder", value=held.agent)
        about: dict[str, Json] = {"model": spec.vectors}
        where = (db, held.tenant_id, held.context_id, spec.vectors)
        found = None
        try:
            [vector] = theirs(
                lambda: unit_vectors(
                    self._parts.embedder(spec), [text_of(held.intent, payload)],
                    within_s=min(LOOK_S, SHARE * policy.reasoner_timeout_s),
                )
            )  # fmt: skip
            found = vectors.nearest(*where, vector, limit=n)
        except psycopg.errors.QueryCanceled as exc:  # too many to be compared in time: they would be again
            about["error"] = failure_of(exc, code="E_EMBEDDING").as_json()
        except AWAY:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it raises, the decision itself goes on
            about["error"] = failure_of(exc, code="E_EMBEDDING").as_json()
        if found is None:
            found = vectors.nearest(*where, None, limit=n)
        if found.unknown:
            vectors.owe(*where)
        keys = tuple(f"long_term:{row['key']}" for row in found.rows)
        about["found"] = [
            [key, None if row["score"] is None else round(row["score"], 4)]
            for key, row in zip(keys, found.rows, strict=True)
        ]
        return Near(keys, about | {"waiting": found.waiting})

    def variables(self, at: Position, names: Iterable[str], result: Json) -> dict[str, Json]:
        """What the expressions of a plan may name, of that what they do name."""
        own: dict[str, Json] = {"vars": at.held.state.get("vars") or {}, "result": result}
        wanted = set(names) - own.keys() - set(EACH)
        values = self.values(at)
        found = structured(**values).variables(wanted) if wanted else {}
        if "turns" in found:
            found["turns"] = list(values["turns"])
        if "steps" in found:
            found["steps"] |= {at.node: result}  # its row will say so with this decision
        return found | own

    def values(self, at: Position) -> dict[str, Any]:
        """The fields of its session, before any strategy."""
        held, parts = at.held, self._parts
        expand = parts.blobs.expand

        def remembered() -> dict[str, Json]:
            found = parts.sessions.memory(held.tenant_id, held.context_id, held.id)
            return {key: expand(held.tenant_id, value) for key, value in found.items()}

        def known() -> dict[str, Json]:
            found = parts.sessions.results(held.tenant_id, held.id) if held.steps > 1 else {}
            return {key: expand(held.tenant_id, value) for key, value in (found | at.results()).items()}

        def visited() -> dict[str, Json]:
            found = parts.sessions.steps(held.tenant_id, held.id)
            return {key: expand(held.tenant_id, value) for key, value in found.items()}

        def talked() -> list[Json]:
            return parts.sessions.turns(held.tenant_id, held.context_id, held.id)

        return {
            "trace_id": str(held.id), "context_id": held.context_id, "tenant": held.tenant_id, "agent": held.agent,
            "intent": held.intent, "from_": held.from_id, "payload": expand(held.tenant_id, held.payload),
            "memory": Lazy(lambda: ours(remembered)), "results": Lazy(lambda: ours(known)),
            "steps": Lazy(lambda: ours(visited)), "turns": LazyList(lambda: ours(talked)),
            "vars": held.state.get("vars") or {}, "step": held.steps, "iteration": at.iteration - 1, "node": at.node,
            "locale": held.locale, "permissions": held.permissions, "tools": self._agent.spec.tools, "policy": at.policy,
        }  # fmt: skip

    def result(self, at: Position) -> StepResult:
        """The result of the step that a callback is to handle."""
        if at.kind == "reason" and not at.settled:
            return answered(at, Action.model_validate_json(json.dumps(self.whole(at, at.action))))
        if at.settled or at.kind in {"wait", "signal", "approval"}:
            kept = at.kept or {}
            why: tuple[dict[str, Json], ...] = (kept["error"],) if kept.get("error") else ()
            value, ok = self.whole(at, kept.get("value")), bool(kept.get("ok"))
            return StepResult(at.step_id, at.node, ok=ok, answered=at.kind == "reason", value=value, failures=why)
        value, ok, failures = at.tools_result()
        if at.results_by_label or at.terms is not None:
            expanded: Json = {label: self.whole(at, one) for label, one in value.items()}
        else:
            expanded = self.whole(at, value)
        return StepResult(at.step_id, at.node, ok=ok, answered=False, value=expanded, failures=failures)

    def before(self, at: Position, said: Mapping[str, Json]) -> Json:
        """The result that a trace goes on with which begins anew: that of the step which `said` names as `after`."""
        if not said.get("after"):
            return None
        found = self._parts.sessions.step(at.held.tenant_id, at.held.id, said["after"])
        return self._parts.blobs.expand(at.held.tenant_id, found)

    def kept(self, at: Position, action: Action) -> dict[str, Json]:
        """What the reason step keeps. Calls hold their own arguments: nothing runs from what is kept of those."""
        said: Json = action.model_dump(mode="json")
        if action.slots:
            return {"action": self.aside(at, self._parts.redact(said), "an action")}
        answer = self.aside(at, {"answer": action.answer}, "an answer")
        return {"action": self.aside(at, said, "an action"), "output": answer}

    def chosen(self, at: Position, action: Action, view: Session) -> dict[str, Json]:
        """The body of REASONER_ACTION; `session`: by key what its reasoner was shown and what not, where not all of it."""
        said = action.model_dump(mode="json", exclude_none=True, exclude={"candidates", "propensity", "policy_version"})
        redacted: Json = self._parts.redact(said)
        return {
            "action": self.aside(at, redacted, "an action"), "candidates": list(action.candidates),
            "propensity": action.propensity, "policy_version": action.policy_version,
        } | ({} if view.account is None else {"session": dict(view.account)})  # fmt: skip

    def resolved(self, at: Position, plan: Dispatch) -> Dispatch:
        """The dispatch with the big arguments of its calls put aside."""

        def lightened(call: NewCall) -> NewCall:
            args = self.aside(at, call.args, "the arguments of a call")
            return call if args is call.args else replace(call, args=args)

        return replace(plan, calls=tuple(lightened(one) for one in plan.calls))

    def remembered(self, at: Position, writes: Sequence[MemoryWrite]) -> list[MemoryWrite]:
        """The writes with their big values put aside. Raises BadMemory where one is not what the agent declares."""
        for one in writes:
            if not one.deleted:
                self._templates.check(one.type, one.key, one.value)
        keep_s = self._templates.keep_s
        return [
            replace(
                one,
                value=self.aside(at, one.value, f"memory {one.key}"),
                keep_s=keep_s(one.type, one.key),
                models=() if one.deleted else self._templates.models(one.type),
            )
            for one in writes
        ]

    def summary(self, at: Position, entry: Json) -> MemoryWrite:
        """The next summary of the context, as it is to be written."""
        kind, _, key = SUMMARY.partition(":")
        kept = self.aside(at, entry, "a summary")
        return MemoryWrite(
            "long_term", key, kept, key, at.step_id, keep_s=self._templates.keep_s(kind, key),
            models=self._templates.models(kind),
        )  # fmt: skip

    def aside(self, at: Position, value: Json, what: str) -> Json:
        return self._parts.blobs.shrink(at.held.tenant_id, value, what=what)

    def whole(self, at: Position, value: Json) -> Json:
        return self._parts.blobs.expand(at.held.tenant_id, value)


def answered(at: Position, action: Action) -> StepResult:
    """The reasoner's answer as the result of its step."""
    return StepResult(at.step_id, at.node, ok=True, answered=True, value=action.answer)
