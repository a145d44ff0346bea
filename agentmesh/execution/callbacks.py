"""The CallbackHandler: what a step's result means for memory and for the trace.

Custom handlers run before the transaction and write nothing; what they want written they hand over as values, which
commit with the verdict or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from pydantic import ValidationError

from agentmesh.behavior.session import Session
from agentmesh.errors import CallbackFailed
from agentmesh.execution.plan import Otherwise
from agentmesh.infrastructure import jsontext
from agentmesh.records import Failure, Json, Policy, Record, Verdict, check_name
from agentmesh.state.changes import MemoryWrite

Handler = Callable[[Json, Session], Any]

HANDLERS: dict[str, Handler] = {}
"""Custom handlers by the names that policies use."""

MEMORY_EFFECT = "write_memory"


class Remember(Record):
    """An entry a handler wants written."""

    key: str
    value: Json = None
    type: Literal["short_term", "long_term"] = "long_term"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step came to. `answered`: the reasoner's answer; otherwise what its tools returned, or what it waited for.

    `otherwise` says where its node goes when no handler rules.
    """

    step_id: UUID
    node: str
    ok: bool
    answered: bool
    value: Json
    failures: tuple[dict[str, Json], ...] = ()
    otherwise: Otherwise = "trigger"

    @property
    def failure(self) -> Failure | None:
        """Why the first of its failures happened; None where nothing failed."""
        if not self.failures:
            return None
        first = self.failures[0]
        return Failure(str(first.get("code") or "E_TOOLS"), str(first.get("message") or "a tool failed"),
                       detail={key: first[key] for key in ("tool", "value", "expected") if key in first})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What commits with the verdict."""

    verdict: Verdict
    memory: tuple[MemoryWrite, ...]
    effects: tuple[str, ...]
    defaulted: bool  # no handler gave the verdict


def register_callback(name: str) -> Callable[[Handler], Handler]:
    """Make `handler(result, session)` the custom callback of this name; a policy's `callbacks` lists it."""
    check_name(name, "a callback")

    def declare(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        return handler

    return declare


class CallbackHandler:
    """Handles results under a policy."""

    def __init__(self, handlers: Mapping[str, Handler] | None = None) -> None:
        self._handlers = HANDLERS if handlers is None else handlers

    def handle(self, result: StepResult, policy: Policy, session: Session) -> Outcome:
        """Run the policy's handlers in order; the last one that gives a verdict decides.

        Without one: a step that failed aborts, any other goes where its node says; see `Otherwise`. Raises CallbackFailed,
        or what a handler raises.
        """
        verdict: Verdict | None = None
        memory: list[MemoryWrite] = []
        if policy.write_memory and result.ok:
            memory.append(MemoryWrite("short_term", f"result:{result.node}", result.value, "callback", result.step_id))
        for name in policy.callbacks:
            said = self._run(name, result, session)
            verdict = said[0] or verdict
            memory += [MemoryWrite(one.type, one.key, one.value, name, result.step_id) for one in said[1]]
        return Outcome(verdict or default_verdict(result, policy), tuple(memory), effects_of(policy), verdict is None)

    def _run(self, name: str, result: StepResult, session: Session) -> tuple[Verdict | None, list[Remember]]:
        handler = self._handlers.get(name)
        if handler is None:
            raise CallbackFailed("no callback has this name", value=name,
                                 expected=f"one of {', '.join(sorted(self._handlers)) or 'none'}")  # fmt: skip
        said = handler(result.value, session)
        if said is None:
            return None, []
        if isinstance(said, Verdict):
            return said, []
        return _read(name, said)


def effects_of(policy: Policy) -> tuple[str, ...]:
    """The names under which what a callback does is recorded, once each."""
    return ((MEMORY_EFFECT,) if policy.write_memory else ()) + policy.callbacks


def default_verdict(result: StepResult, policy: Policy) -> Verdict:
    if not result.ok:
        first = result.failures[0] if result.failures else {}
        return Verdict(kind="abort", reason=str(first.get("message") or "the tools of this step did not succeed"))
    on = result.otherwise == "next" or (result.otherwise == "trigger" and policy.trigger_next_action)
    return Verdict(kind="continue") if on else Verdict(kind="finish")


def _read(name: str, said: object) -> tuple[Verdict | None, list[Remember]]:
    if not isinstance(said, Mapping):
        raise CallbackFailed(f"callback {name} returned no verdict", value=said,
                             expected='None, a Verdict, or {"verdict": …, "memory": […]}')  # fmt: skip
    fields = dict(said)
    kind, memory = fields.pop("verdict", None), fields.pop("memory", [])
    try:
        text = jsontext.dumps(fields | {"kind": kind}, what=f"what callback {name} returned")
        verdict = None if kind is None and not fields else Verdict.model_validate_json(text)
        writes = [Remember.model_validate_json(jsontext.dumps(one, what="a memory entry")) for one in memory]
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        raise CallbackFailed(
            f"callback {name} returned what is no verdict: {first['msg']}", value=first["input"]
        ) from exc
    return verdict, writes
