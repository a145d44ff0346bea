"""What goes in and out over HTTP, as OpenAPI describes it. Answers may gain fields within /v1, and lose none."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from agentmesh.communication.envelope import SomePermissions, SomePolicy
from agentmesh.observation import timeline
from agentmesh.records import ContextId, IntentName, Locale, Name, Record

T = TypeVar("T")
SomeId = Annotated[UUID | None, BeforeValidator(lambda value: UUID(value) if isinstance(value, str) else value)]
FILTER = (
    f"(status:({'|'.join(timeline.STATUSES)})|({'|'.join(one for one in timeline.FILTERS if one != 'status')}):[!-~]+)"
)
Json = JsonValue


class NewIntent(Record):
    """What is asked of an agent. `permissions` left out: all that the sender may give and the agent accepts."""

    model_config = ConfigDict(
        validate_by_name=False, validate_by_alias=True, hide_input_in_errors=True,
        json_schema_extra={"examples": [{"to": "report_agent", "from": "shop", "intent": "generate_report",
                                         "context_id": "session-001", "payload": {"date": "2025-04-25"}}]},
    )  # fmt: skip

    to: Name
    from_: Annotated[ContextId, Field(alias="from")]
    intent: IntentName
    context_id: ContextId
    payload: dict[str, Json] = Field(default={})
    permissions: SomePermissions = None
    policy: SomePolicy = None
    delay: Annotated[float, Field(gt=0, le=366 * 86_400, description="Seconds before it may begin.")] | None = None
    priority: Annotated[int, Field(ge=0, le=9, description="9 first.")] = 5
    locale: Locale | None = None


class Order(Record):
    """Why a trace is steered; it stands in the trace's events. `tree` is for cancel: and everything it delegated."""

    reason: Annotated[str, Field(max_length=2000)] = ""
    tree: bool = False


class NewSignal(Record):
    """What a trace waits for, or will wait for; counted once under its `key`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: Name
    payload: Json = None
    key: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,255}$")] | None = None


class Decision(Record):
    """How an approval is decided: `digest` is that of what was seen; no choice is the first option, `reject` the last."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    choice: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    reject: bool = False
    reason: Annotated[str, Field(max_length=2000)] = ""


class NewFeedback(Record):
    """How well a decision turned out: the one that led to step number `step`, or the last one. Once under one `key`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    reward: Annotated[float, Field(ge=-1e9, le=1e9)]
    step: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    note: Annotated[str, Field(max_length=500)] = ""
    key: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,255}$")] | None = None


class Rewind(Record):
    """The step to begin anew at, as the trace's steps are numbered."""

    step: Annotated[int, Field(ge=1, le=1_000_000)]
    reason: Annotated[str, Field(max_length=2000)] = ""


class Fork(Record):
    """The step to begin at, keys of the payload that change, and the hash of another plan."""

    step: Annotated[int, Field(ge=1, le=1_000_000)]
    changes: dict[str, Json] = Field(default={})
    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Bulk(Record):
    """One order for at most `limit` traces that match, newest first; `before` is the `next` of the answer before."""

    action: Literal["pause", "resume", "cancel", "retry"]
    filter: Annotated[str, Field(max_length=500, pattern=rf"^{FILTER}( {FILTER})*$")]
    limit: Annotated[int, Field(ge=1, le=100_000)] = 1000
    before: SomeId = None
    reason: Annotated[str, Field(max_length=2000)] = ""


class NewSchedule(Record):
    """What an agent is asked, and when, as `0 9 * * 1-5`; `missed` is what becomes of moments nobody was there for."""

    model_config = ConfigDict(hide_input_in_errors=True)

    agent: Name
    intent: IntentName
    cron: Annotated[str, Field(min_length=1, max_length=200)]
    timezone: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_+/-]{0,63}$")] = "UTC"
    payload: dict[str, Json] = Field(default={})
    context_id: ContextId | None = None
    missed: Literal["skip", "once", "all"] = "once"
    priority: Annotated[int, Field(ge=0, le=9, description="9 first.")] = 5


class CallAnswer(Record):
    """How a tool call that waited has ended: with its result, or failed for good."""

    model_config = ConfigDict(
        hide_input_in_errors=True, json_schema_extra={"oneOf": [{"required": ["result"]}, {"required": ["failed"]}]}
    )

    result: Json = None
    failed: Annotated[str, Field(min_length=1, max_length=2000)] = "-"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("either a result or why it has failed")
        return self


class Answer(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Accepted(Answer):
    """The trace that works on an intent."""

    id: UUID
    status: str
    url: str


class Finished(Answer):
    """The call that was answered, and what became of it."""

    id: UUID
    status: str


class Steered(Answer):
    """What became of an order. `changed` false: it was so already."""

    id: UUID
    changed: bool
    status: str
    paused: bool


class Signalled(Answer):
    """`heard` by a step that waits for it now; else kept. `repeated`: it came before under its key."""

    id: UUID
    heard: bool
    repeated: bool


class Approval(Answer):
    """What exactly is asked, of whom, and until when. Whoever decides it names its `digest`."""

    trace_id: UUID
    step_id: UUID
    node: str
    agent: str
    intent: str
    context_id: str
    asked: Json
    digest: str
    created_at: datetime
    wake_at: datetime | None


class Decided(Answer):
    id: UUID
    node: str
    choice: str
    by: str


class Rewarded(Answer):
    """The decision that earned it: that of step number `step`."""

    id: UUID
    step: int
    repeated: bool


class Rewound(Answer):
    """Where it begins anew; memory keys that went back, and those that somebody else has written since."""

    id: UUID
    node: str
    restored: list[str]
    parked: list[str]


class BulkDone(Answer):
    """How many were changed, came too late, were refused. `next`: where the same order goes on, null at the end."""

    changed: int
    late: int
    refused: int
    next: UUID | None


class Agent(Answer):
    id: str
    state: str
    version: str
    queue: str
    intents: list[str] | None
    accepts: list[str]
    workers: int
    queued: int
    running: int
    paused_at: datetime | None
    paused_by: str | None


class AgentSteered(Answer):
    id: str
    changed: bool
    paused: bool


class Schedule(Answer):
    id: str
    agent: str
    intent: str
    context_id: str
    payload: Json
    priority: int
    cron: str
    timezone: str
    missed: str
    declared: bool
    permissions: list[str] | None
    next_at: datetime | None
    fired_at: datetime | None
    fired: int
    error: Json


class Letter(Answer):
    id: UUID
    trace_id: UUID
    code: str
    fingerprint: str
    agent: str
    intent: str
    tool: str | None
    error: Json
    evidence: Json
    at: datetime


class LetterSettled(Answer):
    id: UUID
    trace_id: UUID
    settled_as: str


class AuditRow(BaseModel):
    """Beside these: what the order was about."""

    model_config = ConfigDict(extra="allow")

    seq: int
    id: UUID
    at: datetime
    tenant: str
    action: str
    by: str
    key: str | None = None
    permission: str | None = None
    trace_id: UUID | None = None


class Page(Answer, Generic[T]):
    """Some of a list, in its order. `next` is the path of what follows, null at the end."""

    items: list[T]
    next: str | None


class CountedPage(Page[T], Generic[T]):
    """`count` is of all that match; with `more` there are more than it says."""

    count: int
    more: bool


class TraceRow(Answer):
    id: UUID
    context_id: str
    parent_id: UUID | None
    root_id: UUID
    agent: str
    intent: str
    from_: Annotated[str, Field(validation_alias="from_id", serialization_alias="from")]
    status: str
    priority: int
    steps: int
    depth: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    wake_at: datetime | None
    paused_at: datetime | None
    seconds: float


class TraceFull(TraceRow):
    permissions: list[str]
    policy: dict[str, Json]
    payload: Json
    result: Json
    error: Json
    waits_for: str | None
    queue: str
    plan_hash: str | None
    agent_version: str | None
    worker: str | None


class Step(Answer):
    id: UUID
    ordinal: int
    node: str
    iteration: int
    kind: str
    phase: str
    status: str
    slots: int
    pending: int
    wins: int
    failures: int
    losses: int
    action: Json
    output: Json
    error: Json
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    wake_at: datetime | None


class Call(Answer):
    id: UUID
    step_id: UUID
    slot: int
    idx: int
    slot_mode: str
    tool: str
    label: str
    args: Json
    effect: str
    status: str
    queue: str
    epoch: int
    n: int
    failures: int
    losses: int
    max_attempts: int
    result: Json
    error: Json
    created_at: datetime
    ended_at: datetime | None
    wake_at: datetime | None
    child_trace_id: UUID | None


class Attempt(Answer):
    id: UUID
    step_id: UUID
    call_id: UUID | None
    kind: str
    n: int
    epoch: int
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: Json
    progress: Json
    log: Json
    worker: str | None


class Event(Answer):
    seq: int
    name: str
    at: datetime
    step_id: UUID | None
    call_id: UUID | None
    body: Json


class Memory(Answer):
    type: str
    key: str
    value: Json
    version: int
    origin: str
    trusted: bool
    at: datetime


class Dump(BaseModel):
    """A trace and all that is recorded of it; beside these its steps, calls, attempts, memory, plan, children and events."""

    model_config = ConfigDict(extra="allow")

    trace: dict[str, Any]
    held_up_by: list[str]
    next: list[dict[str, Any]]


class Fault(Answer):
    pointer: str
    detail: str


class Problem(Answer):
    """RFC 9457, with what every error of ours says."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    value: Any
    expected: str
    next: str
    errors: list[Fault] | None = None


class Health(Answer):
    status: Literal["alive", "ready"]


BODIES = (NewIntent, Order, NewSignal, NewFeedback, Decision, Rewind, Fork, Bulk, NewSchedule, CallAnswer)
"""What is read by hand, so that FastAPI does not describe it."""
