"""AgentRuntime and RuntimeContainer: the surroundings one run needs, from its claim to its release.

A runtime belongs to one agent of one process; a container holds one trace by hand, for tools and tests that drive a
single run themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

import structlog

from agentmesh.errors import Mistake, UnknownPlan, UnknownTrace
from agentmesh.execution.executors import Executor
from agentmesh.execution.plan import START
from agentmesh.execution.runner import Alone, Notes
from agentmesh.execution.views import HostedAgent
from agentmesh.infrastructure.database import Database
from agentmesh.infrastructure.faults import point
from agentmesh.records import Policy, Ring, new_id
from agentmesh.state import rescue, steering, traces
from agentmesh.state.traces import Holder, Taken

log = structlog.get_logger("agentmesh.runtime")

BY_HAND = "container"
"""Who it was, in the events of what a container paused or resumed."""


class AgentRuntime:
    """What an executor of one agent runs in: how its traces are claimed here."""

    def __init__(
        self, agent: HostedAgent, executor: Executor, db: Database, *, note: Notes, holder: Callable[[], Holder],
        alone: Alone | None = None,
    ) -> None:  # fmt: skip
        self.agent, self.executor = agent, executor
        self._db, self.note, self._holder, self._alone = db, note, holder, alone
        executor.claim = self.claimed
        self._unread: set[str] = set()  # hashes of plans that other releases wrote
        policy = agent.spec.effective_policy()
        own = policy.model_dump(mode="json", exclude_none=True)
        base = Policy().model_dump(mode="json") | own
        node, kind = agent.plan.opening
        self._start = {
            "plan": agent.plan.hash, "version": agent.spec.version, "policy": json.dumps(base), "node": node,
            "kind": kind, "started": json.dumps({"agent": agent.spec.agent, "version": agent.spec.version, "policy": list(own)}),
        }  # fmt: skip

    def prepare_context(self, ring: Ring, claim_id: UUID | None = None, *, at_once: bool = False) -> Taken | None:
        """The trace, claimed here with the step that is to run; None when the ring was stale, or its plan is not for us.

        Where it is run `at_once`, a trace that begins with a chain is claimed by the first commit of that run, the first
        time that it is rung.
        """
        claim = claim_id or new_id()
        who: dict[str, Any] = {"agent": self.agent.spec.agent, "holder": self._holder(), "unread": self._unread}
        if ring.kind == "trace":
            received = json.dumps({"queue": ring.queue, "envelope": ring.envelope is not None})
            start = self._start | {"claim": claim, "received": received}
            taken = None
            if at_once and self._start["kind"] == START:
                taken = traces.begin(self._db, ring.id, ring.epoch, start=start, **who)
            taken = taken or traces.claim(self._db, ring.id, ring.epoch, start=start, **who)
        else:
            taken = traces.take(self._db, ring.id, ring.epoch, claim_id=claim, alone=self._alone is None, **who)
        if taken is None or not self._reads(taken):
            return None
        if (own := self.executor.own_time_s(taken)) is not None:
            traces.limit(self._db, taken, own)
        point("prepare.after_context")
        return taken

    def _reads(self, taken: Taken) -> bool:
        """Whether this release reads the plan that the trace follows; where not, the trace is given back, and whatever
        follows that plan is left to workers that do."""
        held = taken.trace
        try:
            self.executor.parts.plan(held.tenant_id, held.plan_hash)
        except UnknownPlan:
            return True  # nobody can: its trace ends
        except ValueError as exc:
            said = str(exc).splitlines()[0]
            log.warning(
                "a plan of another release; left to others", plan=held.plan_hash, trace_id=str(held.id), error=said
            )
            self._unread.add(held.plan_hash)
            if held.claiming is None:
                self.executor.parts.ring(rescue.give_back(self._db, traces.row_of(held), "released"))
            return False
        return True

    @contextmanager
    def claimed(self, ring: Ring) -> Iterator[Taken | None]:
        """What `prepare_context` gives, under a claim that is noted until the block ends."""
        claim = new_id()
        with self.note(ring.kind, ring.id, claim):
            yield self.prepare_context(ring, claim)

    def hand_over(self, ring: Ring) -> None:
        """A step that was not ours to take because it took a worker with it before is worked alone."""
        if self._alone is not None and ring.kind == "step" and traces.is_suspect(self._db, ring.id, ring.epoch):
            self._alone(ring)

    def run(self, session: Taken) -> str:
        """Run it as far as it goes here: done, failed, waiting, retrying, paused or lost.

        Where branches run beside one another, others of them are taken as long as there are any to take.
        """
        outcome = self.executor.run(session)
        while outcome == "waiting" and self.executor.branches(session.trace):
            ring = traces.free_ring(self._db, session.trace.id, agent=self.agent.spec.agent)
            if ring is None:
                break
            with self.claimed(ring) as taken:
                if taken is None:
                    break
                outcome = self.executor.run(taken)
        return outcome


class RuntimeContainer:
    """One trace, held by hand: `create` takes it, `run` works it, `freeze` puts it away, `resume` fetches it back."""

    def __init__(self, runtime: AgentRuntime, db: Database) -> None:
        self._runtime, self._db = runtime, db
        self._held: Taken | None = None
        self._last: tuple[str, UUID] | None = None  # tenant and trace
        self._noted = ExitStack()

    def create(self, trace_id: UUID | str) -> Taken:
        """The trace, held by this container. Raises UnknownTrace when it is not free to be taken."""
        taken = self._take(UUID(str(trace_id)))
        if taken is None:
            raise UnknownTrace("this trace is not free to be taken", value=str(trace_id),
                               expected="a trace of this agent that is queued, or ready and held by nobody")  # fmt: skip
        return taken

    def run(self, session: Taken) -> str:
        """Run it as far as it goes here, under the claim that `create` made."""
        try:
            return self._runtime.run(session)
        finally:
            self._held = None
            self._noted.close()

    def freeze(self, *, reason: str = "") -> None:
        """The trace that was created here is paused, and held by nobody: what it had begun here is as if it had not.

        Nothing of it starts until somebody resumes it, in this process or another; calls that are out run on and are
        kept. Raises Mistake where nothing was created.
        """
        if self._last is None:
            raise Mistake("this container has no trace to freeze", expected="container.create(trace_id) before")
        tenant, trace_id = self._last
        steering.pause(self._db, tenant=tenant, trace_id=trace_id, by=BY_HAND, reason=reason)
        self.dispose()

    def resume(self, trace_id: UUID | str) -> Taken | None:
        """The trace, no longer paused, goes on from its last commit, held by this container. None: nothing of it is ready
        to run here now, for it waits, or has ended, or another worker has been faster.

        Raises UnknownTrace for one that is not of this agent.
        """
        agent = self._runtime.agent.spec.agent
        row = traces.free(self._db, UUID(str(trace_id)), agent=agent)
        if row is None:
            raise UnknownTrace(f"agent {agent} has no such trace", value=str(trace_id))
        steered = steering.resume(self._db, tenant=row["tenant_id"], trace_id=row["id"], by=BY_HAND)
        self._last = (row["tenant_id"], row["id"])
        taken = self._take(row["id"])
        self._runtime.executor.parts.ring([one for one in steered.rings if taken is None or one.kind == "call"])
        return taken

    def dispose(self) -> None:
        """Afterwards this container holds nothing: what it had not run is ready for others."""
        if self._held is not None:
            rescue.give_back(self._db, traces.row_of(self._held.trace), "released")
            self._held = None
        self._noted.close()

    def _take(self, trace_id: UUID) -> Taken | None:
        """The trace, taken under a claim that is noted for as long as it is held."""
        ring = traces.free_ring(self._db, trace_id, agent=self._runtime.agent.spec.agent)
        if ring is None:
            return None
        with ExitStack() as noted:
            taken: Taken | None = noted.enter_context(self._runtime.claimed(ring))
            if taken is not None:
                self.dispose()
                self._held, self._last = taken, (taken.trace.tenant_id, taken.trace.id)
                self._noted = noted.pop_all()
        return taken
