"""One schedule: workers, producers, a broker and a clock, all driven from one seed.

Code and database are the real ones; what is simulated is who runs next, how late it is, which messages arrive and what
breaks. First a stormy part in which faults happen, then everything is healed and work must end by itself; safety holds
all the time, liveness after the healing (as in TigerBeetle's simulator). Each seed turns some kinds of faults off, so
that the others get depth (as FoundationDB's does).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import psycopg

from agentmesh import records, testing
from agentmesh.communication.doorbell import Doorbell
from agentmesh.coordination import process
from agentmesh.coordination.notes import Notes
from agentmesh.errors import MeshError, OutcomeUnknown
from agentmesh.execution import router
from agentmesh.execution.failures import AWAY
from agentmesh.infrastructure import faults
from agentmesh.records import Ring
from agentmesh.state import dispatch, leases
from agentmesh.state.blobs import BlobStore
from agentmesh.wiring import Mesh
from tests.simulation import history
from tests.simulation.base import Base
from tests.simulation.broker import Message, SimBroker
from tests.simulation.chains import AGENT
from tests.simulation.history import History, Ran, Submitted
from tests.simulation.luck import Luck
from tests.simulation.plan import Outcome, Plan
from tests.simulation.stage import Killed, Pool, Task
from tests.simulation.worker import PACE, Ids, SimWorker
from tests.simulation.workload import Job, jobs

HEAL_S = 400.0
WAITING = """SELECT id, trace_id, node, kind FROM mesh.steps WHERE status = 'waiting' AND kind IN ('signal', 'approval')
 ORDER BY id"""
SLOTS = 3


class World:
    """Everything of one schedule. `run` plays it and says how it went."""

    def __init__(self, base: Base, plan: Plan, *, verbose: bool = False) -> None:
        self.base, self.plan, self.verbose = base, plan.filled(), verbose
        self.stage = base.stage
        seed = plan.seed
        self.outcome = Outcome(self.plan)
        self.chance, self.luck = (
            Random(f"{seed}/schedule"),
            Luck(self.plan, self.outcome, self.stage, self.say, lambda: self.now),
        )
        self.inline_bytes = self.chance.choice((100, 65_536, 65_536, 65_536))
        self.haste = self.chance.choice((0.5, 2.0, 4.0, 8.0))
        self.stick = self.chance.choice((0.0, 0.3, 0.6, 0.9))
        self.now, self.jumped = 0.0, 0.0
        self.broker = SimBroker(lambda: self.now, self.luck)
        self.script = base.script
        self.workers: list[SimWorker] = []
        self.made = 0
        self.history = History()
        self.jobs: list[Job] = [
            one for one in jobs(seed, self.plan.traces) if plan.only is None or one.number in plan.only
        ]
        self.outcome.jobs = tuple(one.number for one in self.jobs)
        self.submitting = sorted(
            ((one.at, one) for one in self.jobs for _ in range(one.producers)), key=lambda pair: pair[0]
        )
        self.delivering: Counter[str] = Counter()
        self.last: Task | None = None
        self.replacements: list[float] = []
        self.people, self.next_person = Random(f"{seed}/people"), 0.0
        self.people_come = any(one.agent == AGENT for one in self.jobs)
        self.hash = hashlib.sha256()

    # --- what the simulated see -------------------------------------------------------------------------------------

    def whose_clock(self) -> tuple[str, float]:
        """Whoever runs now, and what its wall clock says."""
        task = self.stage.current
        owner = task.owner if task else None
        if isinstance(owner, SimWorker):
            return owner.name, max(0.0, owner.monotonic())
        return "", self.now

    def pause(self, seconds: float) -> None:
        if seconds:
            end = self.now + seconds
            self.stage.wait_until(lambda: self.now >= end, f"pause {seconds:g} s")

    def ran(self, what: str, ctx: Any) -> None:
        task = self.stage.current
        effect = "tx" if ctx.tx is not None else self.script.tools.get(ctx.tool).effect
        seen = (ctx.tool, ctx.idempotency_key, ctx.attempt, ctx.epoch)
        self.history.ran.append(Ran(self.now + self.jumped, what, str(ctx.trace_id), *seen, str(task), effect))

    # --- its parts ------------------------------------------------------------------------------------------------

    def hire(self, kind: str) -> SimWorker:
        """A new worker process; it is there when its first task has registered it."""
        self.made += 1
        skewed = self.luck.happens("skew", 0.4)
        rate = self.luck.chance.choice((0.5, 1.0, 2.0)) if skewed else 1.0
        offset_s = self.luck.chance.uniform(-600, 600) if skewed else 0.0
        worker = SimWorker(
            f"w{self.made}", kind, self.mesh(), self.broker, lambda: self.now, rate=rate, offset_s=1000 + offset_s
        )
        worker.next_look += self.chance.uniform(0, 1)
        self.workers.append(worker)

        def register() -> None:
            try:
                worker.heart._register()
            except Exception:
                worker.alive = False
                if kind != "alone":
                    self.replacements.append(self.now + 1)
                raise
            worker.ready = True

        self.spawn("register", worker, register)
        return worker

    def mesh(self) -> Mesh:
        """A process's parts, on the shared database, broker and script."""
        with self.stage.quietly():
            return self._mesh()

    def _mesh(self) -> Mesh:
        mesh = Mesh(
            self.base.settings, tools=self.script.tools, agents=self.script.agents, notes=Notes(), root=self.base.root
        )
        mesh.__dict__["db"] = self.base.db
        mesh.__dict__["doorbell"] = Doorbell(self.broker, self.base.db)  # type: ignore[arg-type]
        mesh.__dict__["key_table"] = self.base.key_table
        mesh.__dict__["blobs"] = BlobStore(self.base.db, inline_bytes=self.inline_bytes)
        mesh.client._agents = {mesh.tenant: (math.inf, dispatch.agents(self.base.db, mesh.tenant))}  # for ever fresh
        clock = lambda: self.now  # noqa: E731 - handed on twice
        mesh.__dict__["parts"] = replace(mesh.parts, pool=Pool(self.stage, clock), monotonic=clock)  # type: ignore[arg-type]
        mesh.__dict__["_alone"] = self.alone
        return mesh

    def alone(self, ring: Ring) -> bool:
        """What took a worker with it before is worked by a process of its own; whether that survived."""
        lone = self.hire("alone")
        lone.mesh.__dict__["_alone"] = None

        def work() -> None:
            self.stage.wait_until(lambda: lone.ready or not lone.alive, "registering")
            if not lone.ready:
                raise Killed
            lone.mesh.doorbell.ring(lone.mesh.controller.run_once(ring))
            leases.leave(self.base.db, lone.mesh.notes.worker_id)
            lone.alive = False

        task = self.spawn(f"{ring.kind}:{str(ring.id)[-4:]}.{ring.epoch}", lone, work)
        self.stage.wait_until(lambda: task.done or not lone.alive, "worked alone")
        return task.done and lone.ready and task.error is None

    def spawn(self, name: str, owner: Any, run: Any) -> Task:
        return self.stage.spawn(name, owner, run)

    def say(self, line: str) -> None:
        said = f"{self.now:8.2f} {line}"
        self.hash.update(said.encode())
        self.outcome.lines.append(said)
        if self.verbose:
            print(said, flush=True)  # noqa: T201 - asked for

    # --- the schedule -----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        random.seed(self.plan.seed)
        was = records._ids, router.GROUP
        records._ids = Ids(self.plan.seed, self.whose_clock)  # type: ignore[assignment]
        router.GROUP = self.chance.choice((2, 3, router.GROUP))
        try:
            self._prepare()
            self._play(until=self.plan.steps)
            self.outcome.storm = self.outcome.steps
            self.luck.storm = False
            self._heal()
            if self._play(until=None):
                self._check()
        finally:
            self._drop_all()
            faults.disarm()
            records._ids, router.GROUP = was
        self.outcome.digest = self.hash.hexdigest()[:12]
        return self.outcome

    def _prepare(self) -> None:
        self.base.empty()
        self.stage.reset()
        self.base.faults.luck = self.luck
        self.script.begin(self.ran, self.pause)
        self.script.chained(self.plan.seed)
        for point in sorted(one for one in faults.POINTS if not one.startswith("wire.")):  # each round trip is a step
            faults.arm(point, lambda point=point: self._point(point))
        first = self.mesh()
        first.registry.announce(self.base.db, [first.tenant])
        assert first.key.kid  # registered by the first schedule alone, and noted in the audit then
        self.base.rows("SELECT mesh.audit_seal(1000)")
        self.producer = self.mesh()
        kinds = ["all", "all", *(self.chance.choice(("agents", "tools", "all")) for _ in range(8))]
        for kind in kinds[: self.plan.workers]:
            self.hire(kind)

    def _point(self, name: str) -> None:
        self.outcome.reached[name] += 1
        if name == "rescue.after_select" and self.luck.happens("dawdle", 0.8):
            for worker in self.workers:
                worker.frozen_until = min(worker.frozen_until, self.now)
            self.pause(self.luck.chance.choice((1.0, 4.0, 9.0)))
        self.stage.step(name)

    def _play(self, *, until: int | None) -> bool:
        """Take turns: `until` so many steps, or (None) until all is quiet; False when that does not come."""
        limit = until if until is not None else self.outcome.steps + 30_000
        end = self.now + HEAL_S
        while self.outcome.steps < limit:
            self.outcome.steps += 1
            if until is None and self._quiet():
                return True
            if until is None and self.now > end:
                break
            self._time()
            self._misfortune()
            task = self._choose()
            if task is None:
                continue
            self.base.set_time(self.now + self.jumped)
            self.stage.turn(task)
            self._after(task)
        if until is None:
            self.outcome.broken.append(f"quiet: work does not end within {HEAL_S:g} s after healing\n{self._open()}")
        return False

    def _after(self, task: Task) -> None:
        blocked = task.blocked_at is not None
        if blocked:
            task.blocked_at = self.now
        self.say(f"{task} {task.at if not blocked else f'waits for a lock in {task.sql}'}{' END' if task.done else ''}")
        if task.done and task.error is not None:
            self._failed(task)
        if blocked and self.stage.crowded(task):
            self.say(f"{task} comes again when nobody waits before it")
        for freed in self.stage.settle():
            self.say(f"{freed} has its lock")
        for waiting in [
            one for one in self.stage.tasks if one.blocked_at is not None and self.now - one.blocked_at > 3
        ]:
            self.stage.cancel(waiting)
            self.stage.settle()
            self.say(f"{waiting} waited for its lock too long")

    def _failed(self, task: Task) -> None:
        """What a task raised: our database away is a worker's daily life, everything else is a finding."""
        exc = task.error
        if isinstance(exc, psycopg.errors.DeadlockDetected):
            self.outcome.broken.append(f"deadlock: {task}: {exc}")
        elif not isinstance(exc, AWAY):
            self.outcome.broken.append(f"raised: {task} at {task.at}: {type(exc).__name__}: {exc}")
        self.say(f"{task} raised {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}")

    def _time(self) -> None:
        """It goes on by a little, now and then by more."""
        if self.chance.random() < 0.25:
            self.now += self.haste * self.chance.choice((0.01, 0.05, 0.05, 0.3))

    def _misfortune(self) -> None:
        if self.luck.happens("jump", 0.002):
            self.jumped += self.luck.chance.choice((0.5, 3.0, 11.0, 60.0))
        if self.luck.happens("wipe", 0.004):
            self.broker.waiting.clear()
        living = [one for one in self.workers if one.alive and one.ready]
        if living and self.luck.happens("kill", 0.008):
            self.kill(self._victim(living))
        awake = [one for one in living if one.frozen_until <= self.now]
        if awake and self.luck.happens("freeze", 0.012):
            self.freeze(self._victim(awake), self.luck.chance.choice((1.0, 12.0, 14.0, 25.0)))
        producing = [one for one in self.stage.tasks if one.owner is None and one.blocked_at is None]
        if producing and self.luck.happens("kill_producer", 0.02):
            self.stage.kill(self.luck.chance.choice(producing))

    def _victim(self, some: list[SimWorker]) -> SimWorker:
        """One of them, rather one that is at work."""
        at_work = {one.owner for one in self.stage.tasks if ":" in one.name}
        return self.luck.chance.choice([one for one in some if one in at_work] or some)

    def kill(self, worker: SimWorker) -> None:
        self.say(f"{worker} is killed")
        worker.alive = False
        for task in [one for one in self.stage.tasks if one.owner is worker]:
            self.stage.kill(task)
        self.stage.settle()
        if self.luck.chance.random() < 0.5:  # a worker of the same host sees that the process is gone
            self.base.rows(
                f"UPDATE mesh.workers SET host = '{process.host()}', pid_started = pid_started + 1"
                f" WHERE host = '{worker.host}'"
            )
        if worker.kind != "alone":
            self.replacements.append(self.now + self.luck.chance.choice((0.5, 5.0, 20.0)))

    def freeze(self, worker: SimWorker, seconds: float) -> None:
        """It is stopped; a transaction that it has open is ended by the server, a commit under way goes through."""
        self.say(f"{worker} is frozen for {seconds:g} s")
        worker.frozen_until = self.now + seconds
        for task in [one for one in self.stage.tasks if one.owner is worker]:
            if task.connection is not None and not task.wrapped and task.blocked_at is None:
                self.stage.terminate(task)
        self.stage.settle()

    # --- who is next ----------------------------------------------------------------------------------------------

    def _choose(self) -> Task | None:
        ready = [one for one in self.stage.tasks if self._runnable(one)]
        if self.last in ready and self.chance.random() < self.stick:
            return self.last
        starts = self._starts()
        if not ready and not starts:
            self._idle()
            return None
        pick = self.chance.randrange(len(ready) + len(starts))
        if pick < len(ready):
            self.last = ready[pick]
        else:
            self.last = starts[pick - len(ready)]()
        return self.last

    def _runnable(self, task: Task) -> bool:
        if task.blocked_at is not None or task.done:
            return False
        if isinstance(task.owner, SimWorker) and task.owner.frozen_until > self.now and not task.wrapped:
            return False
        return task.until is None or task.until()

    def _starts(self) -> list[Any]:
        """What may begin now, as functions that make it a task."""
        found: list[Any] = []
        busy = {(one.owner, one.name) for one in self.stage.tasks if isinstance(one.owner, SimWorker)}
        awake = [one for one in self.workers if one.alive and one.ready and one.frozen_until <= self.now]
        for worker in awake:
            if worker.next_beat <= self.now and (worker, "beat") not in busy:
                found.append(lambda worker=worker: self._beat(worker))
            if worker.kind != "alone" and worker.next_look <= self.now and (worker, "look") not in busy:
                found.append(lambda worker=worker: self._look(worker))
        free = [one for one in awake if self.delivering[one.name] < SLOTS]
        for message in self.broker.due():
            takers = [one for one in free if one.serves(message.ring)]
            if takers:
                found.append(lambda message=message, takers=takers: self._deliver(message, self.chance.choice(takers)))
        if self.submitting and self.submitting[0][0] <= self.now:
            found.append(lambda: self._submit(self.submitting.pop(0)[1]))
        if self.replacements and self.replacements[0] <= self.now:
            self.replacements.pop(0)
            self.hire("all")
        if self.people_come and self.next_person <= self.now:
            found += self._asked()
        return found

    def _asked(self) -> list[Any]:
        """What a person may do now, as functions that make it a task: now and then one looks at what waits."""
        self.next_person = self.now + self.people.uniform(0.5, 4)
        return [lambda row=row: self._answer(row) for row in self.base.rows(WAITING)]

    def _answer(self, row: dict[str, Any]) -> Task:
        refuse, twice = self.people.random() < 0.2, self.people.random() < 0.3

        def answer() -> None:
            for _ in range(1 + twice):
                with suppress(MeshError):  # it was answered, or over, before
                    if row["kind"] == "approval":
                        self.producer.people.decide(row["trace_id"], refuse=refuse, by="ann")
                    else:
                        self.producer.people.signal(row["trace_id"], row["node"], by="ann", key=str(row["id"]))

        return self.spawn("person", None, answer)

    def _idle(self) -> None:
        """Nobody has anything to do: on to the next moment when somebody has."""
        moments = [one.due for one in self.broker.waiting] + self.replacements
        moments += [at for at, _ in self.submitting[:1]]
        moments += [self.next_person] if self.people_come else []
        moments += [one.frozen_until for one in self.workers if one.alive]
        moments += [at for one in self.workers if one.alive for at in (one.next_beat, one.next_look)]
        later = [one for one in moments if one > self.now]
        self.now = min(min(later, default=self.now + 1), self.now + 0.5) + 0.001

    def _beat(self, worker: SimWorker) -> Task:
        worker.next_beat = self.now + PACE.beat_s
        return self.spawn("beat", worker, worker.heart.beat)

    def _look(self, worker: SimWorker) -> Task:
        worker.next_look = self.now + PACE.rescue_s

        def look() -> None:
            if not worker.rescuer.tick():
                worker.next_look = self.now + 2 * PACE.rescue_s

        return self.spawn("look", worker, look)

    def _deliver(self, message: Message, worker: SimWorker) -> Task:
        self.broker.waiting.remove(message)
        ring = message.ring
        self.delivering[worker.name] += 1

        def work() -> None:
            try:
                rings = worker.mesh.controller.run_once(ring)
                self.stage.step("before rings")
                worker.mesh.doorbell.ring(rings)
            finally:
                self.delivering[worker.name] -= 1

        return self.spawn(f"{ring.kind}:{str(ring.id)[-4:]}.{ring.epoch}", worker, work)

    def _submit(self, job: Job) -> Task:
        said = Submitted(self.now, f"job-{job.number}", job.key)
        self.history.submitted.append(said)

        def dispatch() -> None:
            try:
                trace = self.producer.router.dispatch(
                    "work", said.sender, job.agent, job.context, job.payload, policy=job.policy, idempotency_key=job.key,
                    delay=job.delay, priority=job.priority,
                )  # fmt: skip
            except Exception as exc:
                said.told = "unknown" if isinstance(exc, OutcomeUnknown) else "raised"
                if job.key is not None:  # what a careful producer does
                    self.submitting.append((self.now + 1, job))
                raise
            said.told, said.trace_id = "accepted", str(trace)

        return self.spawn(f"job{job.number}", None, dispatch)

    # --- the end of it ----------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.say("healed")
        self.haste = min(self.haste, 1.0)
        for worker in self.workers:
            worker.frozen_until = min(worker.frozen_until, self.now)
            worker.keep_time()
        self.replacements.clear()
        for kind in ("agents", "tools"):
            if not any(one.alive and one.kind in {kind, "all"} for one in self.workers):
                self.hire("all")

    def _quiet(self) -> bool:
        if self.submitting or any(one.name not in {"beat", "look"} for one in self.stage.tasks):
            return False
        return not self.base.rows(
            "SELECT 1 FROM mesh.traces WHERE status NOT IN ('done', 'failed', 'cancelled') LIMIT 1"
        )

    def _open(self) -> str:
        sql = """SELECT 'trace' AS kind, id, status, worker_id, epoch, rung_at, wake_at FROM mesh.traces
           WHERE status NOT IN ('done', 'failed', 'cancelled')
          UNION ALL SELECT 'step', id, status, NULL, epoch, rung_at, wake_at FROM mesh.steps
           WHERE status IN ('ready', 'running', 'waiting', 'joined')
          UNION ALL SELECT 'call', id, status, worker_id, epoch, rung_at, wake_at FROM mesh.calls
           WHERE status IN ('held', 'ready', 'running')"""
        rows = [", ".join(f"{key} {value}" for key, value in row.items()) for row in self.base.rows(sql)]
        return "\n".join(rows + [f"{task} at {task.at}" for task in self.stage.tasks])

    def _check(self) -> None:
        """Safety, when nobody works any more; and nothing may change when every message comes once more."""
        self._drop_all()
        if self.plan.seed % 4 == 0:
            self._replay_messages()
        self.outcome.broken += [
            f"{check} is broken by {', '.join(ids[:5])}" for check, ids in testing.broken(self.base.url).items()
        ]
        self.base.export(self.history)
        self.outcome.broken += [str(one) for one in history.violations(self.history)]
        for event in self.history.events:
            self.outcome.events.append(f"{event.trace_id} {event.seq} {event.name}")
        self.hash.update("\n".join(self.outcome.events).encode())

    def _replay_messages(self) -> None:
        before = self.base.everything()
        mesh = self.mesh()
        mesh.notes.rename(records.new_id())
        for ring in self.broker.sent:
            mesh.controller.run_once(ring)
        if self.base.everything() != before:
            self.outcome.broken.append("replay: rows changed when all messages came once more")

    def _drop_all(self) -> None:
        for worker in self.workers:
            worker.alive = False
        for task in list(self.stage.tasks):
            self.stage.kill(task)
        for _ in range(100):
            if not self.stage.tasks:
                return
            self.stage.settle()
