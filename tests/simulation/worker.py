"""One worker process of a simulation: a mesh, a heart and a rescuer whose rounds are given by the schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from uuid import UUID

from agentmesh.coordination.heartbeat import Heart, here
from agentmesh.coordination.rescuer import Pace, Rescuer
from agentmesh.records import Ring
from agentmesh.wiring import Mesh
from tests.simulation.broker import SimBroker

PACE = Pace(lease_s=10, beat_s=1, rescue_s=1, again_s=2, again_cap_s=10)


class Ids:
    """UUIDv7 from the seed. `whose` says who makes one, and what its clock says: every process has a clock of its own."""

    def __init__(self, seed: int, whose: Callable[[], tuple[str, float]]) -> None:
        self._chance, self._whose = Random(f"{seed}/ids"), whose
        self._last: dict[str, int] = {}

    def new(self) -> UUID:
        who, now_s = self._whose()
        tick = max(int((1_577_836_800 + now_s) * 1000) << 12, self._last.get(who, 0) + 1)
        self._last[who] = tick
        tail = self._chance.getrandbits(62)
        return UUID(int=(tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | tail)


class SimWorker:
    """A worker whose clock runs at `rate` and `offset_s` beside the simulation's. `kind` as for `agentmesh worker`, or alone."""

    def __init__(
        self,
        name: str,
        kind: str,
        mesh: Mesh,
        broker: SimBroker,
        clock: Callable[[], float],
        *,
        rate: float,
        offset_s: float,
    ) -> None:
        self.name, self.kind, self.mesh = name, kind, mesh
        self.rate, self.offset_s, self._clock = rate, offset_s, clock
        self.alive, self.ready, self.frozen_until = True, False, 0.0
        self.next_beat, self.next_look = clock() + PACE.beat_s, clock()
        self.host = f"host-of-{name}"
        me = replace(here(name=name, queues=[], agents=[], tools=[], version="1", lease_s=PACE.lease_s), host=self.host)
        ring = mesh.doorbell.ring
        self.heart = Heart(mesh.db, me, mesh.notes, beat_s=PACE.beat_s, ring=ring, monotonic=self.monotonic)
        self.rescuer = Rescuer(mesh.db, self.heart, mesh.notes, PACE, ring=ring, depths=broker.depths)

    def __str__(self) -> str:
        return self.name

    def monotonic(self) -> float:
        return self._clock() * self.rate + self.offset_s

    def keep_time(self) -> None:
        """From now on its clock runs as the others do, without a jump."""
        self.offset_s, self.rate = self.offset_s + (self.rate - 1) * self._clock(), 1.0

    def serves(self, ring: Ring) -> bool:
        if self.kind == "alone":
            return False
        return self.kind == "all" or (self.kind == "agents") == ring.queue.startswith("agent")
