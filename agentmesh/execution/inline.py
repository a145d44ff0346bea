"""Inline calls: tools that run in the agent worker, inside the step it holds.

A round runs every call whose turn it is, at once; counting is the pure `fold`. A call that must run again is not waited
for: the step waits, the trace is let go, and the call is rung on the agent's queue at its time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as RoundTimeout
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from agentmesh.execution.draft import Draft, LiveCall, Position
from agentmesh.execution.failures import AWAY, Leaving, failure_of, theirs
from agentmesh.execution.invoke import context, invoke
from agentmesh.execution.slots import Fold, Lost, Outcome, Place, Won, fold
from agentmesh.infrastructure.logging import Kept, about
from agentmesh.records import Failure, Json, Ring, new_id
from agentmesh.state.changes import CallChange
from agentmesh.state.rescue import TIMEOUT

if TYPE_CHECKING:
    from agentmesh.execution.views import Parts


def run_round(running: Sequence[LiveCall], at: Position, parts: Parts) -> dict[UUID, Outcome]:
    """The outcome of each running call; one that is over its time counts as timed out and is left to itself.

    Afterwards nothing of the round starts any more. Raises what our own database raises, and Leaving.
    """
    said = {one.call["id"]: Kept() for one in running}
    if len(running) == 1:
        return {call_id: _run(running[0], at, parts, kept) for call_id, kept in said.items()}
    futures: dict[UUID, Future[Outcome]] = {}
    try:
        for one in running:
            futures[one.call["id"]] = _submitted(one, at, parts, said[one.call["id"]])
        began = parts.monotonic()
        return {
            one.call["id"]: _awaited(
                futures[one.call["id"]], began + one.call["timeout_s"] - parts.monotonic(), parts, said[one.call["id"]]
            )
            for one in running
        }
    finally:
        for future in futures.values():
            future.cancel()


def _submitted(live: LiveCall, at: Position, parts: Parts, said: Kept) -> Future[Outcome]:
    try:
        return parts.pool.submit(copy_context().run, _run, live, at, parts, said)
    except RuntimeError as exc:  # what a pool says once it is shut down, or the process has no thread left
        raise Leaving(str(exc)) from exc


def _awaited(future: Future[Outcome], timeout_s: float, parts: Parts, said: Kept) -> Outcome:
    try:
        return future.result(timeout=max(0.0, timeout_s))
    except RoundTimeout:
        if not future.cancel():  # what still waits for a thread would start after its time-out was recorded
            parts.overrun(future)
        return Lost(TIMEOUT, said.as_json())
    except CancelledError as exc:  # not by us: the pool was shut down
        raise Leaving("the pool was shut down before this call had started") from exc


def _run(live: LiveCall, at: Position, parts: Parts, said: Kept) -> Outcome:
    """What became of the call; what was logged on the way is in `said`, too."""
    call = live.call
    where = {"trace_id": at.held.id, "step_id": call["step_id"], "call_id": call["id"], "attempt": call["n"]}
    with about(said, **where, tool=call["tool"]):
        outcome = _ran(live, at, parts)
    return replace(outcome, log=said.as_json())


def _ran(live: LiveCall, at: Position, parts: Parts) -> Outcome:
    call = live.call
    held = at.held
    row = call | {
        "trace_id": held.id, "tenant_id": held.tenant_id, "context_id": held.context_id, "intent": held.intent,
    }  # fmt: skip
    try:
        earlier = {
            one.call["label"]: parts.blobs.expand(held.tenant_id, one.result)
            for one in at.calls
            if one.call["slot"] == call["slot"] and one.call["idx"] < call["idx"] and one.call["status"] == "done"
        }
        payload = parts.blobs.expand(held.tenant_id, held.payload)
        tool, args = parts.router.tool(call["tool"]), parts.blobs.expand(held.tenant_id, call["args"])
        ctx = context(row, payload=payload, results=earlier, attempt=call["n"])
        value = theirs(lambda: invoke(tool, args, ctx))
        return Won(parts.blobs.shrink(held.tenant_id, value, what=f"the result of {call['tool']}"))
    except AWAY:
        raise
    except Exception as exc:  # noqa: BLE001 - what a tool raises, or is wrong with a call, is its failure
        return Lost(failure_of(exc, code="E_TOOL"))


def count(at: Position, outcomes: Mapping[UUID, Outcome], draft: Draft) -> tuple[Fold, list[LiveCall]]:
    """Count the round into the step and into the draft; the calls as they stand afterwards."""
    places = [_place(one) for one in at.calls]
    folded = fold(places, outcomes, need=at.need, wins=at.wins, pending=at.pending)
    calls = [_after(one, outcomes.get(one.call["id"]), folded) for one in at.calls]
    by_id = {one.call["id"]: one for one in at.calls}
    for call_id, outcome in outcomes.items():
        _note(by_id[call_id], outcome, draft)
    for call_id in (*folded.won, *folded.failed, *folded.dropped):
        draft.calls.append(_change(call_id, by_id[call_id], outcomes.get(call_id)))
    for call_id in folded.later:
        outcome = outcomes[call_id]
        failure = outcome.failure if isinstance(outcome, Lost) else TIMEOUT
        draft.calls.append(
            CallChange(call_id, by_id[call_id].call["epoch"], "ready", error=failure.as_json(), failed=True,
                       wake_s=_pause_s(by_id[call_id], failure))
        )  # fmt: skip
    return folded, calls


def abandon(at: Position, failure: Failure, draft: Draft) -> None:
    """End whatever of the step is open, uncounted: its trace ends with this failure."""
    draft.step(pending=0)
    for one in at.calls:
        if one.call["status"] in {"held", "ready", "running"}:
            draft.calls.append(CallChange(one.call["id"], one.call["epoch"], "cancelled"))
            draft.ran(one, "failed", failure.as_json())


def start_next(at: Position, calls: list[LiveCall], folded: Fold, draft: Draft, *, keep: bool) -> list[Ring]:
    """Start the next call of each slot that goes on: here when we keep the trace, else by the rings returned."""
    rings = []
    for place, one in enumerate(calls):
        if one.call["id"] not in folded.start:
            continue
        call = one.call
        draft.calls.append(CallChange(call["id"], call["epoch"], "running" if keep else "ready"))
        if keep:
            calls[place] = LiveCall(call | {"status": "running", "n": call["n"] + 1}, new_id())
        else:
            rings.append(
                Ring("call", call["id"], call["epoch"] + 1, call["queue"], call["task"], at.held.id, call["priority"])
            )
    return rings


def _place(one: LiveCall) -> Place:
    call = one.call
    return Place(
        call["id"], call["slot"], call["idx"], call["slot_size"], call["slot_mode"] == "first", call["status"],
        may_retry=call["failures"] + 1 < call["max_attempts"], each=call["slot_mode"] == "each",
    )  # fmt: skip


def _after(one: LiveCall, outcome: Outcome | None, folded: Fold) -> LiveCall:
    call_id = one.call["id"]
    match outcome:
        case Won(result=result):
            return replace(one, call=one.call | {"status": "done"}, result=result)
        case Lost(failure=failure) if call_id in folded.failed:
            return replace(one, call=one.call | {"status": "failed"}, error=failure.as_json())
        case _ if call_id in folded.dropped:
            return replace(one, call=one.call | {"status": "cancelled"})
        case _:
            return one


def _change(call_id: UUID, one: LiveCall, outcome: Outcome | None) -> CallChange:
    epoch: int = one.call["epoch"]
    match outcome:
        case Won(result=result):
            return CallChange(call_id, epoch, "done", result=result)
        case Lost(failure=failure):
            return CallChange(call_id, epoch, "failed", error=failure.as_json(), failed=True)
        case None:
            return CallChange(call_id, epoch, "cancelled")


def _note(one: LiveCall, outcome: Outcome, draft: Draft) -> None:
    about: dict[str, Json] = {"tool": one.call["tool"], "label": one.call["label"], "attempts": one.call["n"]}
    match outcome:
        case Won():
            draft.ran(one, "won", log=outcome.log)
            draft.event("TOOL_EXEC", call_id=one.call["id"], **about)
        case Lost(failure=failure):
            late = failure is TIMEOUT
            draft.ran(one, "timeout" if late else "failed", failure.as_json(), log=outcome.log)
            name = "TOOL_TIMEOUT" if late else "TOOL_FAIL"
            draft.event(name, call_id=one.call["id"], error=failure.as_json(), **about)


def _pause_s(one: LiveCall, failure: Failure) -> float:
    if failure.after_s is not None:
        return failure.after_s
    ceiling: float = min(one.call["backoff_cap_s"], one.call["backoff_s"] * 2.0 ** one.call["failures"])
    return random.uniform(0, ceiling)  # noqa: S311 - spreads retries, guards nothing
