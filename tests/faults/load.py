"""Producers for fault tests: intents without a pause, and what became of each."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from agentmesh.errors import MeshError
from agentmesh.testing import until
from tests.faults.bench import SHAPES, Bench


@dataclass
class Load:
    """Dispatches one intent after another from a thread of its own, until it is stopped."""

    bench: Bench
    pause_s: float = 0.05
    accepted: list[Any] = field(default_factory=list)
    refused: list[MeshError] = field(default_factory=list)
    odd: list[BaseException] = field(default_factory=list)
    slowest_s: float = 0.0

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        n = 0
        while not self._stop.wait(self.pause_s):
            n += 1
            began = time.monotonic()
            try:
                self.accepted.append(self.bench.start(SHAPES[n % len(SHAPES)], n))
            except MeshError as exc:
                self.refused.append(exc)
            except BaseException as exc:  # noqa: BLE001 - what no producer should have to expect
                self.odd.append(exc)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def more(self, n: int = 5, within: float = 30) -> None:
        """So many more were accepted from now on."""
        have = len(self.accepted)
        until(lambda: len(self.accepted) >= have + n, within=within, what=f"{n} more intents accepted")

    def check(self) -> None:
        """All that was accepted is there and done; what was not said so by name, and soon."""
        assert self.odd == []
        assert self.slowest_s < 12
        known = {row["id"]: row["status"] for row in self.bench.rows("SELECT id, status FROM mesh.traces")}
        assert {known.get(trace.id) for trace in self.accepted} == {"done"}
