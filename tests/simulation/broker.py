"""The broker of a simulation: messages that are lost, doubled, late, out of order, or refused.

It stands where communication.Broker stands, behind the real Doorbell; which message is delivered next is the
scheduler's choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentmesh.records import Ring


@dataclass(frozen=True, slots=True)
class Message:
    """One doorbell on its way; it arrives at `due`."""

    ring: Ring
    due: float


class Weather(Protocol):
    """What happens to a message; the world decides."""

    def refused(self, ring: Ring) -> bool: ...
    def arrivals(self, ring: Ring) -> Sequence[float]:
        """How long each copy of it is under way; none when it is lost."""
        ...


class SimBroker:
    """Queues whose messages anybody may see."""

    def __init__(self, clock: Callable[[], float], weather: Weather) -> None:
        self._clock, self._weather = clock, weather
        self.waiting: list[Message] = []
        self.sent: list[Ring] = []

    def ring(self, rings: Sequence[Ring]) -> list[Ring]:
        """Those that were refused."""
        refused = []
        for ring in rings:
            if self._weather.refused(ring):
                refused.append(ring)
                continue
            self.sent.append(ring)
            self.waiting += [Message(ring, self._clock() + late) for late in self._weather.arrivals(ring)]
        return refused

    def dispatch_chord(self, header: Sequence[Ring], body: Ring) -> list[Ring]:
        return self.ring(header)

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        found = Counter(one.ring.queue for one in self.waiting)
        return {queue: found[queue] for queue in queues}

    def due(self) -> list[Message]:
        now = self._clock()
        return [one for one in self.waiting if one.due <= now]
