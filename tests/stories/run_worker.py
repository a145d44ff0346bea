"""`agentmesh worker` as a story starts it: it also tells the test when it takes messages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from celery import signals

from agentmesh.cli.main import main


def consuming(**_: Any) -> None:
    (Path(os.environ["STORY_HOME"]) / f"consuming-{os.getpid()}").touch()


if __name__ == "__main__":
    signals.worker_ready.connect(consuming)
    kind, pool, concurrency = sys.argv[1:]
    main(["worker", kind, "--pool", pool, "--concurrency", concurrency])
