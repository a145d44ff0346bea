"""The arithmetic of slots for calls that run inline. Pure; state/calls does the same in SQL for leaves.

A slot is an ordered list of calls that needs the first success or all of them. A step joins when it has won enough
slots, or no longer can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from agentmesh.records import Failure, Json


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call stands: its slot, its index in it, and how it stands now."""

    id: UUID
    slot: int
    idx: int
    slot_size: int
    first: bool  # one success is enough for the slot
    status: Literal["held", "ready", "running", "done", "failed", "cancelled"]
    may_retry: bool = False
    each: bool = False  # its end counts, however it ended


@dataclass(frozen=True, slots=True)
class Won:
    result: Json
    log: Json = None


@dataclass(frozen=True, slots=True)
class Lost:
    failure: Failure
    log: Json = None


Outcome = Won | Lost


@dataclass(frozen=True, slots=True)
class Fold:
    """What one round of outcomes makes of a step. `start`: calls whose turn has come; `later`: calls to retry."""

    won: tuple[UUID, ...]
    failed: tuple[UUID, ...]
    later: tuple[UUID, ...]
    start: tuple[UUID, ...]
    dropped: tuple[UUID, ...]
    wins: int
    pending: int
    joined: bool
    ok: bool


def fold(places: Sequence[Place], outcomes: Mapping[UUID, Outcome], *, need: int, wins: int, pending: int) -> Fold:
    """Count `outcomes` (of running calls) into the step; when it joins, everything still open is dropped."""
    won: list[UUID] = []
    failed: list[UUID] = []
    later: list[UUID] = []
    start: list[UUID] = []
    dropped: list[UUID] = []
    by_place = {(one.slot, one.idx): one for one in places}
    for one in places:
        outcome = outcomes.get(one.id)
        if outcome is None:
            continue
        last = one.idx == one.slot_size - 1
        if isinstance(outcome, Lost) and one.may_retry and not outcome.failure.permanent:
            later.append(one.id)
            continue
        success = isinstance(outcome, Won)
        (won if success else failed).append(one.id)
        closes = last or (not one.each and success == one.first)
        if not closes:
            start.append(by_place[one.slot, one.idx + 1].id)
            continue
        pending -= 1
        wins += success or one.each
        dropped += [by_place[one.slot, idx].id for idx in range(one.idx + 1, one.slot_size)]
    joined = wins >= need or wins + pending < need
    if joined:
        ended = {*won, *failed, *dropped}
        dropped += [one.id for one in places if one.status in {"held", "ready", "running"} and one.id not in ended]
        later, start = [], []
    return Fold(
        tuple(won), tuple(failed), tuple(later), tuple(start), tuple(dropped), wins, 0 if joined else pending, joined,
        wins >= need,
    )  # fmt: skip
