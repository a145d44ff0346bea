"""ToolRunner: one call as a leaf, on a tool worker or on an agent's queue.

Claim, run, record. A transactional tool runs inside the transaction that records its result: our guarded UPDATE comes
last, and losing it rolls everything back. Whatever comes too late is noted as stale and changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar
from uuid import UUID

import psycopg
import sqlalchemy as sa
import structlog

from agentmesh.errors import ToolCommitted
from agentmesh.execution.failures import AWAY, Raised, failure_of, theirs
from agentmesh.execution.invoke import context, invoke
from agentmesh.execution.tools import Tool, ToolContext, ToolRegistry
from agentmesh.infrastructure.database import Database, Row, Tx
from agentmesh.infrastructure.faults import point
from agentmesh.infrastructure.logging import about
from agentmesh.records import AgentCall, Json, Later, Ring, new_id
from agentmesh.state import calls, children, later
from agentmesh.state.blobs import BlobStore
from agentmesh.state.calls import Claimed, Settled, TaskManager
from agentmesh.state.changes import NewTrace
from agentmesh.state.rescue import TIMEOUT
from agentmesh.state.traces import Holder

log = structlog.get_logger("agentmesh.call")

T = TypeVar("T")

IDLE = psycopg.errors.IdleInTransactionSessionTimeout

Alone = Callable[[Ring], object]
"""Works the row of this ring in a process that runs nothing else; None in such a process."""

Notes = Callable[[str, UUID, UUID], Any]
"""note(kind, row id, claim id) before a claim is sent; the context manager it returns forgets it afterwards."""


class Asks(Protocol):
    """How other agents are asked: see `errands.Asking`."""

    def child(self, call: Row, asks: AgentCall, payload: Json) -> NewTrace: ...
    def begin(self, child: NewTrace) -> None: ...
    def again(self, call: Row, rings: Sequence[Ring]) -> None: ...


class ToolRunner:
    """Runs claimed calls of one process."""

    def __init__(  # noqa: PLR0913 - all that a call meets
        self, db: Database, registry: ToolRegistry, blobs: BlobStore, *, note: Notes, holder: Callable[[], Holder],
        alone: Alone | None, answer_at: Callable[[UUID], str], asks: Callable[[], Asks],
    ) -> None:  # fmt: skip
        self._db, self._tasks, self._registry, self._blobs = db, TaskManager(db), registry, blobs
        self._note, self._holder, self._alone, self._answer_at, self._asks = note, holder, alone, answer_at, asks

    def run(self, ring: Ring) -> Settled | None:
        """What recording the call's outcome led to; None when there was nothing to do, or it came too late."""
        attempt = new_id()
        with self._note("call", ring.id, attempt):
            claimed = self._tasks.claim(
                ring,
                holder=self._holder(),
                attempt_id=attempt,
                alone=self._alone is None,
                tools=self._registry.names(),
            )
            if claimed is not None:
                point("call.after_claim")
                return self._work(claimed)
        if self._alone is not None and self._tasks.is_suspect(ring):
            self._alone(ring)
        return None

    def _work(self, claimed: Claimed) -> Settled | None:
        """What became of the call. What was logged on the way is kept with the attempt."""
        row = claimed.row
        where = {"trace_id": row["trace_id"], "step_id": row["step_id"], "call_id": row["id"], "attempt": row["n"]}
        with about(**where, tool=row["tool"]) as kept:
            settled = self._settled(claimed)
        if (said := kept.as_json()) is not None:
            try:
                self._tasks.keep_log(claimed, said)
            except AWAY as exc:
                log.warning("the log of a call is not kept", call_id=str(row["id"]), error=str(exc).splitlines()[0])
        return settled

    def _settled(self, claimed: Claimed) -> Settled | None:
        row = claimed.row
        settled: Settled | None
        try:
            tool = self._registry.get(row["tool"])
            ctx = self._context(claimed)
            if tool.tx:
                settled = self._transact(tool, claimed, ctx)
            else:
                args = self._expanded(claimed)
                value = theirs(lambda: invoke(tool, args, ctx, waits=tool.asks is None))
                if isinstance(value, Later):
                    self._wait(claimed, value)
                    return None
                if tool.asks is not None:
                    self._ask(claimed, tool.asks, value)
                    return None
                point("call.in_commit")
                point("join.last_before_commit")
                settled = self._kept(lambda: self._tasks.record(claimed, "won", result=self._shrunk(claimed, value)))
        except AWAY:
            raise  # our own database, not the tool's: the heart gives the call back
        except Exception as exc:  # noqa: BLE001 - what a tool raises, or is wrong with a call, is its failure
            failure = failure_of(exc, code="E_TOOL")
            settled = self._kept(lambda: self._tasks.record(claimed, "failed", failure=failure))
        point("call.after_commit")
        if settled is not None and settled.joined:
            point("join.after_commit")
        status = "stale" if settled is None else settled.status
        log.info("TOOL_EXEC" if status == "done" else "TOOL_FAIL", status=status)
        return settled

    def _wait(self, claimed: Claimed, said: Later) -> None:
        """Let the call wait for its answer, held by nobody."""
        if self._kept(lambda: later.wait(self._db, claimed, within_s=said.within_s)):
            log.info("the answer comes later")
        else:
            calls.mark_stale(self._db, claimed)

    def _ask(self, claimed: Claimed, asks: AgentCall, payload: Json) -> None:
        """Let the call wait for the child trace that does it, held by nobody. Raises what refuses that trace.

        A call that was retried waits for the child that it has, which is retried itself: what that one did is kept.
        """
        if claimed.row["cancel_owed"]:
            children.drop(self._db, claimed.row)
        again = self._kept(lambda: children.ask_again(self._db, claimed))
        if again is not None:
            self._asks().again(claimed.row, again)
            return
        child = self._asks().child(claimed.row, asks, payload)
        point("ask.before_commit")
        if self._kept(lambda: children.ask(self._db, claimed, child)):
            point("ask.after_commit")
            self._asks().begin(child)
            log.info("EXEC_DELEGATE", to=child.agent, trace=str(child.id))
        else:
            calls.mark_stale(self._db, claimed)

    def _kept(self, write: Callable[[], T]) -> T:
        """`write()`, tried until the database is back: what ran is recorded while it is still ours.

        Giving up would look like a claim that never ran, and start an effect="once" tool twice.
        """
        pause_s = 0.1
        while True:
            try:
                return write()
            except AWAY as exc:
                log.warning("the database is away; the result is kept", error=str(exc).splitlines()[0])
                threading.Event().wait(pause_s)
                pause_s = min(2.0, pause_s * 2)

    def _transact(self, tool: Tool, claimed: Claimed, ctx: ToolContext) -> Settled | None:
        """The tool's SQL and its recorded result in one transaction.

        Where its connection or the answer to COMMIT is lost, the call is released: winning means that nothing was
        applied, and it runs again.
        """
        with self._db.lend() as connection:
            driver = connection.connection.driver_connection
            try:
                return self._within(connection, tool, claimed, ctx)
            except Raised as raised:
                if driver is None or not driver.closed:
                    raise
                lost: BaseException = raised.cause  # the tool met the end of the connection that we lent it
            except (sa.exc.DBAPIError, psycopg.OperationalError, psycopg.InterfaceError, IDLE) as exc:
                lost = exc
            connection.invalidate()
        if _idled(lost):
            return self._tasks.record(claimed, "timeout", failure=TIMEOUT)
        return self._tasks.record(claimed, "released") or self._tasks.known(claimed, "won")

    def _within(self, connection: sa.Connection, tool: Tool, claimed: Claimed, ctx: ToolContext) -> Settled | None:
        driver = connection.connection.driver_connection
        if driver is None:
            raise RuntimeError("the pool gave no connection")
        transaction, tx = connection.begin(), Tx(driver)
        begun = tx.number()
        args, lent = self._expanded(claimed), replace(ctx, tx=connection)
        value = self._shrunk(claimed, theirs(lambda: invoke(tool, args, lent)))
        if not transaction.is_active or tx.number() != begun:
            raise ToolCommitted(f"tool {tool.name} ended the transaction it was given", value=tool.name)
        point("call.in_commit")
        point("join.last_before_commit")
        settled = calls.settle(tx, claimed.row, worker_id=claimed.holder.worker_id, outcome="won", result=value)
        if settled is None:
            transaction.rollback()
            calls.mark_stale(self._db, claimed)
            return None
        transaction.commit()
        return settled

    def _context(self, claimed: Claimed) -> ToolContext:
        row = claimed.row
        expand = self._blobs.expand
        earlier = {label: expand(row["tenant_id"], one) for label, one in (row["earlier"] or {}).items()}
        return context(
            row, payload=expand(row["tenant_id"], row["payload"]), results=earlier, attempt=row["n"],
            holds=lambda: self._tasks.still_mine(claimed), report=lambda said: self._tasks.report(claimed, said),
            answer_at=lambda: self._answer_at(row["id"]),
        )  # fmt: skip

    def _expanded(self, claimed: Claimed) -> dict[str, Json]:
        args: dict[str, Json] = self._blobs.expand(claimed.row["tenant_id"], claimed.row["args"])
        return args

    def _shrunk(self, claimed: Claimed, value: Json) -> Json:
        return self._blobs.shrink(claimed.row["tenant_id"], value, what=f"the result of {claimed.row['tool']}")


def _idled(exc: BaseException | None) -> bool:
    """Whether the server ended the session because nothing was said in its transaction."""
    while exc is not None and not isinstance(exc, IDLE):
        exc = exc.__cause__ or exc.__context__
    return exc is not None
