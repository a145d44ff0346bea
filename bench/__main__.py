"""`python -m bench [NAME…]`: the workloads W1 to W7 side by side with the floor of the same run, or one of the other benches.

    python -m bench                              every workload, our figures as shares of the floor's
    python -m bench W1 W3 --broker redis         two of them, over Redis
    python -m bench --peers DIR                  beside the systems of a harness that has a module for each
    python -m bench W2c --broker amqp            chords on tool workers, beside bare Celery's on Redis
    python -m bench P1 P64 P1024                 payloads of 1, 64 and 1,024 KiB
    python -m bench N1 N2 N4 N8                  worker processes
    python -m bench H1 H400                      one context for all runs, and one each; both remember their results
    python -m bench growth                       beside many finished traces, and after churn
    python -m bench prune                        what archiving and taking out finished traces costs
    python -m bench deep wide nested waiting     how far one trace goes, and what waiting costs
    python -m bench idle                         what a cluster does that has nothing to do
    python -m bench check                        whether W1 and W2 are as fast as they were; fails where they have halved

`--quick` takes a tenth of everything. Each measurement is a process of its own; systems are interleaved round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from bench import common, limits
from bench.check import check
from bench.growth import growth, prune
from bench.measure import rounds, show
from bench.servers import surroundings

BENCHES = limits.BENCHES | {"check": check, "growth": growth, "prune": prune}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[], help=", ".join([*common.WORKLOADS, *BENCHES]))
    parser.add_argument("--broker", choices=["pg", "redis", "amqp"], default="pg")
    parser.add_argument("--systems", default="floor,peer", help="modules here, and with --peers those of the harness")
    parser.add_argument("--peers", type=Path, help="the folder of a harness with a package `peers`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write the measurements there")
    asked = parser.parse_args()
    names = asked.names or [f"W{n}" for n in range(1, 8)]
    unknown = [one for one in names if one not in common.WORKLOADS and one not in BENCHES]
    if unknown:
        parser.error(f"there is no bench {unknown[0]}")
    workloads = [one for one in names if one in common.WORKLOADS]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end, too
    with surroundings(asked.broker, redis="W2c" in workloads) as env:
        if workloads:
            rows = rounds(asked.rounds, workloads, asked.systems.split(","), env, asked.peers, quick=asked.quick)
            if asked.json:
                asked.json.write_text(json.dumps(rows, indent=1))
            show(rows)
        os.environ.update(env)
        common.PG_URL = env["PG_URL"]
        return max([int(BENCHES[name](env, quick=asked.quick) or 0) for name in names if name in BENCHES], default=0)


if __name__ == "__main__":
    sys.exit(main())
