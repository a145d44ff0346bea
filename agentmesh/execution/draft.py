"""Where a run stands, and the change it is about to land: the working values of an executor.

A Position is one held step as the executor sees it; a Draft gathers what its end will mean and lands it once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from agentmesh.behavior.session import Note, Session
from agentmesh.execution.callbacks import Outcome, StepResult
from agentmesh.execution.cooperation import Chosen, decided
from agentmesh.infrastructure.database import Database
from agentmesh.infrastructure.logging import said_here
from agentmesh.records import Action, Failure, Json, Policy
from agentmesh.state import traces
from agentmesh.state.changes import (
    AttemptEnd,
    CallChange,
    Change,
    DeadLetter,
    End,
    Event,
    MemoryWrite,
    NewAttempt,
    NewCall,
    NewStep,
    NewTrace,
    StepChange,
    plain,
)  # fmt: skip
from agentmesh.state.traces import Held, Landed, Taken

KEPT_WITHOUT_TRACE = frozenset({
    "error_code", "verdict", "ok", "node", "iteration", "strategy", "to", "intent", "trace", "model", "input_tokens",
    "output_tokens", "cost_usd", "waits_for",
})  # fmt: skip
"""What stays in an event's body under `record_trace: false`."""

MAX_TEXT = 4000


@dataclass(slots=True)
class Fate:
    """What has become of a run so far; all its positions share it."""

    outcome: str = "lost"
    landed: int = 0  # commits that won


@dataclass(frozen=True, slots=True)
class LiveCall:
    """A call of the step at hand, with the attempt that runs it here (None: it does not run here)."""

    call: dict[str, Any]
    attempt_id: UUID | None = None
    result: Json = None
    error: Json = None

    @classmethod
    def of(cls, new: NewCall, attempt_id: UUID | None) -> LiveCall:
        return cls(plain(new) | {"epoch": 1, "n": int(attempt_id is not None), "failures": 0}, attempt_id)


@dataclass(frozen=True, slots=True)
class Position:
    """A step this worker runs: which, in which phase, and what is known of it.

    `base` is the policy of the trace, `policy` that of the step's node; `kept` is the output the step has so far.
    """

    held: Held
    base: Policy
    policy: Policy
    step_id: UUID
    step_epoch: int
    node: str
    kind: str
    phase: Literal["run", "callback"]
    iteration: int
    failures: int
    need: int
    wins: int
    pending: int
    attempt_id: UUID | None
    attempt_n: int
    action: Json = None
    kept: Json = None
    error: Json = None
    calls: tuple[LiveCall, ...] = ()
    view: Session | None = None  # what the reasoner was just shown, for the callback of its answer
    fate: Fate = field(default_factory=Fate)

    @classmethod
    def of(cls, taken: Taken, policy: Policy | None = None) -> Position:
        """Where a run begins. Raises ValueError for a recorded policy that cannot be read, unless one is given."""
        step = taken.step
        if policy is None:
            policy = Policy.model_validate_json(json.dumps(taken.trace.policy))
        calls = tuple(LiveCall(row, None, row["result"], row["error"]) for row in taken.calls)
        return cls(
            held=taken.trace, base=policy, policy=policy, step_id=step["id"],
            step_epoch=step["epoch"], node=step["node"], kind=step["kind"], phase=step["phase"],
            iteration=step["iteration"], failures=step["failures"], need=step["need"], wins=step["wins"], pending=0,
            attempt_id=taken.attempt_id, attempt_n=taken.attempt_n, action=step["action"], kept=step["output"],
            error=step["error"], calls=calls,
        )  # fmt: skip

    @property
    def outcome(self) -> str:
        return self.fate.outcome

    def lost(self) -> Position | None:
        """Nowhere: the trace is somebody else's."""
        return self.left("lost")

    def left(self, outcome: str) -> Position | None:
        """Nowhere, for this reason."""
        self.fate.outcome = outcome
        return None

    # --- where it goes on

    def at_step(
        self, landed: Landed, step: NewStep, *, policy: Policy, state: dict[str, Json] | None,
        attempt: NewAttempt | None = None, calls: Iterable[LiveCall] = (),
    ) -> Position:  # fmt: skip
        """At the step that was just opened: a reasoner's with its attempt, or inline tools."""
        return replace(
            self, held=traces.moved(self.held, landed, steps=self.held.steps + 1, state=state), policy=policy,
            step_id=step.id, step_epoch=1, node=step.node, kind=step.kind, phase="run", iteration=step.iteration,
            failures=0, need=step.need, wins=0, pending=step.pending, attempt_id=attempt.id if attempt else None,
            attempt_n=1 if attempt else 0, action=step.action, kept=None, error=None, calls=tuple(calls), view=None,
        )  # fmt: skip

    def with_calls(
        self, calls: Iterable[LiveCall], *, landed: Landed | None = None, wins: int | None = None, pending: int = 0
    ) -> Position:
        held = self.held if landed is None else traces.moved(self.held, landed, steps=self.held.steps)
        return replace(self, held=held, calls=tuple(calls), wins=self.wins if wins is None else wins, pending=pending)

    def answering(self, action: Action, view: Session) -> Position:
        return replace(self, action=action.model_dump(mode="json"), view=view)

    def calling_back(self, landed: Landed, attempt: NewAttempt) -> Position:
        held = traces.moved(self.held, landed, steps=self.held.steps)
        return replace(self, held=held, phase="callback", failures=0, attempt_id=attempt.id, attempt_n=attempt.n)

    # --- what is known

    def last_failure(self) -> Failure:
        error: Mapping[str, Any] = self.error or {}
        return Failure(str(error.get("code") or "E_TIMEOUT"), str(error.get("message") or "it failed before"))

    def results(self) -> dict[str, Json]:
        """Results by label of the calls that are done."""
        return {one.call["label"]: one.result for one in self.calls if one.call["status"] == "done"}

    @property
    def terms(self) -> Json:
        """On which terms the answers of the step become one; None: they do not."""
        return (self.action or {}).get("terms")

    @property
    def results_by_label(self) -> bool:
        """Whether the step's result is an object by label, not one call's result."""
        return (self.action or {}).get("strategy") in {"parallel", "mixed"} and not self.for_each

    @property
    def for_each(self) -> bool:
        """Whether its result is a list, in the order of its slots."""
        return bool((self.action or {}).get("for_each"))

    def tools_result(self) -> tuple[Json, bool, tuple[dict[str, Json], ...]]:
        """The step's result as DESIGN names it, whether it succeeded, and why calls failed."""
        done = [one for one in self.calls if one.call["status"] == "done"]
        failures = tuple(
            {"tool": one.call["tool"], "label": one.call["label"], **(one.error or {})}
            for one in self.calls
            if one.call["status"] == "failed"
        )
        first = (self.action or {}).get("refused") or (self.kept or {}).get("error")
        if self.terms is not None:
            chosen = decided(self.terms, [(one.call["label"], one.call["heard"] or {}) for one in self.calls])
            if isinstance(chosen, Chosen):
                return chosen.told(self.results()), True, failures
            return self.results(), False, (first or chosen.as_json(), *failures)
        failures = (first, *failures) if first else failures
        if self.results_by_label:
            return {one.call["label"]: one.result for one in done}, self.wins >= self.need, failures
        ok = self.wins >= self.need
        if self.for_each:
            return [one.result if one.call["status"] == "done" else None for one in self.calls], ok, failures
        return done[-1].result if ok else None, ok, failures

    @property
    def settled(self) -> bool:
        """Whether a person gave the step its result."""
        return isinstance(self.kept, dict) and "settled" in self.kept

    def output(self, result: Any) -> Json:
        """What is kept on the step."""
        if self.settled:
            return self.kept
        match self.kind:
            case "reason":
                return {"answer": result.value}
            case "tools" | "delegate" if self.for_each:
                return {"results": {self.node: result.value}, "failures": list(result.failures), "ok": result.ok}
            case "tools" | "delegate":
                kept = {"results": self.results(), "failures": list(result.failures), "ok": result.ok}
                if self.terms is not None:
                    return kept | ({"decided": result.value} if result.ok else {})
                done = [one.call["label"] for one in self.calls if one.call["status"] == "done"]
                return kept | ({"last": done[-1]} if done and not self.results_by_label else {})
            case _:
                return self.kept


class Draft:
    """What the end of a step will mean; `land` commits it whole."""

    def __init__(self, at: Position) -> None:
        self.at = at
        self.events: list[Event] = []
        self.step_values: dict[str, Any] = {}
        self.new_steps: list[NewStep] = []
        self.calls: list[CallChange] = []
        self.new_calls: list[NewCall] = []
        self.attempts: list[AttemptEnd] = []
        self.new_attempts: list[NewAttempt] = []
        self.memory: list[MemoryWrite] = []
        self.effects: list[tuple[UUID, str]] = []
        self.children: list[NewTrace] = []
        self.letters: list[DeadLetter] = []
        self.end: End | None = None
        self.state: dict[str, Json] | None = None
        self.waits_for: str | None = None
        self.listens: tuple[UUID, str] | None = None
        self.closes = False

    def event(self, name: str, step_id: UUID | None = None, *, call_id: UUID | None = None, **body: Json) -> None:
        if not self.at.policy.record_trace:
            body = {key: value for key, value in body.items() if key in KEPT_WITHOUT_TRACE}
        self.events.append(Event(name, step_id or self.at.step_id, call_id, body))

    def notes(self, notes: Iterable[Note], redact: Any) -> None:
        for note in notes:
            body = {key: _short(value) for key, value in note.body.items()}
            self.event(note.event, **redact(body))

    def remember(self, memory: list[MemoryWrite]) -> None:
        if memory:
            self.memory += memory
            self.event("MEMORY_WRITE", keys=[f"{one.type}:{one.key}" for one in memory])

    def handled(self, outcome: Outcome, memory: list[MemoryWrite], result: StepResult) -> None:
        """What the callback of the step decided, with what it writes."""
        self.remember(memory)
        if self.at.terms is not None and result.ok and not self.at.settled:
            self.event("EXEC_DELEGATE", decided=result.value.get("winner", result.value["answer"]))
        self.event("CALLBACK_RESULT", ok=result.ok, callbacks=list(outcome.effects))
        self.event("CALLBACK_NEXT_ACTION", verdict=outcome.verdict.kind)
        self.effects += [(self.at.step_id, name) for name in outcome.effects]

    def step(self, **values: Any) -> None:
        self.step_values |= values

    def ends(self, attempt_id: UUID | None, outcome: Any, error: Json = None) -> None:
        """The attempt of the step itself, with what this thread has heard meanwhile."""
        if attempt_id is not None:
            self.attempts.append(AttemptEnd(attempt_id, outcome, error, said_here()))

    def ran(self, one: LiveCall, outcome: Any, error: Json = None, *, log: Json = None) -> None:
        """An inline call of the step, where it ran here, with what was logged meanwhile."""
        if one.attempt_id is not None:
            self.attempts.append(AttemptEnd(one.attempt_id, outcome, error, log, one.call["id"]))

    def land(self, db: Database, *, keep: bool) -> Landed | None:
        """Commit; None when the trace is no longer ours."""
        steps = (StepChange(id=self.at.step_id, **self.step_values),) if self.step_values else ()
        change = Change(
            tuple(self.events), steps, tuple(self.new_steps), tuple(self.calls), tuple(self.new_calls),
            tuple(self.attempts), tuple(self.new_attempts), tuple(self.memory), tuple(self.effects), tuple(self.children),
            self.end, keep, letters=tuple(self.letters), state=self.state, waits_for=self.waits_for, listens=self.listens,
            closes=self.closes,
        )  # fmt: skip
        landed = traces.commit(db, self.at.held, change)
        self.at.fate.landed += landed is not None
        return landed


def _short(value: Json) -> Json:
    return value[:MAX_TEXT] + "…" if isinstance(value, str) and len(value) > MAX_TEXT else value
