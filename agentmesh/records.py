"""Nouns that three or more rooms share: ids, names, permissions, policies, and the small values that travel.

Records at the borders are frozen, strict pydantic models; values inside are frozen dataclasses. Nothing here knows a
row, a queue or a clock, except `new_id`, which reads the wall clock only to order ids.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from agentmesh.errors import BadName, BadPermission

Json = Any
"""What strict JSON can say: None, bool, int, float, str, list and dict with str keys."""

NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}\Z")
_PART = r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?"
PERMISSION = re.compile(rf"{_PART}(?::{_PART})+\Z")
GRANT = re.compile(rf"(?:{_PART}:)*\*\Z|{PERMISSION.pattern}")
MAX_PERMISSIONS = 64
MAX_PERMISSION_CHARS = 128

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
ContextId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@+-]{0,127}$")]
IntentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.:-]{0,127}$")]
Locale = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,35}$")]
Permission = Annotated[str, StringConstraints(pattern=rf"^{_PART}(?::{_PART})+$", max_length=MAX_PERMISSION_CHARS)]
Permissions = Annotated[tuple[Permission, ...], Field(max_length=MAX_PERMISSIONS)]
Effect = Literal["repeatable", "keyed", "once"]
Strategy = Literal["serial", "parallel", "fallback", "mixed"]
Require = Literal["all", "any", "each"] | Annotated[int, Field(ge=1, le=10_000)]
"""How many of a step's slots have to succeed; `each`: none has to, but all of them end."""


class Record(BaseModel):
    """A value that crosses a border: frozen, strict, unknown fields refused. Read JSON with `model_validate_json`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _Ids:
    """UUIDv7 (RFC 9562, method 1: a counter in rand_a), ascending within a process, safe after fork."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: in a child, the parent's lock may be held for ever."""
        self._lock = threading.Lock()
        self._last = 0

    def new(self) -> UUID:
        with self._lock:
            tick = (time.time_ns() // 1_000_000) << 12  # 48 bits of milliseconds, 12 of counter
            self._last = tick if tick > self._last else self._last + 1
            tick = self._last
        tail = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
        return UUID(int=(tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | tail)


_ids = _Ids()
os.register_at_fork(after_in_child=_ids.reset)


def new_id() -> UUID:
    """A UUIDv7 that is greater than every one this process made before."""
    return _ids.new()


class Actor(str):
    """Who gives an order, by name; and, where a door let them in, the key they were believed by and what let them."""

    key: str | None
    permission: str | None

    def __new__(cls, name: str, *, key: str | None = None, permission: str | None = None) -> Actor:
        made = super().__new__(cls, name)
        made.key, made.permission = key, permission
        return made


def named(by: str) -> dict[str, Json]:
    """What events and audit rows say of who gave an order."""
    known = {"by": str(by), "key": getattr(by, "key", None), "permission": getattr(by, "permission", None)}
    return {key: value for key, value in known.items() if value is not None}


def check_name(name: object, what: str) -> str:
    """The name itself. Raises BadName unless it fits the grammar of agents, tools and groups."""
    if not isinstance(name, str) or not NAME.match(name):
        raise BadName(f"{what} has a name that is not allowed", value=name)
    return name


def check_permissions(permissions: Iterable[object], *, wildcards: bool = False) -> tuple[str, ...]:
    """Sorted, without doubles. Raises BadPermission; `wildcards` is for grants only."""
    if isinstance(permissions, str | bytes) or not isinstance(permissions, Iterable):
        raise BadPermission("permissions are not a list", value=permissions, expected="a list")
    listed = list(islice(permissions, MAX_PERMISSIONS + 1))
    if len(listed) > MAX_PERMISSIONS:
        raise BadPermission("too many permissions", expected=f"at most {MAX_PERMISSIONS}")
    grammar = GRANT if wildcards else PERMISSION
    for one in listed:
        if not isinstance(one, str) or len(one) > MAX_PERMISSION_CHARS or not grammar.match(one):
            raise BadPermission("a permission is not well formed", value=one)
    return tuple(sorted({str(one) for one in listed}))


def grants_cover(grants: Iterable[str], permission: str) -> bool:
    """Whether one of `grants` (whose last part may be '*') allows `permission`."""
    for grant in grants:
        if grant in {permission, "*"}:
            return True
        if grant.endswith(":*") and permission.startswith(grant[:-1]):
            return True
    return False


def expand_grants(grants: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The permissions among `known` that `grants` allow, sorted; wildcards end here."""
    held = tuple(grants)
    return tuple(sorted({one for one in known if grants_cover(held, one)}))


class Backoff(Record):
    """Full-jitter exponential back-off: uniform in 0 … min(cap_s, base_s * 2 ** (n - 1)) before attempt n + 1."""

    base_s: Annotated[float, Field(ge=0, le=3600)] = 1.0
    cap_s: Annotated[float, Field(ge=0, le=86400)] = 300.0


class Webhook(Record):
    """Who is told of a trace, and the name of the secret ("whsec_…") that signs it."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]{1,300}([/?][\x21-\x7e]{0,2000})?$")]
    """Without a user or a password: it is recorded."""
    secret: Name
    on: tuple[Literal["end", "callback"], ...] = ("end",)


def origin_of(url: str) -> str:
    """Who a webhook tells, without the path and the query: they may be a secret."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?]', rest, maxsplit=1)[0]}"


class Policy(Record):
    """How a trace is worked. Rising order: defaults, the agent's file, the plan, the intent; the result is recorded."""

    write_memory: bool = True
    record_trace: bool = True
    trigger_next_action: bool = False
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    reasoner_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    reasoner_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    callback_timeout_s: Annotated[float, Field(gt=0, le=3_600)] = 30.0
    callback_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    tool_timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    tool_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    max_losses: Annotated[int, Field(ge=1, le=100)] = 3
    backoff: Backoff = Backoff()
    callbacks: tuple[Name, ...] = ()
    on_fail: Literal["callback", "fail"] = "callback"
    on_callback_fail: Literal["fail", "finish"] = "fail"
    webhook: Webhook | None = None
    given: tuple[str, ...] = ()
    """What the intent itself set: no plan overrides it."""


class PolicyPatch(Record):
    """A partial policy: only the fields that are set override what stands below."""

    write_memory: bool | None = None
    record_trace: bool | None = None
    trigger_next_action: bool | None = None
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    reasoner_timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    reasoner_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    callback_timeout_s: Annotated[float, Field(gt=0, le=3_600)] | None = None
    callback_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    tool_timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    tool_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    max_losses: Annotated[int, Field(ge=1, le=100)] | None = None
    backoff: Backoff | None = None
    callbacks: tuple[Name, ...] | None = None
    on_fail: Literal["callback", "fail"] | None = None
    on_callback_fail: Literal["fail", "finish"] | None = None
    webhook: Webhook | None = None


class ToolUse(Record):
    """One tool an action names: its arguments, and the name its result goes by (None: the tool's own)."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    tool: Name
    args: dict[str, Json] = {}
    as_: Annotated[Name | None, Field(alias="as")] = None

    @property
    def label(self) -> str:
        return self.as_ or self.tool


class Action(Record):
    """What a reasoner decided: an answer (then there are no slots), or tools and how to run them.

    A slot is tried or run in order: serial and fallback have one, parallel has one a tool, mixed as
    many as it names. `candidates` (by name, the chosen one first), `propensity` and `policy_version` are recorded for
    rewards.
    """

    answer: Json = None
    slots: tuple[tuple[ToolUse, ...], ...] = ()
    strategy: Strategy = "serial"
    require: Require = "all"
    candidates: tuple[str, ...] = ()
    propensity: float | None = None
    policy_version: str | None = None


class Intent(Record):
    """What a producer asks of an agent, checked and not yet accepted.

    `permissions` None: all the producer's grants that the agent accepts. `delay_s` None: at once.
    """

    intent: IntentName
    from_id: ContextId
    to_id: Name
    context_id: ContextId
    payload: dict[str, Json] = {}
    permissions: tuple[str, ...] | None = None
    policy: PolicyPatch | None = None
    idempotency_key: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,255}$")] | None = None
    delay_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    locale: Locale | None = None


class Verdict(Record):
    """What a callback decides about the trace."""

    kind: Literal["continue", "goto", "finish", "abort", "delegate"]
    result: Json = None
    reason: str | None = None
    to: Name | None = None
    intent: str | None = None
    payload: dict[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class Ring:
    """A doorbell: look at this row. `kind` is trace, step or call; `queue` and `task` say where."""

    kind: Literal["trace", "step", "call"]
    id: UUID
    epoch: int
    queue: str
    task: str
    trace_id: UUID
    priority: int = 5
    envelope: str | None = None  # the signed envelope: only the first ring of a trace carries it
    body: Ring | None = None  # a call's: where to ring when its step joins

    @property
    def task_id(self) -> str:
        return f"{self.id}.{self.epoch}"


@dataclass(frozen=True, slots=True)
class Later:
    """Returned by a tool whose answer comes later: the call waits for it so long, and holds nothing meanwhile."""

    within_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class AgentCall:
    """Another agent that a tool stands for: its call is a child trace for `intent` (None: that of the trace that calls),
    and that one's end is the call's. It has of the caller's permissions those in `permissions` (None: all)."""

    agent: str
    intent: str | None = None
    permissions: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed, as it is recorded: a stable code and one line for people."""

    code: str
    message: str
    permanent: bool = False
    after_s: float | None = None
    detail: dict[str, Json] = field(default_factory=dict)

    def as_json(self) -> dict[str, Json]:
        return {"code": self.code, "message": self.message[:2000], **self.detail}


def agent_queue(name: str) -> str:
    return f"agent.{name}"


def tool_queue(group: str) -> str:
    return "tools" if group == "tools" else f"tools.{group}"
