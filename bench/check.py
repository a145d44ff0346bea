"""Whether we are still as fast as we were: W1 and W2, quick, beside the floor of the same run.

Shares of the floor's speed are compared with those in ratios.json; less than half of one fails. Machines differ and CI's
are never alone: this finds what costs twice as much, not what costs a tenth more.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from bench.measure import measure, ratio

COMMITTED = Path(__file__).with_name("ratios.json")
RUNS = {"W1": "400", "W2": "120"}
ROUNDS = 2


def check(env: dict[str, str], *, quick: bool) -> int:
    """Prints the shares; 1 where one has halved, else 0."""
    rows = [
        measure(system, workload, n, env, None)
        for _ in range(1 if quick else ROUNDS)
        for workload, n in RUNS.items()
        for system in ("floor", "peer")
    ]
    wrong = [row for row in rows if "error" in row]
    committed, failed = json.loads(COMMITTED.read_text()), bool(wrong)
    for row in wrong:
        print(f"{row['system']} {row['workload']}: {row['error']}")
    for workload in RUNS:
        share = ratio(rows, "peer", workload)
        if share is not None:
            slow = share < committed[workload] / 2
            failed = failed or slow
            commits = statistics.median(row["commits_run"] for row in rows
                                        if row["system"] == "peer" and row["workload"] == workload)  # fmt: skip
            print(f"{workload}: {share:.3f} of the floor, committed {committed[workload]:.3f}; {commits:.2f} commits a run"
                  + (": less than half" if slow else ""))  # fmt: skip
    return int(failed)
