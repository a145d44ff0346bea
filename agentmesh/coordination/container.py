"""AgentRuntime and RuntimeContainer: the surroundings one run needs, from its claim to its release.

A runtime belongs to one agent of one process; a container holds one trace by hand, for tools and tests that drive a
single run themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import structlog

from agentmesh.errors import UnknownPlan, UnknownTrace
from agentmesh.execution.executors import Executor
from agentmesh.execution.runner import Alone, Notes
from agentmesh.execution.views import HostedAgent
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.faults import point
from agentmesh.records import Policy, Ring, new_id
from agentmesh.state import rescue, traces
from agentmesh.state.traces import Held, Holder, Taken

log = structlog.get_logger("agentmesh.runtime")


class AgentRuntime:
    """What an executor of one agent runs in: how its traces are claimed here."""

    def __init__(
        self, agent: HostedAgent, executor: Executor, db: Database, *, note: Notes, holder: Callable[[], Holder],
        alone: Alone | None = None,
    ) -> None:  # fmt: skip
        self.agent, self.executor = agent, executor
        self._db, self.note, self._holder, self._alone = db, note, holder, alone
        self._unread: set[str] = set()  # hashes of plans that other releases wrote
        policy = agent.spec.effective_policy()
        own = policy.model_dump(mode="json", exclude_none=True)
        base = Policy().model_dump(mode="json") | own
        node, kind = agent.plan.opening
        self._start = {
            "plan": agent.plan.hash, "version": agent.spec.version, "policy": json.dumps(base), "node": node,
            "kind": kind, "started": json.dumps({"agent": agent.spec.agent, "version": agent.spec.version, "policy": list(own)}),
        }  # fmt: skip

    def prepare_context(self, ring: Ring, claim_id: UUID | None = None) -> Taken | None:
        """The trace, claimed here with the step that is to run; None when the ring was stale, or its plan is not for us."""
        claim = claim_id or new_id()
        who: dict[str, Any] = {"agent": self.agent.spec.agent, "holder": self._holder(), "unread": self._unread}
        if ring.kind == "trace":
            received = json.dumps({"queue": ring.queue, "envelope": ring.envelope is not None})
            start = self._start | {"claim": claim, "received": received}
            taken = traces.claim(self._db, ring.id, ring.epoch, start=start, **who)
        else:
            taken = traces.take(self._db, ring.id, ring.epoch, claim_id=claim, alone=self._alone is None, **who)
        if taken is None or not self._reads(taken):
            return None
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
            self.executor.parts.ring(rescue.give_back(self._db, _row(held), "released"))
            return False
        return True

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
            claim = new_id()
            row = traces.free(self._db, session.trace.id, agent=self.agent.spec.agent)
            if row is None or row["step_id"] is None:
                break
            ring = Ring(
                "step",
                row["step_id"],
                row["step_epoch"],
                session.trace.queue,
                f"agent.{session.trace.agent}",
                row["id"],
            )
            with self.note("step", ring.id, claim):
                taken = self.prepare_context(ring, claim)
                if taken is None:
                    break
                outcome = self.executor.run(taken)
        return outcome


class RuntimeContainer:
    """One trace, held by hand."""

    def __init__(self, runtime: AgentRuntime, db: Database) -> None:
        self._runtime, self._db = runtime, db
        self._held: Taken | None = None

    def create(self, trace_id: UUID | str) -> Taken:
        """The trace, held by this container. Raises UnknownTrace when it is not free to be taken."""
        spec = self._runtime.agent.spec
        row = traces.free(self._db, UUID(str(trace_id)), agent=spec.agent)
        taken = None
        if row is not None:
            task = f"agent.{spec.agent}"
            ring = Ring("trace", row["id"], row["epoch"], spec.queue, task, row["id"])
            if row["step_id"] is not None:
                ring = Ring("step", row["step_id"], row["step_epoch"], spec.queue, task, row["id"])
            taken = self._runtime.prepare_context(ring)
        if taken is None:
            raise UnknownTrace("this trace is not free to be taken", value=str(trace_id),
                               expected="a trace of this agent that is queued, or ready and held by nobody")  # fmt: skip
        self._held = taken
        return taken

    def run(self, session: Taken) -> str:
        """Run it as far as it goes here, under the claim that `create` made."""
        outcome = self._runtime.run(session)
        self._held = None
        return outcome

    def dispose(self) -> None:
        """Afterwards this container holds nothing: what it had not run is ready for others."""
        if self._held is not None:
            rescue.give_back(self._db, _row(self._held.trace), "released")
            self._held = None


def _row(held: Held) -> Row:
    return {
        "kind": "trace", "id": held.id, "tenant_id": held.tenant_id, "epoch": held.epoch, "worker_id": held.holder.worker_id,
    }  # fmt: skip
