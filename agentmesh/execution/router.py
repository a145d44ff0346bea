"""The ToolRouter: an action becomes slots of calls, or is refused.

Checked here, whatever a reasoner wants: that every tool exists, that the agent may use it, that the trace has the
permissions it needs, and that its arguments fit its schema. Nothing in an action can widen any of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal
from uuid import UUID

from agentmesh.behavior.declared import Offered
from agentmesh.behavior.session import Session
from agentmesh.errors import BadAction, Forbidden, UnknownTool
from agentmesh.execution.failures import ours
from agentmesh.execution.tools import Tool, ToolRegistry, unknown_tool
from agentmesh.infrastructure.database import Row
from agentmesh.records import Action, Backoff, Effect, Json, Policy, ToolUse, new_id, tool_queue
from agentmesh.state.changes import NewCall, NewStep
from agentmesh.state.traces import Held

MAX_CALLS = 10_000
GROUP = 200
"""A step counts at most so many slots; a wider one is cut into groups, each with a counter of its own."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What is known of a tool here: its own declaration, or what another worker announced."""

    name: str
    queue: str
    needs: tuple[str, ...]
    effect: Effect
    inline: bool
    tx: bool
    asks: bool
    timeout_s: float
    attempts: int
    backoff: Backoff
    compensate: str | None
    tool: Tool | None
    announced: Json = None

    def offered(self) -> Offered:
        """What a model is told of it."""
        spec = self.announced if self.tool is None else self.tool.spec()
        return Offered(self.name, str(spec["description"]), spec["arguments"])


@dataclass(frozen=True, slots=True)
class Rights:
    """Who asks for tools, and which it may have."""

    agent: str
    tenant: str
    permissions: tuple[str, ...]
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A tools step to be: how many slots, how many wins it needs, and its calls in slot order."""

    slots: int
    need: int
    require: str
    calls: tuple[NewCall, ...]
    inline: bool
    groups: tuple[NewStep, ...] = ()


class ToolRouter:
    """Resolves the actions of one process's agents. `announced()` gives the tools of other workers by name."""

    def __init__(
        self, registry: ToolRegistry, announced: Callable[[str], dict[str, Row]], *, fan_out: int = MAX_CALLS
    ) -> None:
        self._registry = registry
        self._announced = announced
        self._fan_out = min(fan_out, MAX_CALLS)

    def tool(self, name: str) -> Tool:
        """The tool's code in this process. Raises UnknownTool."""
        return self._registry.get(name)

    def offers(self, session: Session) -> list[Offered]:
        """The tools of the session's agent that its permissions cover, for a model to choose from."""
        rights, found = _rights(session), []
        for name in sorted(rights.allowed):
            with suppress(UnknownTool, Forbidden):
                found.append(ours(partial(self._offer, name, rights)).offered())
        return found

    def vet(self, action: Action, session: Session) -> None:
        """Raises where `resolve` would: UnknownTool, Forbidden, BadArguments or BadAction."""
        ours(lambda: self._vetted(action, _rights(session)))

    def resolve(
        self,
        action: Action,
        *,
        held: Held,
        step: NewStep,
        allowed: Iterable[str],
        policy: Policy,
        limit: int | None = None,
    ) -> Dispatch:
        """The calls of `action` for this visit; at first at most `limit` of its slots start, each end starts one more.

        Raises UnknownTool, Forbidden, BadArguments or BadAction.
        """
        offers = self._vetted(action, Rights(held.agent, held.tenant_id, held.permissions, frozenset(allowed)))
        inline = all(one.inline and not one.tx for one in offers.values())
        shape = _shape(action)
        need = {"all": len(shape), "each": len(shape), "any": 1}.get(str(action.require), action.require)
        calls = [
            self._call(use, offers[use.tool], (slot, idx, len(in_slot)), mode, (held, step, policy), inline=inline)
            for slot, (mode, in_slot) in enumerate(shape)
            for idx, use in enumerate(in_slot)
        ]
        if limit is not None and limit < len(shape):
            inline = False
            calls = [
                replace(one, limited=True, status="held" if one.idx or one.slot >= limit else "ready") for one in calls
            ]
        dispatch = Dispatch(len(shape), int(need), str(action.require), tuple(calls), inline)
        return dispatch if inline or len(shape) <= GROUP else _grouped(dispatch, step)

    def _vetted(self, action: Action, rights: Rights) -> dict[str, Offer]:
        uses = [use for slot in action.slots for use in slot]
        if len(uses) > self._fan_out:
            raise BadAction("an action has too many calls", value=len(uses), expected=f"at most {self._fan_out}")
        offers = {name: self._offer(name, rights) for name in sorted({use.tool for use in uses})}
        for use in uses:
            tool = offers[use.tool].tool
            if tool is not None:
                tool.check(use.args)
        return offers

    def _offer(self, name: str, rights: Rights) -> Offer:
        allowed = rights.allowed
        announced = {} if name in self._registry else self._announced(rights.tenant)
        if name not in self._registry and name not in announced:
            raise unknown_tool(name, allowed | {one.name for one in self._registry.list()} | announced.keys())
        if name not in allowed:
            raise Forbidden(f"agent {rights.agent} may not use tool {name}", value=name,
                            expected=f"one of {', '.join(sorted(allowed)) or 'none'}")  # fmt: skip
        offer = _local(self._registry.get(name)) if name in self._registry else _remote(announced[name])
        if offer.asks and offer.tool is None:
            raise UnknownTool(f"tool {name} asks an agent, and is not declared where agent {rights.agent} runs", value=name,
                              expected="its file, or its module, in the settings of this worker, too")  # fmt: skip
        missing = sorted(set(offer.needs) - set(rights.permissions))
        if missing:
            raise Forbidden(f"the trace lacks what tool {name} needs", value=", ".join(missing),
                            expected=f"one of {', '.join(rights.permissions) or 'none'}")  # fmt: skip
        return offer

    def _call(
        self, use: ToolUse, offer: Offer, place: tuple[int, int, int], mode: Literal["all", "first", "each"],
        visit: tuple[Held, NewStep, Policy], *, inline: bool,
    ) -> NewCall:  # fmt: skip
        held, step, policy = visit
        slot, idx, size = place
        here = offer.inline or offer.asks
        backoff = policy.backoff if policy.backoff != Backoff() else offer.backoff
        return NewCall(
            id=new_id(), step_id=step.id, slot=slot, idx=idx, slot_size=size, slot_mode=mode, tool=offer.name,
            label=use.label, args=use.args, needs=offer.needs, effect=offer.effect, inline=inline,
            status="held" if idx else "running" if inline else "ready",
            queue=held.queue if here else offer.queue, task=f"agent.{held.agent}" if here else f"tool.{offer.name}",
            priority=held.priority, idem_key=idempotency_key(held.id, step.node, step.iteration, slot, idx),
            timeout_s=policy.tool_timeout_s or offer.timeout_s,
            max_attempts=1 if offer.effect == "once" else policy.tool_attempts or offer.attempts,
            max_losses=policy.max_losses, backoff_s=backoff.base_s, backoff_cap_s=backoff.cap_s,
            compensate=offer.compensate,
        )  # fmt: skip


def idempotency_key(trace_id: UUID, node: str, iteration: int, slot: int, idx: int) -> str:
    """Stable over attempts and retries of one call, new for a new visit of its node or another trace."""
    return hashlib.sha256(f"{trace_id}/{node}/{iteration}/{slot}/{idx}".encode()).hexdigest()[:40]


def _shape(action: Action) -> list[tuple[Literal["all", "first", "each"], tuple[ToolUse, ...]]]:
    uses = tuple(use for slot in action.slots for use in slot)
    match action.strategy:
        case "serial":
            return [("each" if action.require == "each" else "all", uses)]
        case "parallel":
            return [("each" if action.require == "each" else "all", (use,)) for use in uses]
        case "fallback":
            return [("first", uses)]
        case "mixed":
            return [("first", slot) for slot in action.slots]


def _grouped(dispatch: Dispatch, step: NewStep) -> Dispatch:
    """The same in groups of slots, which count for themselves: many results at once do not wait for one counter.

    The groups' rows are made after their calls, as locks are taken.
    """
    groups = [
        NewStep(
            new_id(), step.node, "group", "waiting", step.iteration, step.ordinal, require=dispatch.require, slots=width,
            pending=width, group_of=step.id,
        )
        for first in range(0, dispatch.slots, GROUP)
        for width in [min(GROUP, dispatch.slots - first)]
    ]  # fmt: skip
    calls = (replace(one, group_id=groups[one.slot // GROUP].id) for one in dispatch.calls)
    return replace(dispatch, calls=tuple(calls), groups=tuple(groups))


def _rights(session: Session) -> Rights:
    return Rights(session.agent, session.tenant, session.permissions, frozenset(session.tools))


def _local(tool: Tool) -> Offer:
    return Offer(tool.name, tool.queue, tool.needs, tool.effect, tool.inline, tool.tx, tool.asks is not None,
                 tool.timeout_s, tool.attempts, tool.backoff, tool.compensate, tool)  # fmt: skip


def _remote(row: Row) -> Offer:
    spec: dict[str, Json] = row["spec"]
    return Offer(
        name=row["id"], queue=row["queue"] or tool_queue("tools"), needs=tuple(row["needs"]), effect=row["effect"],
        inline=False, tx=bool(spec["tx"]), asks=spec.get("asks") is not None, timeout_s=float(spec["timeout_s"]),
        attempts=int(spec["attempts"]),
        backoff=Backoff.model_validate(spec["backoff"]),
        compensate=spec.get("compensate"), tool=None, announced=spec,
    )  # fmt: skip
