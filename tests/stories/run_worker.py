"""A worker process of a story: settings from the environment, then Celery until it is told to stop."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from celery import signals

from agentmesh.infrastructure import logging
from agentmesh.wiring import build


def consuming(**_: Any) -> None:
    """Tell the test that this worker now takes messages."""
    (Path(os.environ["STORY_HOME"]) / f"consuming-{os.getpid()}").touch()


def main(kind: str, pool: str, concurrency: str) -> int:
    signals.worker_ready.connect(consuming)
    logging.configure(format="text")
    return build().work(kind, pool=pool, concurrency=int(concurrency))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
