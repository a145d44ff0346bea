"""One measurement in a process of its own, rounds of them, and the table they make."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common

# workload → the figure that is compared, its unit, whether more is better
CELLS = {
    "floors": ("commits_s_16", "/s", True), "W1": ("runs_s", "/s", True), "W2": ("runs_s", "/s", True),
    "W3": ("runs_s", "/s", True), "W4": ("lat_p50_ms", "ms", False), "W5": ("runs_s", "/s", True),
    "W6": ("runs_s", "/s", True), "W7": ("recovery_s", "s", False),
} | dict.fromkeys(("W2c", "P1", "P64", "P1024", "N1", "N2", "N4", "N8", "H1", "H400", "G1"), ("runs_s", "/s", True))  # fmt: skip
MORE = ("idle_p50_ms", "commits_run", "wal_kb_run", "cpu_ms_run", "worker_mb", "probe_commit_ms", "other_cores", "lost",
        "repeated", "missing")  # fmt: skip
QUICK = 10


def measure(system: str, workload: str, n: str, env: dict[str, str], peers: Path | None) -> dict[str, Any]:
    """One measurement; what went wrong, where it did."""
    own = (Path(common.ROOT) / "bench" / f"{system}.py").exists()
    python, package, folder = sys.executable, "bench", common.ROOT
    if not own and peers is not None:
        root = Path(env.get("PEER_VENVS", peers / "venvs"))
        python, package, folder = str(root / f"venv-{system}" / "bin" / "python"), "peers", str(peers)
    command = [python, "-m", f"{package}.common", system, workload, n]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1800, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line[7:])  # type: ignore[no-any-return]
    return {"system": system, "workload": workload, "error": (done.stderr or done.stdout)[-400:]}


def rounds(
    number: int,
    workloads: Sequence[str],
    systems: Sequence[str],
    env: dict[str, str],
    peers: Path | None,
    *,
    quick: bool,
) -> list[dict[str, Any]]:
    """Systems are interleaved, round by round, so that what else the machine does meets all of them."""
    rows = []
    for _ in range(number):
        for workload in workloads:
            whole = common.WORKLOADS[workload]["n"]
            n = str(max(20, whole // QUICK)) if quick else str(whole)
            for system in [*systems, *(("chords",) if workload == "W2c" and "chords" not in systems else ())]:
                row = measure(system, workload, n, env, peers)
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def spread(values: list[float]) -> str:
    middle = statistics.median(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{middle:.{digits}f}{ends}"


def ratio(rows: list[dict[str, Any]], system: str, workload: str) -> float | None:
    """The share of the floor's speed in the same run."""
    key, _, up = CELLS[workload]
    mine, floors = _values(rows, system, workload, key), _values(rows, "floor", workload, key)
    if not mine or not floors:
        return None
    share = statistics.median(mine) / statistics.median(floors)
    return share if up else 1 / share


def _values(rows: list[dict[str, Any]], system: str, workload: str, key: str) -> list[float]:
    return [row[key] for row in rows if row["system"] == system and row["workload"] == workload and key in row]


def show(rows: list[dict[str, Any]]) -> None:
    systems = list(dict.fromkeys(row["system"] for row in rows))
    for workload in dict.fromkeys(row["workload"] for row in rows):
        key, unit, _ = CELLS[workload]
        keys = [one for one in MORE if any(_values(rows, system, workload, one) for system in systems)]
        print(f"\n| {workload} | {key} | of the floor | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 3))
        for system in systems:
            values = _values(rows, system, workload, key)
            if values:
                share = ratio(rows, system, workload)
                more = [_values(rows, system, workload, one) for one in keys]
                print(f"| {system} | {spread(values)} {unit} | {'' if share is None else f'{share:.3f}'} | "
                      + " | ".join(spread(one) if one else "" for one in more) + " |")  # fmt: skip
    for row in rows:
        if "error" in row:
            print(f"error: {row['system']} {row['workload']}: {row['error'].strip().splitlines()[-1:]}")
