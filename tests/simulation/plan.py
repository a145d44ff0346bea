"""What a schedule is made from, and how it went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

KINDS = (
    "lose", "double", "delay", "refuse", "wipe", "cut", "held", "kill", "freeze", "jump", "skew", "kill_producer", "dawdle",
)  # fmt: skip
"""Every kind of fault there is; `held` is a commit that takes its time, `cut` a connection that breaks,
`dawdle` a rescuer who takes his time over
what he has selected, while those who were frozen come back."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a schedule is made from. `faults` None: all that happen; else only those numbers. `only` None: every job."""

    seed: int
    traces: int = 0
    steps: int | None = None
    workers: int = 0
    kinds: tuple[str, ...] | None = None
    only: tuple[int, ...] | None = None
    faults: tuple[int, ...] | None = None
    lines: bool = False
    twice: bool = False

    def filled(self) -> Plan:
        """With everything that follows from the seed."""
        chance = Random(f"{self.seed}/plan")
        traces, steps = chance.choice((1, 2, 3, 4, 6)), chance.choice((100, 200, 400, 800))
        workers = chance.choice((2, 2, 3, 4))
        kinds = tuple(one for one in KINDS if chance.random() < 0.5)
        return replace(
            self,
            traces=self.traces or traces,
            steps=steps if self.steps is None else self.steps,
            workers=self.workers or workers,
            kinds=kinds if self.kinds is None else self.kinds,
        )

    def command(self) -> str:
        """What plays it again; what the seed says anyway is left out."""
        seeds, said = Plan(self.seed).filled(), [f"--seed {self.seed}"]
        for name in ("steps", "workers", "kinds", "only", "faults"):
            value = getattr(self, name)
            if value is None or value == getattr(seeds, name):
                continue
            said.append(f"--{name} {','.join(map(str, value)) or 'none' if isinstance(value, tuple) else value}")
        return f"python -m tests.simulation {' '.join(said)}"


@dataclass(slots=True)
class Outcome:
    """How a schedule went. `broken` empty: every promise held."""

    plan: Plan
    broken: list[str] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    digest: str = ""
    lines: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    jobs: tuple[int, ...] = ()
    storm: int = 0
    fired: list[int] = field(default_factory=list)

    def kind(self) -> str:
        """What kind of failure it is: shrinking must not drift to another one."""
        return self.broken[0].split()[0] if self.broken else ""
