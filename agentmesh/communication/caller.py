"""A caller's SQLAlchemy session: our rows commit with its transaction, and the doorbell rings after that commit.

It rings only when the root session that owns its connection has committed; what a savepoint took back is never rung.
Where that cannot be known (a session that joined somebody else's transaction), the rescuer rings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from agentmesh.errors import Mistake

log = structlog.get_logger("agentmesh.dispatch")


class AfterCommit:
    """What is to be done after the commit of one session's root transaction."""

    KEY = "agentmesh.after_commit"

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting: list[tuple[frozenset[SessionTransaction], Callable[[], None]]] = []
        event.listen(session, "after_commit", self._committed)
        event.listen(session, "after_soft_rollback", self._rolled_back)

    @classmethod
    def of(cls, session: Any) -> AfterCommit:
        """The one of this session. Raises Mistake for anything that is no SQLAlchemy Session."""
        found = session() if hasattr(session, "registry") else session
        if not isinstance(found, Session):
            hint = "await session.run_sync(lambda s: router.dispatch(…, session=s))"
            raise Mistake("dispatch was given no SQLAlchemy Session", value=type(found).__name__,
                          expected=hint if hasattr(found, "run_sync") else "a Session")  # fmt: skip
        known = found.info.get(cls.KEY)
        if known is None:
            known = found.info[cls.KEY] = cls(found)
        made: AfterCommit = known
        return made

    def connection(self) -> sa.Connection:
        """The session's connection, in its transaction; what the session holds is flushed first."""
        self._session.flush()
        return self._session.connection()

    def then(self, action: Callable[[], None]) -> None:
        """Run `action` after the root commit, unless the transaction it was asked in is rolled back before."""
        if isinstance(self._session.get_bind(), sa.Connection):
            return  # somebody else's transaction decides; the rescuer rings when it has
        self._waiting.append((self._chain(), action))

    def _chain(self) -> frozenset[SessionTransaction]:
        """The open transactions from the innermost to the root; kept as they are, since an id would be used again."""
        chain, current = set(), self._session.get_nested_transaction() or self._session.get_transaction()
        while current is not None:
            chain.add(current)
            current = current.parent
        return frozenset(chain)

    def _committed(self, session: Session) -> None:
        if session.get_nested_transaction() is not None:
            return
        waiting, self._waiting = self._waiting, []
        root = session.get_transaction()
        for chain, action in waiting:
            if root not in chain:
                continue  # asked for in a transaction that was closed without an end
            with contextlib.suppress(Exception):  # the caller has committed: nothing of ours may raise into that
                action()

    def _rolled_back(self, _session: Session, previous: SessionTransaction) -> None:
        self._waiting = [one for one in self._waiting if previous not in one[0]]
