"""Errands: the child traces that a step or a tool sends, to whom, and how their ends are told to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

from agentmesh.errors import NoAgent, NotRetryable
from agentmesh.execution import cooperation
from agentmesh.execution import plan as plans
from agentmesh.execution.advance import Send
from agentmesh.execution.callbacks import effects_of
from agentmesh.execution.chainparts import one_of
from agentmesh.execution.cooperation import Offer
from agentmesh.execution.draft import Draft, Position
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.execution.router import idempotency_key
from agentmesh.execution.views import Parts, Views
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.faults import point
from agentmesh.records import AgentCall, Failure, Json, Policy, Ring, new_id
from agentmesh.state import children, offers, retry
from agentmesh.state.admission import Lane
from agentmesh.state.changes import NewCall, NewStep, NewTrace, Parent


@dataclass(frozen=True, slots=True)
class Asked:
    """Who does an errand, by which name; `choice` tells how it came to be this agent (None: it is named)."""

    errand: plans.Errand
    payload: Json
    label: str
    agent: str
    choice: dict[str, Json] | None = None


class Errands:
    """Sends the child traces of one agent's traces."""

    def __init__(self, parts: Parts, views: Views) -> None:
        self._parts, self._views = parts, views

    def step(self, at: Position, draft: Draft, decision: Send, plan: BehaviorPlan, policy: Policy) -> NewStep:
        """The step that waits for the errands, its calls and their traces.

        Raises NoAgent, and what the router of intents refuses.
        """
        node: plans.Delegate = plan.node(decision.node)
        sent = [
            (one, replace(self._child(at, plan, one, waited=True), parent_call_id=new_id()))
            for one in self._asked(at, node, dict(decision.errands))
        ]
        slots, each = len(sent), decision.terms is not None or node.require == "each"
        need = 1 if node.require == "any" else slots if each or node.require == "all" else min(slots, int(node.require))
        step = replace(
            self._opened(at, decision, policy), status="waiting", require=str(node.require), need=need, slots=slots,
            pending=slots, waits_for="children", wake_s=node.within_s,
            action={"strategy": "serial" if slots == 1 and node.errands[0].count is None else "parallel"}
            | ({"for_each": True} if node.each is not None else {})
            | ({"within_s": node.within_s} if node.within_s is not None else {})
            | ({"terms": self._kept(at, decision.terms)} if decision.terms is not None else {}),
        )  # fmt: skip
        for slot, (one, child) in enumerate(sent):
            _sent(draft, one, child, step.id)
            draft.new_calls.append(NewCall(
                id=child.parent_call_id or new_id(), step_id=step.id, slot=slot, idx=0, slot_size=1,
                slot_mode="each" if each else "all", tool=child.agent, label=one.label, args={}, needs=(),
                effect="repeatable", inline=False, status="running", queue=child.queue, task=f"agent.{child.agent}",
                priority=child.priority, idem_key=idempotency_key(at.held.id, step.node, step.iteration, slot, 0), timeout_s=0,
                max_attempts=1, backoff_s=0, backoff_cap_s=0, kind="child", child_trace_id=child.id,
            ))  # fmt: skip
        return step

    def refused(self, at: Position, draft: Draft, decision: Send, policy: Policy, why: Failure) -> NewStep:
        """The step of errands that nobody could be sent on: ready to go where a failure of it goes."""
        step = replace(self._opened(at, decision, policy), status="ready", phase="callback", need=1,
                       action={"refused": why.as_json()})  # fmt: skip
        draft.event("EXEC_DELEGATE", step.id, error_code=why.code, message=why.message[:500])
        return step

    def _opened(self, at: Position, decision: Send, policy: Policy) -> NewStep:
        """A delegate step, with nothing sent."""
        return NewStep(new_id(), decision.node, "delegate", "ready", decision.iteration, at.held.steps + 1, at.step_id,
                       callbacks=effects_of(policy))  # fmt: skip

    def let_go(self, at: Position, draft: Draft, plan: BehaviorPlan, sent: Sequence[tuple[str, str, Json]]) -> None:
        """The errands that nobody waits for: (node, label, payload) each, node by node. Raises as `step` does."""
        while sent:
            node = plan.node(sent[0][0])
            some, sent = sent[: len(node.errands)], sent[len(node.errands) :]
            for one in self._asked(at, node, {label: payload for _, label, payload in some}):
                _sent(draft, one, self._child(at, plan, one))

    # --- to whom

    def _asked(self, at: Position, node: plans.Delegate, payloads: dict[str, Json]) -> Iterator[Asked]:
        """Whom each errand is given to. Several for one errand are others than those that are named, or chosen before."""
        if node.each is not None:
            yield from self._asked_each(at, node.errands[0], payloads)
            return
        names = {one.label for one in node.errands if one.count is None}
        busy: Counter[str] = Counter(one.agent for one in node.errands if one.agent is not None)
        for errand in node.errands:
            give = partial(Asked, errand, payloads[errand.label])
            if errand.capability is None:
                yield give(errand.label, errand.agent or at.held.agent)
                continue
            found = self._offers(at, errand)
            if errand.count is not None:
                found = [one for one in found if not busy[one.agent] and one.agent not in names]
            chosen = cooperation.choose(found, errand.count, of=errand.capability, busy=busy, seed=str(at.held.id))
            choice: dict[str, Json] = {
                "capability": errand.capability, "candidates": [one.told() for one in found[:20]],
            }  # fmt: skip
            for one in chosen:
                busy[one.agent] += 1
                yield give(errand.label if errand.count is None else one.agent, one.agent, choice)

    def _asked_each(self, at: Position, errand: plans.Errand, payloads: dict[str, Json]) -> Iterator[Asked]:
        """The same errand for each item; of those that offer a capability each time whoever has least to do."""
        found, busy = self._offers(at, errand) if errand.capability is not None else [], Counter[str]()
        for label, payload in payloads.items():
            agent = errand.agent or at.held.agent
            if errand.capability is not None:
                agent = cooperation.choose(found, None, of=errand.capability, busy=busy, seed=str(at.held.id))[0].agent
                busy[agent] += 1
            yield Asked(errand, payload, label, agent)

    def _offers(self, at: Position, errand: plans.Errand) -> list[Offer]:
        """Raises NoAgent where nobody has announced it."""
        db, tenant, of = self._parts.db, at.held.tenant_id, str(errand.capability)
        intent = errand.intent or at.held.intent
        rows = offers.of(db, tenant=tenant, capability=of, intent=intent, besides=at.held.agent)
        if not rows:
            known = offers.all_of(db, tenant=tenant, besides=at.held.agent)
            raise NoAgent("no other agent offers this capability", value=of, expected=one_of(of, known))
        return [
            Offer(one["id"], one["version"], one["workers"], one["load"], knows=one["knows"], open=one["open"])
            for one in rows
        ]

    def _child(self, at: Position, plan: BehaviorPlan, one: Asked, *, waited: bool = False) -> NewTrace:
        """The trace that does an errand: of another agent, or of the same one along a chain of its plan."""
        held, errand = at.held, one.errand
        given = held.payload if one.payload is None and errand.chain else one.payload
        depth, chain_depth = self._parts.depths
        return self._parts.child(
            held, to=one.agent, intent=errand.intent or held.intent,
            payload=self._views.whole(at, given) or {}, permissions=errand.permissions,
            plan_hash=plan.hash_of(errand.chain) if errand.chain else None,
            depth_limit=chain_depth if errand.chain else depth, waited=waited,
        )  # fmt: skip

    def _kept(self, at: Position, terms: Any) -> dict[str, Json]:
        return {**terms, "given": self._views.aside(at, terms["given"], "what a decision depends on")}


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks other agents for the tools that stand for them."""

    parts: Parts

    def child(self, call: Row, asks: AgentCall, payload: Json) -> NewTrace:
        """The trace whose end is to be the end of this claimed call. Raises what `ACPClient.send_child` does."""
        parent = Parent(
            call["trace_id"], call["tenant_id"], call["context_id"], call["agent"], tuple(call["permissions"]),
            call["priority"], call["depth"],
        )  # fmt: skip
        made = self.parts.child(
            parent, to=asks.agent, intent=asks.intent or call["intent"], payload=payload, permissions=asks.permissions,
            depth_limit=self.parts.depths[0], waited=True,
        )  # fmt: skip
        return replace(made, parent_call_id=call["id"])

    def begin(self, child: NewTrace) -> None:
        begin(self.parts, [child])

    def again(self, call: Row, rings: Sequence[Ring]) -> None:
        """After the commit by which a call waits for its child once more: that one goes on, or tells how it ended."""
        self.parts.ring(rings)
        with suppress(NotRetryable):  # what it waits for itself; where that cannot be, it is told so, and fails
            self.parts.ring(
                retry.retry(self.parts.db, tenant=call["tenant_id"], trace_id=call["child_trace_id"], by="mesh")
            )
        self.parts.ring(pay(self.parts.db, call["child_trace_id"]))


def begin(parts: Parts, sent: Sequence[NewTrace]) -> None:
    """After the commit that sent them."""
    parts.ring([_first_ring(one) for one in sent if one.lane is None])
    parts.sent([Lane(one.tenant_id, one.agent, one.lane) for one in sent if one.lane is not None])


def pay(db: Database, child_id: UUID) -> tuple[Ring, ...]:
    """The end of this trace is the result of its parent's call, once; the rings that this leads to.

    Where the answers of several become one, what this one counts for is kept with it, and the step is joined as soon as
    the others can change nothing any more.
    """
    asked = children.asked(db, child_id)
    if asked is None:
        return children.pay(db, child_id)
    terms = asked.terms
    heard = cooperation.heard(terms, asked.answer) if asked.done else {}
    point("pay.before")
    return children.pay(db, child_id, heard=heard, settled=lambda ended, left: cooperation.settled(terms, ended, left))


def _sent(draft: Draft, one: Asked, child: NewTrace, step_id: UUID | None = None) -> None:
    draft.children.append(child)
    draft.event(
        "EXEC_DELEGATE", step_id, to=child.agent, intent=child.intent, trace=str(child.id), **(one.choice or {})
    )


def _first_ring(trace: NewTrace) -> Ring:
    return Ring("trace", trace.id, 1, trace.queue, f"agent.{trace.agent}", trace.id, trace.priority, trace.jws)
