"""A producer process of a story: dispatches one intent, given as JSON, and says the id of its trace."""

from __future__ import annotations

import json
import sys

from agentmesh.wiring import build


def main(intent: str) -> None:
    mesh = build()
    print(mesh.router.dispatch(**json.loads(intent)), flush=True)  # noqa: T201 - its answer
    mesh.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
