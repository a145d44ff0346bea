"""A hardened worker that says on its standard output, as JSON lines, what it ran and what it refused."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from celery import signals
from celery.backends.base import BaseBackend

from agentmesh.communication.broker import make_app
from agentmesh.communication.hardening import harden, strip_foreign_canvas


def say(what: str, **fields: Any) -> None:
    os.write(1, (json.dumps({"what": what} | fields, default=str) + "\n").encode())


class Backend(BaseBackend):
    def ensure_chords_allowed(self) -> None:
        pass

    def apply_chord(self, *_: Any, **__: Any) -> None:
        pass

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        say("part", id=request.id, state=state, body=dict(request.chord))

    def store_result(self, task_id: str, result: Any, *_: Any, **__: Any) -> Any:
        return result


class Bells(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say("log", level=record.levelname, text=record.getMessage()[:2000])


def main(url: str, prefix: str, name: str, pool: str, *queues: str) -> None:
    logging.basicConfig(handlers=[Bells()], level=logging.WARNING)
    app = make_app(broker_url=url, backend="__main__:Backend", key_prefix=prefix)

    def run(task: Any, kind: str, row: str, epoch: int, envelope: str | None = None) -> str:
        strip_foreign_canvas(task)
        request = task.request
        say("ran", id=request.id, args=[kind, row, epoch], envelope=envelope, eta=request.eta, pid=os.getpid())
        if kind == "fail":
            raise RuntimeError("as asked")
        return "ok"

    for task in ("tool.echo", "agent.echo"):
        app.task(run, name=task, bind=True, shared=False)
    harden(app, on_refused=lambda reason: say("refused", reason=reason))
    signals.worker_ready.connect(lambda **_: say("ready", tasks=sorted(app.tasks)), weak=False)
    app.Worker(
        hostname=name,
        pool=pool,
        concurrency=2,
        queues=list(queues),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    ).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
