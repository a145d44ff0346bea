"""Named places where tests make things go wrong; nothing happens at them otherwise.

`point("call.after_effect")` costs one look into an empty dict. Tests arm points in their own process with `arm`, and in
worker processes through AGENTMESH_TEST_FAULTS: "point=action" or "point=action@3" (the third time only), separated by
commas. Where AGENTMESH_TEST_REACHED names a folder, an armed point leaves `<point>.<n>` there each time it is reached;
processes that share the folder count together, so that what died once at a point may start again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psycopg

POINTS = frozenset({
    "dispatch.before_commit", "dispatch.after_commit", "dispatch.after_publish", "receive.before_verify",
    "receive.after_claim", "prepare.after_context", "reason.before", "reason.after_answer", "reason.after_commit",
    "tools.before_commit", "tools.after_commit", "tools.mid_ring", "tools.after_ring", "call.after_claim",
    "call.before_effect", "call.after_effect", "call.in_commit", "call.after_commit", "join.last_before_commit",
    "join.after_commit", "callback.before", "callback.after_handler", "callback.after_commit", "next.after_commit",
    "finish.before_commit", "finish.after_commit", "rescue.after_select", "rescue.after_update", "beat.before",
    "timer.after_fire", "pay.before", "drop.after_cancel", "admission.after_commit", "webhook.before_post",
    "webhook.after_post", "wire.before_send", "migrate.between", "export.after_write",
    "memory.in_commit", "prune.before_commit", "prune.after_commit", "index.after_take", "index.before_fill",
    "ask.before_commit", "ask.after_commit",
})  # fmt: skip

BARRIER_S = 20.0

_armed: dict[str, Callable[[], None]] = {}
_thread = threading.local()


class Injected(RuntimeError):
    """Raised at a point that was armed to raise."""


class Wire(Protocol):
    """A connection to the database, as far as faults go."""

    def shut(self) -> None: ...
    def close(self) -> None: ...


def point(name: str) -> None:
    """Do what `name` is armed with; nothing when it is not."""
    if _armed and name in _armed:
        _armed[name]()


def armed() -> bool:
    return bool(_armed)


def arm(name: str, action: Callable[[], None]) -> None:
    """From now on `action` runs whenever `name` is reached. Raises KeyError for a point that does not exist."""
    if name not in POINTS:
        raise KeyError(name)
    _armed[name] = action


def disarm() -> None:
    _armed.clear()
    _thread.__dict__.clear()


def arm_from(text: str, folder: Path | None = None) -> None:
    """Arm what "point=kill,point=stop@2" says: how worker processes are armed. Raises KeyError for what is unknown."""
    for one in filter(None, text.split(",")):
        name, _, rest = one.partition("=")
        action, _, nth = rest.partition("@")
        arm(name, _Armed(name, action, int(nth) if nth else None, folder))


# --- what happens on the wire -----------------------------------------------------------------------------------------


def sending(wire: Wire) -> None:
    """A statement of this thread is about to be sent; `drop` shuts its socket first, so that it never arrives."""
    point("wire.before_send")
    if _take("drop"):
        wire.shut()


def answered(wire: Wire, *, committed: bool) -> None:
    """It was answered; under `commit_unknown` nobody hears of the first one that left nothing uncommitted."""
    if committed and _take("commit_unknown"):
        wire.close()
        raise psycopg.OperationalError("the answer to COMMIT was lost (a fault was injected here)")


def _take(fate: str) -> bool:
    found = getattr(_thread, "fate", None) == fate
    if found:
        _thread.fate = None
    return found


# --- actions ----------------------------------------------------------------------------------------------------------


class _Armed:
    """An armed point of a worker process: leaves its mark, then acts (at the `nth` time only, where that is given)."""

    def __init__(self, name: str, action: str, nth: int | None, folder: Path | None) -> None:
        self._name, self._nth, self._folder = name, nth, folder
        self._seen = 0
        kind, _, size = action.partition(":")
        self._size = int(size or 0)
        self._act: Callable[[], None] = self._meet if kind == "barrier" else ACTIONS[kind]

    def __call__(self) -> None:
        seen = self._mark()
        if self._nth in {None, seen}:
            self._act()

    def _mark(self) -> int:
        """How often the point was reached, this time included."""
        while True:
            self._seen += 1
            if self._folder is None:
                return self._seen
            try:
                (self._folder / f"{self._name}.{self._seen}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return self._seen

    def _meet(self) -> None:
        """Goes on when enough have come here."""
        if self._folder is None:
            raise Injected("a barrier needs AGENTMESH_TEST_REACHED")
        last = self._folder / f"{self._name}.{self._size}"
        pause = threading.Event()
        for _ in range(int(BARRIER_S / 0.01)):
            if last.exists():
                return
            pause.wait(0.01)
        raise Injected(f"fewer than {self._size} came to {self._name}")


def _raise() -> None:
    raise Injected("a fault was injected here")


def _fate(name: str) -> Callable[[], None]:
    def set_fate() -> None:
        _thread.fate = name

    return set_fate


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    # to this thread: of a signal to the process another thread may hear first, and this one would run on
    "stop": lambda: signal.pthread_kill(threading.get_ident(), signal.SIGSTOP),
    "raise": _raise,
    "drop": _fate("drop"),
    "commit_unknown": _fate("commit_unknown"),
}
"""What a point can be armed with, besides "barrier:n". The last two befall this thread's next statement."""


def _arm_from_environment() -> None:
    folder = os.environ.get("AGENTMESH_TEST_REACHED")
    arm_from(os.environ.get("AGENTMESH_TEST_FAULTS", ""), Path(folder) if folder else None)


_arm_from_environment()
