"""AgentController.run_once: one doorbell, from the claim to the release. It decides nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from agentmesh.coordination.container import AgentRuntime
from agentmesh.errors import UnknownAgent
from agentmesh.execution.runner import ToolRunner
from agentmesh.infrastructure.faults import point
from agentmesh.records import Ring, new_id

log = structlog.get_logger("agentmesh.controller")


def _unseen(_: Ring) -> None: ...


class AgentController:
    """Runs what the doorbells of this process name."""

    def __init__(
        self, runtime: Callable[[str], AgentRuntime], runner: ToolRunner, *, stale: Callable[[Ring], None] = _unseen
    ) -> None:  # fmt: skip
        """`stale` is told of every ring of a trace that was no claim."""
        self._runtime, self._runner, self._stale = runtime, runner, stale

    def run_once(self, ring: Ring) -> Sequence[Ring]:
        """Afterwards the row was worked as far as it goes, or was not ours to work; the rings that are owed."""
        if ring.kind == "call":
            settled = self._runner.run(ring)
            return settled.rings if settled is not None else ()
        try:
            runtime = self._runtime(ring.task.removeprefix("agent."))
        except UnknownAgent:
            log.warning("not hosted here", task=ring.task, id=str(ring.id))  # its row waits for a worker that has it
            return ()
        claim = new_id()
        with runtime.note(ring.kind, ring.id, claim):
            session = runtime.prepare_context(ring, claim, at_once=True)
            if session is not None:
                point("receive.after_claim")
                outcome = runtime.run(session)
                log.debug("run_once", trace_id=str(session.trace.id), agent=session.trace.agent, outcome=outcome)
                return ()
        self._stale(ring)
        runtime.hand_over(ring)
        return ()
