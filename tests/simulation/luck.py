"""Which faults happen: drawn from the seed, numbered as they happen, so that a shrunk schedule can leave some out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from agentmesh.records import Ring
from tests.simulation.plan import Outcome, Plan
from tests.simulation.stage import Stage


class Luck:
    """The faults of one schedule. Afterwards `outcome` says which there were."""

    def __init__(
        self, plan: Plan, outcome: Outcome, stage: Stage, say: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._plan, self._outcome, self._stage, self._say, self._clock = plan, outcome, stage, say, clock
        self.chance = Random(f"{plan.seed}/faults")
        self.rate = self.chance.choice((0.5, 1.0, 2.0))
        self.storm = True
        self._number = 0

    def happens(self, kind: str, chance: float) -> bool:
        """Whether a fault of this kind happens here."""
        rolled = self.chance.random() < chance * self.rate
        if not (rolled and self.storm and kind in (self._plan.kinds or ())):
            return False
        self._number += 1
        if self._plan.faults is not None and self._number not in self._plan.faults:
            return False
        self._outcome.faults[kind] += 1
        self._outcome.fired.append(self._number)
        self._say(f"-- fault {self._number}: {kind}")
        return True

    # --- of round trips

    def lost(self, when: str) -> bool:
        task = self._stage.current
        if task is None or task.owner is None or task.lucky > 0:
            if task is not None:
                task.lucky -= 1
            return False
        if self.happens("cut", 0.01):
            task.lucky = 12  # or a retry would meet it again and again
            self._say(f"{task} lost its connection {when} {task.sql}")
            return True
        return False

    def held(self) -> Callable[[], bool] | None:
        if not self.happens("held", 0.15):
            return None
        end = self._clock() + self.chance.choice((0.0, 0.2, 1.0))
        return lambda: self._clock() >= end

    # --- of messages

    def refused(self, ring: Ring) -> bool:
        return self.happens("refuse", 0.04)

    def arrivals(self, ring: Ring) -> Sequence[float]:
        copies = 1
        if self.happens("lose", 0.15):
            copies = 0
        elif self.happens("double", 0.2):
            copies = self.chance.randint(2, 4)
        return [self.chance.uniform(0, 15) if self.happens("delay", 0.15) else 0.0 for _ in range(copies)]
