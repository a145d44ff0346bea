"""Worker processes of one foreground process: started, killed, replaced, and ended with it, however it ends.

Each leads a process group of its own, so that Ctrl-C reaches only the parent, which ends them in order. A child whose
parent is gone ends itself. What they log goes to a file each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentmesh.errors import WorkerEnded

LOOK_S = 0.5
DRAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Child:
    """One worker process; its name says its kind and number."""

    name: str
    kind: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid


class Children:
    """Workers by name. Use as a context manager: afterwards none of them runs."""

    def __init__(self, logs: Path, environ: Mapping[str, str], options: list[str] | None = None) -> None:
        self._logs, self._environ, self._options = logs, dict(environ), options or []
        self._children: dict[str, Child] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, kind: str, name: str) -> Child:
        """A worker of this kind runs under this name."""
        log = self._logs / f"{name}.log"
        command = [sys.executable, "-P", "-m", "agentmesh", *self._options, "worker", kind, "--name", name,
                   "--parent", str(os.getpid())]  # fmt: skip
        with log.open("ab") as out:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
                command, env=self._environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        made = self._children[name] = Child(name, kind, process, log)
        return made

    def kill(self, name: str) -> int:
        """SIGKILL to this worker and its own children; its pid. It is gone when this returns."""
        child = self._children.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.process.wait()
        return child.pid

    def check(self) -> None:
        """Raises WorkerEnded, with the end of its log, when one has ended by itself."""
        for child in self._children.values():
            if child.process.poll() is not None:
                lines = child.log.read_text(errors="replace").strip().splitlines()
                raise WorkerEnded(f"worker {child.name} ended with code {child.process.returncode}: "
                                  f"{lines[-1] if lines else 'it said nothing'}", value=str(child.log))  # fmt: skip

    def stop(self) -> None:
        """Every worker has been told to end, was given time to, and is gone."""
        for child in self._children.values():
            with suppress(ProcessLookupError):
                child.process.terminate()
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(DRAIN_S)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.process.wait()
        self._children.clear()


def watch_parent(pid: int) -> None:
    """From now on this process ends soon after its parent does: drained, and after a while by force."""

    def watch() -> None:
        wait = threading.Event().wait
        while os.getppid() == pid:
            wait(LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)
        wait(DRAIN_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
