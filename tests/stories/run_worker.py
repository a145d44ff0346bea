"""A worker process of a story: settings from the environment, then Celery until it is told to stop."""

from __future__ import annotations

import sys

from agentmesh.infrastructure import logging
from agentmesh.wiring import build


def main(kind: str, pool: str, concurrency: str) -> int:
    logging.configure(format="text")
    return build().work(kind, pool=pool, concurrency=int(concurrency))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
