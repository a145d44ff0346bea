"""The rescuer: once a second the leading one gives back what the dead held, times out what is overdue, and rings again.

It runs in every worker and leads by a lease row, never by an advisory lock. Each row is an ordinary guarded
transition of its own, so two leaders are harmless and one bad row stops nothing.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import psycopg
import structlog

from agentmesh.coordination import process
from agentmesh.coordination.heartbeat import Heart
from agentmesh.coordination.notes import Notes
from agentmesh.coordination.scheduler import Scheduler
from agentmesh.errors import BrokerUnreachable, MeshError
from agentmesh.execution import errands
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.faults import point
from agentmesh.records import Ring
from agentmesh.state import (
    audit,
    children,
    forgetting,
    leases,
    partitions,
    rescue,
    rings,
    signals,
    statistics,
    steering,
)
from agentmesh.state.look import look

log = structlog.get_logger("agentmesh.rescuer")

BATCH = 500
OVERTAKEN_S = 2.0
SELDOM = 10  # looks
RARELY = 3600  # looks


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the rescuer looks, and when a ring is worth repeating; seconds."""

    lease_s: float = 10.0
    beat_s: float = 1.0
    rescue_s: float = 1.0
    again_s: float = 2.0
    again_cap_s: float = 10.0
    no_worker_s: float = 86_400.0


class Rescuer:
    """Looks once a `pace.rescue_s`, and acts while it leads. `also` is looked at by every one, leading or not."""

    def __init__(  # noqa: PLR0913 - what wiring hands over
        self, db: Database, heart: Heart, notes: Notes, pace: Pace, *, ring: Callable[[Sequence[Ring]], None],
        depths: Callable[[Sequence[str]], dict[str, int]], also: Sequence[Callable[[], None]] = (),
        again: Callable[[Sequence[Ring]], None] | None = None,
    ) -> None:  # fmt: skip
        """`again` rings what was rung before; None: `ring` does."""
        self._db, self._heart, self._notes, self._pace = db, heart, notes, pace
        self._ring, self._again, self._depths = ring, again or ring, depths
        self._scheduler, self._also = Scheduler(db, ring=ring), also
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="rescuer", daemon=True)
        self._leads = False
        self._looks = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._db.close()

    @property
    def leads(self) -> bool:
        """Whether this worker led when it last looked."""
        return self._leads

    def tick(self) -> bool:
        """One look; False when another worker leads. Never raises for a database that is away."""
        try:
            for also in self._also:
                also()
            found = look(
                self._db, self._notes.worker_id, lease_s=self._pace.lease_s / 2, silent_s=2 * self._pace.beat_s,
                again_s=self._pace.again_s, cap_s=self._pace.again_cap_s,
            )  # fmt: skip
            self._leads = found.leads
            if self._leads:
                self._do(found.chores)
                self._looks = (self._looks + 1) % RARELY
                if self._looks % SELDOM == 1:
                    self._give_up()
                    self._scheduler.forget()
                    self._forget()
                    statistics.refresh(self._db)
                if self._looks == SELDOM + 1:
                    partitions.make_ahead(self._db)
                if "rings" in found.chores:
                    self._ring_again()
        except BrokerUnreachable as exc:
            log.warning("nothing is rung; trying again", error=str(exc).splitlines()[0])
        except (psycopg.Error, MeshError) as exc:
            self._leads = False  # nobody leads without a database; what else asks that of it pauses too
            log.warning("rescue failed; trying again", error=str(exc).splitlines()[0])
        return self._leads

    def _loop(self) -> None:
        pause = 0.0  # whoever was here before may have left work
        while not self._stop.wait(pause * random.uniform(0.9, 1.1)):  # noqa: S311 - spreads the leaders' looks
            try:
                leads = self.tick()
            except Exception:
                log.exception("rescue failed; trying again")
                continue
            pause = self._pace.rescue_s if leads else min(self._pace.rescue_s * 2, self._pace.lease_s / 4)

    def _do(self, chores: Collection[str]) -> None:
        """What there is to do but rings, in this order: what the dead held, whose time is over, what is owed."""
        buried = "silent" in chores and self._bury()
        if buried or "orphans" in chores:
            self._give_back(rescue.orphans(self._db, batch=BATCH))
        if "overdue" in chores:
            self._give_back(rescue.overdue(self._db, batch=BATCH))
        if "waking" in chores:
            self._wake()
        if not {"owed", "unwanted", "held"}.isdisjoint(chores):
            self._pay()
        if "cancels" in chores:
            self._finish_cancels()
        if "lanes" in chores:
            self._scheduler.look()
        if "unsealed" in chores:
            audit.seal(self._db)

    def _bury(self) -> bool:
        """Declare workers dead: at once where their process is provably gone, else after their lease of silence. Whether
        there were any."""
        buried = False
        rows = leases.silent(self._db, after_s=2 * self._pace.beat_s)
        ourselves = any(row["id"] == self._notes.worker_id for row in rows)  # then it was the clock, or us
        for row in rows:
            gone = process.provably_gone(row)
            heard = not ourselves and self._heart.heard_for(row["now_s"]) > self._pace.lease_s
            if (gone or (row["expired"] and heard)) and leases.declare_dead(self._db, row, gone=gone):
                buried = True
                log.warning("worker is dead", worker=row["name"], id=str(row["id"]), gone=gone)
        return buried

    def _give_back(self, rows: Iterable[Row]) -> None:
        for row in rows:
            point("rescue.after_select")
            try:
                found = rescue.give_back(self._db, row, row["outcome"])
                point("rescue.after_update")
                self._ring(found)
                log.info("EXEC_RESCUE", kind=row["kind"], id=str(row["id"]), outcome=row["outcome"])
            except (psycopg.Error, MeshError) as exc:
                log.warning("a row was not given back", id=str(row["id"]), error=str(exc).splitlines()[0])

    def _wake(self) -> None:
        """Steps whose time is over."""
        for due in signals.due(self._db, batch=BATCH):
            self._each(due, self._wake_one)

    def _wake_one(self, row: Row) -> None:
        found = signals.wake(self._db, row)
        point("timer.after_fire")
        self._ring(found)

    def _pay(self) -> None:
        """What a crash left between a child trace and its parent, either way; and children a pause had held back."""
        for child in children.owed(self._db, batch=BATCH):
            self._each(child, lambda row: self._ring(errands.pay(self._db, row["id"])))
        for call in children.unwanted(self._db, batch=BATCH):
            self._each(call, lambda row: children.drop(self._db, row))
        for held in children.held(self._db, batch=BATCH):
            self._each(held, lambda row: self._ring(children.admit(self._db, row)))

    def _each(self, row: Row, do: Callable[[Row], None]) -> None:
        """One bad row stops nothing."""
        try:
            do(row)
        except (psycopg.Error, MeshError) as exc:
            log.warning("a row was not served", id=str(row["id"]), error=str(exc).splitlines()[0])

    def _give_up(self) -> None:
        """Calls of tools that no worker has had for long."""
        for row in rescue.unserved(self._db, after_s=self._pace.no_worker_s, batch=BATCH):
            try:
                self._ring(rescue.give_up(self._db, row, worker_id=self._notes.worker_id))
                log.warning("no worker has had its tool: given up", id=str(row["id"]), tool=row["tool"])
            except (psycopg.Error, MeshError) as exc:
                log.warning("a call was not given up", id=str(row["id"]), error=str(exc).splitlines()[0])

    def _forget(self) -> None:
        """Memory whose time is over."""
        for context in forgetting.due(self._db, batch=BATCH):
            self._each(context, lambda row: forgetting.forget(self._db, row, batch=BATCH))

    def _finish_cancels(self) -> None:
        """Trees whose cancel was cut short."""
        for row in steering.owed(self._db, batch=BATCH):
            try:
                steering.cancel_below(self._db, tenant=row["tenant_id"], trace_id=row["id"])
            except (psycopg.Error, MeshError) as exc:
                log.warning("a tree was not cancelled", id=str(row["id"]), error=str(exc).splitlines()[0])

    def _ring_again(self) -> None:
        due = rings.due(self._db, again_s=self._pace.again_s, cap_s=self._pace.again_cap_s, batch=BATCH)
        fresh = [_ring(row) for row in due if row["new"]]
        lost = [_ring(row) for row in self._unheard([row for row in due if not row["new"]])]
        if fresh or lost:
            rings.mark(self._db, [*fresh, *lost])
        if fresh:
            self._ring(fresh)
        if lost:
            self._again(lost)

    def _unheard(self, old: list[Row]) -> list[Row]:
        """Rows whose doorbell seems lost: their queue holds fewer messages than rows wait for it, or they were
        overtaken by a row of the same queue and priority that was rung 2 s later."""
        queues = sorted({row["queue"] for row in old})
        if not queues:
            return []
        depths, ready = self._depths(queues), rings.ready(self._db, queues)
        missing = {queue: ready.get(queue, 0) - depths.get(queue, 0) for queue in queues}
        overtaken = rings.overtaken(self._db, queues)
        found = []
        for row in old:
            latest = overtaken.get((row["queue"], row["priority"]))
            passed = latest is not None and latest["newest"] is not None and (
                (latest["newest"] - row["rung_at"]).total_seconds() >= OVERTAKEN_S
            )  # fmt: skip
            if missing[row["queue"]] > 0 or passed:
                missing[row["queue"]] -= 1
                found.append(row)
        return found


def _ring(row: Row) -> Ring:
    return Ring(row["kind"], row["id"], row["epoch"], row["queue"], row["task"], row["trace_id"], row["priority"])
