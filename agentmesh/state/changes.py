"""What a holder wants committed, as values: the parts of one transition of a trace.

Executors build a Change, `traces.commit` lands it whole or not at all. Times are seconds from the commit; ids are made
by us beforehand, so that a commit whose answer was lost can be repeated under the same ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from typing import Any, Literal
from uuid import UUID

from agentmesh.records import Json, new_id


@dataclass(frozen=True, slots=True)
class Event:
    """A fact about a trace; numbered when it lands."""

    name: str
    step_id: UUID | None = None
    call_id: UUID | None = None
    body: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewStep:
    """A visit to a node. `running` falls back to `ready` where the trace turns out to be paused.

    `wake_s` from the commit, or `wake_at` (RFC 3339), is when its time is over; `waits_for` names what it waits for.
    """

    id: UUID
    node: str
    kind: str
    status: Literal["running", "ready", "waiting"]
    iteration: int
    ordinal: int
    after_step_id: UUID | None = None
    phase: Literal["run", "callback"] = "run"
    require: str | None = None
    need: int = 0
    slots: int = 0
    pending: int = 0
    callbacks: tuple[str, ...] = ()
    action: Json = None
    timeout_s: float | None = None
    group_of: UUID | None = None
    wake_s: float | None = None
    wake_at: str | None = None
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class StepChange:
    """New values of a step the holder owns; None leaves a column as it is."""

    id: UUID
    status: Literal["running", "ready", "waiting", "done", "failed", "cancelled"]
    phase: Literal["run", "callback"] | None = None
    action: Json = None
    output: Json = None
    error: Json = None
    pending: int | None = None
    wins: int | None = None
    failures: int | None = None
    callbacks: tuple[str, ...] | None = None
    timeout_s: float | None = None
    wake_s: float | None = None


@dataclass(frozen=True, slots=True)
class NewCall:
    """One tool invocation of a tools step. `ready` is rung, `held` waits for its slot, `running` is inline."""

    id: UUID
    step_id: UUID
    slot: int
    idx: int
    slot_size: int
    slot_mode: Literal["all", "first", "each"]
    tool: str
    label: str
    args: dict[str, Json]
    needs: tuple[str, ...]
    effect: str
    inline: bool
    status: Literal["held", "ready", "running", "done"]
    queue: str
    task: str
    priority: int
    idem_key: str
    timeout_s: float
    max_attempts: int
    backoff_s: float
    backoff_cap_s: float
    group_id: UUID | None = None
    max_losses: int = 3
    limited: bool = False
    compensate: str | None = None
    kind: Literal["tool", "child"] = "tool"
    child_trace_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class CallChange:
    """How an inline call went on: done, failed, cancelled, or ready again after `wake_s`; running: its slot's next."""

    id: UUID
    epoch: int
    status: Literal["done", "failed", "cancelled", "ready", "running"]
    result: Json = None
    error: Json = None
    failed: bool = False
    wake_s: float | None = None


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """One start, recorded by the commit before it. That an inline call has started its own row says."""

    id: UUID
    step_id: UUID
    kind: Literal["reason", "callback"]
    n: int
    epoch: int


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended; that of an inline call, which is written now, from the row of this call."""

    id: UUID
    outcome: Literal["won", "failed", "timeout", "lost", "released", "stale"]
    error: Json = None
    log: Json = None
    call_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class MemoryWrite:
    """One new version of an entry. Short-term entries belong to the trace, long-term ones to its context.

    `keep_s` is how long it is kept at least; None: for ever. `models` are those that it is owed a vector of.
    """

    type: Literal["short_term", "long_term"]
    key: str
    value: Json
    origin: str
    step_id: UUID | None = None
    trusted: bool = False
    deleted: bool = False
    reason: str | None = None
    keep_s: float | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parent:
    """What a child trace takes from the trace that sends it."""

    id: UUID
    tenant_id: str
    context_id: str
    agent: str
    permissions: tuple[str, ...]
    priority: int
    depth: int


@dataclass(frozen=True, slots=True)
class NewTrace:
    """A trace to accept: its row and its signed envelope. `delay_s` None means at once.

    With a `lane` it is held until that lane of its agent has a place for it.
    """

    id: UUID
    envelope_id: UUID
    tenant_id: str
    context_id: str
    agent: str
    intent: str
    from_id: str
    queue: str
    permissions: tuple[str, ...]
    payload: Json
    kid: str
    jws: str
    policy: Json
    priority: int = 5
    locale: str | None = None
    delay_s: float | None = None
    parent_id: UUID | None = None
    root_id: UUID | None = None
    depth: int = 0
    parent_call_id: UUID | None = None
    plan_hash: str | None = None
    idem_key: str | None = None
    digest: str | None = None
    lane: str | None = None
    by: str | None = None
    """Who asked for it, where a door knows; else whoever signed."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What parks a trace for a person: why, and what there is to see. Equal fingerprints have one cause."""

    code: str
    fingerprint: str
    step_id: UUID
    evidence: dict[str, Json] = field(default_factory=dict)
    id: UUID = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class End:
    """How the trace ends."""

    status: Literal["done", "failed", "cancelled"]
    result: Json = None
    error: Json = None


@dataclass(frozen=True, slots=True)
class Change:
    """Everything one transition of a held trace means. `keep`: the holder goes on with the step it starts.

    It changes one step at most, and of calls and attempts only those of that step. `state` None: as before;
    `waits_for`: what the trace waits for from now on; `listens`: its new step, and the signal that one waits for.
    `closes`: nothing else of the trace stays open.
    """

    events: tuple[Event, ...] = ()
    steps: tuple[StepChange, ...] = ()
    new_steps: tuple[NewStep, ...] = ()
    calls: tuple[CallChange, ...] = ()
    new_calls: tuple[NewCall, ...] = ()
    attempts: tuple[AttemptEnd, ...] = ()
    new_attempts: tuple[NewAttempt, ...] = ()
    memory: tuple[MemoryWrite, ...] = ()
    effects: tuple[tuple[UUID, str], ...] = ()
    children: tuple[NewTrace, ...] = ()
    end: End | None = None
    keep: bool = False
    id: UUID = field(default_factory=new_id)
    letters: tuple[DeadLetter, ...] = ()
    state: Json = None
    waits_for: str | None = None
    listens: tuple[UUID, str] | None = None
    closes: bool = False


def plain(value: Any) -> dict[str, Any]:
    """A part by the names of its fields. (`asdict` would copy every payload, too.)"""
    names, values = _fields(value.__class__)
    return dict(zip(names, values(value), strict=True))


def given(value: Any) -> dict[str, Any]:
    """`plain` without what is None: a record that is read from JSON has NULL there anyway."""
    names, values = _fields(value.__class__)
    return {name: one for name, one in zip(names, values(value), strict=True) if one is not None}


@cache
def _fields(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(kind.__dataclass_fields__)
    return names, attrgetter(*names)
