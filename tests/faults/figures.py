"""What a run of the fault tests came to, as `make faults` prints it at its end.

AGENTMESH_TEST_FIGURES names a file to which every process of a run adds what it saw: several runs are then one table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = os.environ.get("AGENTMESH_TEST_FIGURES")
ROUNDS: list[Round] = []
SAID: list[str] = []

# How long what a dead worker held lay before somebody ran it again: from the dead one's last beat, or from the first
# beat of whoever came to take its place.
RECOVERY = """
SELECT coalesce(max(extract(epoch FROM n.started_at - f.free_at)), 0)::float8 AS s
 FROM mesh.attempts l JOIN mesh.workers w ON w.id = l.worker_id AND w.state = 'dead'
  JOIN mesh.attempts n ON n.step_id = l.step_id AND n.call_id IS NOT DISTINCT FROM l.call_id AND n.kind = l.kind
   AND n.n = l.n + 1 AND n.worker_id <> w.id
  JOIN LATERAL (SELECT min(greatest(o.registered_at, w.beat_at)) AS free_at FROM mesh.workers o
   WHERE o.id <> w.id AND o.queues && w.queues AND o.beat_at > w.beat_at) f ON true
 WHERE l.outcome = 'lost'
"""
DOUBLED = """
SELECT count(*) AS n FROM (SELECT 1 FROM mesh.attempts WHERE outcome = 'won' AND call_id IS NOT NULL
 GROUP BY call_id HAVING count(*) > 1) d
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One mesh under faults, from its first intent until it was quiet."""

    test: str
    traces: int
    kills: int
    messages: int  # that the broker lost
    lost: int  # traces that were accepted and are not there, or have not ended
    doubled: int  # calls of which two results were recorded
    recovery_s: float


def note(one: Round) -> None:
    ROUNDS.append(one)
    _keep(asdict(one))


def say(line: str) -> None:
    """A figure of its own, behind the table."""
    SAID.append(line)
    _keep(line)


def _keep(said: object) -> None:
    if FILE:
        with Path(FILE).open("a") as file:
            file.write(json.dumps(said) + "\n")


def table() -> Iterator[str]:
    """All rounds, those of earlier runs too; nothing where there were none."""
    rounds, said = ROUNDS, SAID
    if FILE and Path(FILE).exists():
        kept = [json.loads(line) for line in Path(FILE).read_text().splitlines()]
        rounds = [Round(**one) for one in kept if isinstance(one, dict)]
        said = [one for one in kept if isinstance(one, str)]
    if not rounds:
        return
    deaths = [one for one in rounds if "_f01_" in one.test or "_f02_" in one.test]
    slow = max(deaths or rounds, key=lambda one: one.recovery_s)
    behind = [one.recovery_s for one in rounds if "_f24_a_thousand" in one.test]
    yield f"rounds                           {len(rounds)}"
    yield f"traces                           {sum(one.traces for one in rounds)}"
    yield f"processes killed                 {sum(one.kills for one in rounds)}"
    yield f"messages lost by the broker      {sum(one.messages for one in rounds)}"
    yield f"traces lost                      {sum(one.lost for one in rounds)}"
    yield f"results recorded twice           {sum(one.doubled for one in rounds)}"
    yield f"slowest recovery from a death    {slow.recovery_s:.1f} s, with a lease of 1 s ({slow.test})"
    if behind:
        yield f"the same behind 500 other calls  {max(behind):.1f} s"
    yield from said
