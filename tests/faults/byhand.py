"""Working a trace in one process while statements fail: what the heart and the rescuer would do is done by hand."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from agentmesh.errors import MeshError
from agentmesh.execution.failures import Leaving
from agentmesh.infrastructure import faults
from agentmesh.records import Ring
from agentmesh.state import leases, rescue, rings

AWAY = (psycopg.Error, MeshError, Leaving)
TABLES = (
    "traces", "steps", "calls", "attempts", "events", "effects", "memory", "contexts", "envelopes", "idempotency", "signals",
)  # fmt: skip


def recover(lab: Any) -> None:
    """Give back what names this worker and is not being run, and ring whatever is ready."""
    db, me = lab.mesh.db, lab.mesh.notes.worker_id
    for one in leases.beat(db, me).named or ():
        row = {"kind": one.kind, "id": one.id, "tenant_id": one.tenant_id, "epoch": one.epoch, "worker_id": me}
        lab.bells.ring(rescue.give_back(db, row, "released"))
    for row in rings.due(db, again_s=0, cap_s=0, batch=500):
        lab.bells.ring([
            Ring(row["kind"], row["id"], row["epoch"], row["queue"], row["task"], row["trace_id"], row["priority"])
        ])  # fmt: skip


def work(lab: Any, trace: Any, *, rounds: int = 40) -> str:
    """Work until the trace has ended, whatever statements fail on the way; its status."""
    for _ in range(rounds):
        while lab.bells.waiting:
            with suppress(*AWAY):
                lab.answer()
        status: str = lab.trace(trace)["status"]
        if status in {"done", "failed"}:
            return status
        with suppress(*AWAY):
            recover(lab)
    return status


def forget(lab: Any) -> None:
    """No row is left of the trace before: another one, of another n, comes next."""
    lab.ran.clear()
    lab.bells.waiting.clear()
    for table in TABLES:
        lab.rows(f"DELETE FROM mesh.{table}")


def executing() -> bool:
    """Whether this round trip is a statement: a server refuses those, not BEGIN, COMMIT or ROLLBACK."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "checkout":
        if frame.f_code.co_name == "execute" and frame.f_code.co_filename.endswith("cursor.py"):
            return True
        frame = frame.f_back
    return False


class Failing:
    """The n-th round trip (or statement) of this thread fails. `hits` tells whether there was an n-th one."""

    def __init__(self, nth: int, fail: Callable[[], None], *, statements: bool) -> None:
        self._left, self._fail, self._statements = nth, fail, statements
        self._thread = threading.get_ident()
        self.hits = 0

    def __call__(self) -> None:
        if threading.get_ident() != self._thread or (self._statements and not executing()):
            return
        self._left -= 1
        if self._left == 0:
            self.hits += 1
            self._fail()


@contextmanager
def failing(nth: int, fail: Callable[[], None], *, statements: bool = False) -> Iterator[Failing]:
    """`fail()` runs before the n-th round trip is sent."""
    made = Failing(nth, fail, statements=statements)
    faults.arm("wire.before_send", made)
    try:
        yield made
    finally:
        faults.disarm()
