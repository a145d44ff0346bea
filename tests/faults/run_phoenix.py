"""An agent worker that begins anew whenever it is killed; what it imports is imported once.

    run_phoenix.py POINT every|other DEATHS

It dies each time it reaches the point, so often at most; with `other`, the time after a death it is spared, for what it
did there is lost.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import agentmesh.wiring  # noqa: F401 - before the fork
from agentmesh.cli.main import main
from agentmesh.infrastructure import faults


def live(number: int) -> None:
    name, times, deaths = sys.argv[1:]
    nth = f"@{2 * number + 1}" if times == "other" else ""
    if number < int(deaths):
        faults.arm_from(f"{name}=kill{nth}", Path(os.environ["AGENTMESH_TEST_REACHED"]))
    main(["worker", "agents", "--pool", "threads", "--concurrency", "1"])


if __name__ == "__main__":
    lives = 0
    while True:
        child = os.fork()
        if child == 0:
            live(lives)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(1)
        lives += 1
