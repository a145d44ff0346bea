"""Doorbells: ring what is committed, and note what the broker refused so that the rescuer rings it again.

Nothing here decides anything; a ring that is lost, doubled or refused is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import psycopg
import structlog

from agentmesh.communication.broker import Broker
from agentmesh.errors import MeshError
from agentmesh.infrastructure.counts import COUNTS
from agentmesh.infrastructure.database import Database
from agentmesh.records import Ring
from agentmesh.state import rings as rows

log = structlog.get_logger("agentmesh.doorbell")


class Doorbell:
    """Rings rows through a broker; never raises."""

    def __init__(self, broker: Broker, db: Database) -> None:
        self._broker, self._db = broker, db

    def ring(self, rings: Sequence[Ring], *, why: Literal["new", "again"] = "new") -> None:
        """Afterwards every one of `rings` is with the broker, or its row says that it was not rung."""
        if rings:
            COUNTS.add(f"rings.{why}", len(rings))
            self._note(self._broker.ring(rings))

    def ring_again(self, rings: Sequence[Ring]) -> None:
        """`ring` for what was rung before, and seems to have been lost."""
        self.ring(rings, why="again")

    def chord(self, header: Sequence[Ring], body: Ring) -> None:
        """Ring the calls of a step as a chord whose body rings the step; the rows decide when it joins."""
        COUNTS.add("rings.new", len(header))
        self._note(self._broker.dispatch_chord(header, body))

    def _note(self, refused: Sequence[Ring]) -> None:
        if not refused:
            return
        COUNTS.add("rings.refused", len(refused))
        log.warning("rings refused", count=len(refused), queue=refused[0].queue)
        try:
            rows.reset(self._db, refused)
        except (psycopg.Error, MeshError):
            log.warning("refused rings not noted; they are rung again by age", count=len(refused))
