"""Named places where tests make things go wrong; nothing happens at them otherwise.

`point("call.after_effect")` costs one look into an empty dict. Tests arm points in their own process with `arm`, and in
worker processes through AGENTMESH_TEST_FAULTS ("point=kill", "point=stop", "point=raise", comma-separated).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

POINTS = frozenset({
    "dispatch.before_commit", "dispatch.after_commit", "dispatch.after_publish", "receive.before_verify",
    "receive.after_claim", "prepare.after_context", "reason.before", "reason.after_answer", "reason.after_commit",
    "tools.before_commit", "tools.after_commit", "tools.after_ring", "call.after_claim", "call.before_effect",
    "call.after_effect", "call.in_commit", "call.after_commit", "join.after_commit", "callback.before",
    "callback.after_handler", "callback.after_commit", "next.after_commit", "finish.before_commit",
    "finish.after_commit", "rescue.after_select", "rescue.after_update", "beat.before",
})  # fmt: skip

_armed: dict[str, Callable[[], None]] = {}


class Injected(RuntimeError):
    """Raised at a point that was armed to raise."""


def point(name: str) -> None:
    """Do what `name` is armed with; nothing when it is not."""
    if _armed and name in _armed:
        _armed[name]()


def arm(name: str, action: Callable[[], None]) -> None:
    """From now on `action` runs whenever `name` is reached. Raises KeyError for a point that does not exist."""
    if name not in POINTS:
        raise KeyError(name)
    _armed[name] = action


def disarm() -> None:
    _armed.clear()


def arm_from(text: str) -> None:
    """Arm what "point=kill,point=stop" says: how worker processes are armed."""
    for one in filter(None, text.split(",")):
        name, _, action = one.partition("=")
        arm(name, ACTIONS[action])


def _raise() -> None:
    raise Injected("a fault was injected here")


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": _raise,
}

arm_from(os.environ.get("AGENTMESH_TEST_FAULTS", ""))
