"""The heart of a worker process: it beats, compares what names it with what it runs, and gives back the difference.

A worker that finds itself dead registers anew; what it still runs loses by its fence. A prefork child that died is
noticed within one beat and its work is given back at once.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

import psycopg
import structlog

from agentmesh.coordination import process
from agentmesh.coordination.notes import Notes
from agentmesh.coordination.stuck import Stuck
from agentmesh.errors import MeshError
from agentmesh.infrastructure.counts import COUNTS
from agentmesh.infrastructure.database import Database, Server
from agentmesh.infrastructure.faults import point
from agentmesh.records import Ring, new_id
from agentmesh.state import leases, rescue
from agentmesh.state.leases import Named, Worker

log = structlog.get_logger("agentmesh.heart")


class Heart:
    """Beats for one worker process from a thread and a connection of its own."""

    def __init__(
        self, db: Database, worker: Worker, notes: Notes, *, beat_s: float, ring: Callable[[Sequence[Ring]], None],
        stuck: Stuck | None = None, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._db = db
        self._worker = worker
        self._notes = notes
        self._beat_s = beat_s
        self._ring = ring
        self._stuck = stuck
        self._monotonic = monotonic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heart", daemon=True)
        self._unnoted: set[UUID] = set()
        self._server: Server | None = None
        self._heard_since: float | None = None
        self._offset_s: float | None = None
        self._last = 0.0
        self._holds = False
        self._counted: dict[str, int] = {}

    def start(self) -> None:
        """Registers the worker, then beats until `stop`. Raises what the database raises when it does not answer."""
        self._register()
        self._thread.start()

    def stop(self) -> None:
        """Afterwards this worker is gone by its own will, and holds nothing."""
        self._stop.set()
        self._thread.join(timeout=5)
        try:
            leases.leave(self._db, self._notes.worker_id)
        except (psycopg.Error, MeshError):
            log.warning("could not leave; the lease will run out")
        self._db.close()

    def heard_for(self, now_s: float) -> float:
        """Seconds of unbroken beats to this very server, whose clock says `now_s`: only then does the silence of others
        mean anything."""
        since, now = self._heard_since, self._monotonic()
        if since is None or now - self._last > self._worker.lease_s / 2:  # this process itself was silent
            return 0.0
        return 0.0 if self._jumped(now_s - now) else now - since

    def holds(self) -> bool:
        """Whether a row named this worker at its last beat."""
        return self._holds

    def beat(self) -> None:
        """One beat. Never raises: a database that is away is not the end of a worker."""
        point("beat.before")
        try:
            now_s, named = leases.beat(
                self._db, self._notes.worker_id, stuck=len(self._stuck or ()), counts=self._counts()
            )
            self._compare_clocks(now_s)
            self._heard()
            if named is None:
                log.warning("found dead; registering anew", worker=str(self._notes.worker_id))
                self._register()
                return
            self._compare(named)
        except (psycopg.Error, MeshError) as exc:
            self._heard_since = None
            log.warning("beat failed", error=str(exc).splitlines()[0])

    def _loop(self) -> None:
        while not self._stop.wait(self._beat_s * random.uniform(0.9, 1.1)):  # noqa: S311 - spreads many workers' beats
            try:
                self.beat()
            except Exception:
                self._heard_since = None
                log.exception("beat failed")

    def _register(self) -> None:
        self._worker = replace(self._worker, id=new_id())
        leases.register(self._db, self._worker)
        self._notes.rename(self._worker.id)
        self._unnoted = set()
        self._counted = COUNTS.totals()

    def _counts(self) -> dict[str, int]:
        """What this process has counted since it is known by its name."""
        return {name: n - self._counted.get(name, 0) for name, n in COUNTS.totals().items()}

    def _compare_clocks(self, now_s: float) -> None:
        """Count the unbroken time anew after a jump of the database's clock: it made every beat look old."""
        offset_s = now_s - self._monotonic()
        if self._jumped(offset_s):
            log.warning("the database's clock jumped", seconds=offset_s - (self._offset_s or 0.0))
            self._heard_since = None
        self._offset_s = offset_s

    def _jumped(self, offset_s: float) -> bool:
        """Whether the database's clock is no longer where the last beat found it, beside ours."""
        return self._offset_s is not None and abs(offset_s - self._offset_s) > self._worker.lease_s / 4

    def _heard(self) -> None:
        """Count the unbroken time anew after any gap, and after another server has answered."""
        now = self._monotonic()
        if self._heard_since is None or now - self._last > self._worker.lease_s / 2:
            server = self._db.server()
            self._heard_since = now
            self._server = server
        self._last = now

    def _compare(self, named: Sequence[Named]) -> None:
        self._holds = bool(named)
        noted = self._notes.claims()  # read after the rows: a claim is noted before it is sent
        unnoted: set[UUID] = set()
        for one in named:
            if one.child is not None and process.started(one.child) is None:
                self._give_back(one, lost=True)
            elif one.claim_id not in noted:
                unnoted.add(one.claim_id)
                if one.claim_id in self._unnoted:  # twice in a row: a claim whose answer was lost
                    self._give_back(one, lost=False)
        self._unnoted = unnoted
        if self._stuck is not None:
            self._stuck.look(noted, {one.claim_id for one in named})

    def _give_back(self, one: Named, *, lost: bool) -> None:
        row = {
            "kind": one.kind, "id": one.id, "tenant_id": one.tenant_id, "epoch": one.epoch,
            "worker_id": self._notes.worker_id,
        }  # fmt: skip
        try:
            rings = rescue.give_back(self._db, row, "lost" if lost else "released")
            log.warning("gave back what nothing here runs", kind=one.kind, id=str(one.id), lost=lost)
            self._ring(rings)
        except (psycopg.Error, MeshError) as exc:  # one bad row stops nothing; the next beat tries it again
            log.warning("a row was not given back", id=str(one.id), error=str(exc).splitlines()[0])


def here(
    *, name: str, queues: Sequence[str], agents: Sequence[str], tools: Sequence[str], version: str, lease_s: float
) -> Worker:
    """This process as a worker row."""
    pid = os.getpid()
    return Worker(
        new_id(), name, process.host(), process.boot_id(), process.pid_namespace(), pid, process.started(pid) or 0,
        tuple(queues), tuple(agents), tuple(tools), version, lease_s,
    )  # fmt: skip
