"""The Scheduler: who of those that wait for a place is next.

A trace of a limited agent is accepted as held and is admitted, that is queued and rung, when its lane has room: at once
after its commit, when another of its agent ends, or by the leading rescuer's look. The highest priority goes first; among
equals the lanes have their turn, so that who has sent the most gets no more than others. Nobody waits holding a place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import psycopg
import structlog

from agentmesh.errors import MeshError
from agentmesh.infrastructure.database import Database
from agentmesh.infrastructure.faults import point
from agentmesh.records import Ring
from agentmesh.state import admission
from agentmesh.state.admission import BEFORE_ALL, Lane, Waiting

log = structlog.get_logger("agentmesh.scheduler")

AT_ONCE = 100  # lanes that a dispatch sees to itself
BESIDE = 20  # lanes that are looked at for the place of one that has ended
BATCH = 500  # traces that one look admits
LANES = 2000  # lanes that one look sees; the next look begins where this one ended


class Scheduler:
    """Admits the held traces of all tenants; `ring` is called after each commit."""

    def __init__(self, db: Database, *, ring: Callable[[Sequence[Ring]], None]) -> None:
        self._db, self._ring = db, ring
        self._after = BEFORE_ALL

    def sent(self, lanes: Iterable[Lane]) -> None:
        """Afterwards what was accepted to these lanes just now has begun, as far as they have room. Raises nothing."""
        for lane in list(dict.fromkeys(lanes))[:AT_ONCE]:
            try:
                while self._admit(lane):
                    pass
            except (psycopg.Error, MeshError) as exc:
                log.warning("not admitted yet; the rescuer looks again", error=str(exc).splitlines()[0])
                return

    def ended(self, lane: Lane) -> None:
        """A trace of this lane has ended: its place goes to the next lane in turn. Raises nothing."""
        given: Lane | None = lane
        try:
            if not admission.has_total(self._db, lane):
                self._admit(lane)  # nobody else could use its place
                return
            while given is not None:
                turn = _in_turn(admission.waiting_beside(self._db, given, batch=BESIDE))
                given = next((one for one in turn if self._admit(one)), None)
        except (psycopg.Error, MeshError) as exc:
            log.warning("not admitted yet; the rescuer looks again", error=str(exc).splitlines()[0])

    def look(self) -> None:
        """One round over the lanes that hold traces, and again over those where it has admitted one."""
        seen = admission.waiting(self._db, self._after, batch=LANES)
        self._after = seen[-1].lane if len(seen) == LANES else BEFORE_ALL
        lanes, left = _in_turn(seen), BATCH
        while lanes and left > 0:
            lanes = self._round(lanes, left)
            left -= len(lanes)

    def forget(self) -> None:
        """Afterwards lanes that are long out of use are gone."""
        admission.forget(self._db)

    def _round(self, lanes: Sequence[Lane], left: int) -> list[Lane]:
        """The lanes that were given a place, at most `left`. An agent with a lane that was given none has no more to give;
        one bad lane stops nothing."""
        served: list[Lane] = []
        full: set[tuple[str, str]] = set()
        for lane in lanes:
            if len(served) == left or lane[:2] in full:
                continue
            try:
                if self._admit(lane):
                    served.append(lane)
                else:
                    full.add(lane[:2])
            except (psycopg.Error, MeshError) as exc:
                log.warning("a lane was not served", lane=lane, error=str(exc).splitlines()[0])
        return served

    def _admit(self, lane: Lane) -> bool:
        ring = admission.admit(self._db, lane)
        point("admission.after_commit")
        if ring is not None:
            self._ring([ring])
        return ring is not None


def _in_turn(seen: Sequence[Waiting]) -> list[Lane]:
    """Lanes that seem to have room, the highest priority first; of equals one of each tenant, then the next of each."""
    turns: Counter[tuple[str, int]] = Counter()
    ranked: list[tuple[int, int, Lane]] = []
    for one in (one for one in seen if one.room):
        of = one.lane.tenant_id, one.priority
        ranked.append((-one.priority, turns[of], one.lane))
        turns[of] += 1
    return [lane for *_, lane in sorted(ranked, key=lambda one: one[:2])]
