"""An agent worker that begins anew whenever it is killed; what it imports is imported once.

    run_phoenix.py POINT DEATHS

It dies each time it reaches the point, so often at most. What was lost with it runs alone, in a process that is spared.
"""

from __future__ import annotations

import os
import signal
import sys

import agentmesh.wiring  # noqa: F401 - before the fork
from agentmesh.cli.main import main
from agentmesh.coordination.alone import VARIABLE
from agentmesh.infrastructure import faults


def live(*, doomed: bool) -> None:
    if doomed:
        me = os.getpid()  # the lone processes that it forks are spared
        faults.arm(sys.argv[1], lambda: os.getpid() == me and faults.ACTIONS["kill"]())
    main(["worker", "agents", "--pool", "threads", "--concurrency", "1"])


if __name__ == "__main__":
    if VARIABLE in os.environ:
        live(doomed=False)
    lives = 0
    while True:
        child = os.fork()
        if child == 0:
            live(doomed=lives < int(sys.argv[2]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(1)
        lives += 1
