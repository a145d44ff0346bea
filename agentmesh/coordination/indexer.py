"""The indexer: gives memory entries the vectors they are owed, after the commits that wrote them.

Every agent worker has one for each model its agents are searched by; whoever takes a batch first embeds it, and a death on
the way only delays it. An embedder that is away delays all of its entries, one text that it refuses only that one.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

import psycopg
import structlog

from agentmesh.errors import MeshError
from agentmesh.execution.failures import AWAY, failure_of, theirs
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.embedding import Embedder, unit_vectors
from agentmesh.infrastructure.faults import point
from agentmesh.state import vectors
from agentmesh.state.blobs import BlobStore

log = structlog.get_logger("agentmesh.indexer")

BATCH = 64
WITHIN_S = 30.0
LOOK_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
REFUSED_PAUSE_S = 3600.0


class Indexer:
    """Embeds by one model; `make` is asked for its embedder whenever there is something to embed."""

    def __init__(self, db: Database, blobs: BlobStore, model: str, make: Callable[[], Embedder]) -> None:
        self._db, self._blobs, self.model, self._make = db, blobs, model, make
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"indexer-{model}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is begun afterwards."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def look(self) -> int:
        """Embed what is due, at most one batch; how many entries that were."""
        rows = vectors.take(self._db, self.model, batch=BATCH, lease_s=2 * WITHIN_S)
        point("index.after_take")
        gone = [row["memory_id"] for row in rows if not row["newest"]]
        if gone:
            vectors.drop(self._db, self.model, gone)
        self._embed([row for row in rows if row["newest"]])
        return len(rows)

    def catch_up(self) -> int:
        """Embed all that is due; how many entries were looked at."""
        looked = 0
        while rows := self.look():
            looked += rows
        return looked

    def _embed(self, rows: Sequence[Row]) -> None:
        """All of them at once; each alone where that is refused."""
        if not rows:
            return
        try:
            texts = [vectors.text_of(row["key"], self._blobs.expand(row["tenant_id"], row["value"])) for row in rows]
            made = theirs(lambda: unit_vectors(self._make(), texts, within_s=WITHIN_S))
        except AWAY:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever an embedder raises, its entries are embedded later
            self._later(rows, exc)
            return
        point("index.before_fill")
        vectors.fill(self._db, self.model, {row["memory_id"]: one for row, one in zip(rows, made, strict=True)})

    def _later(self, rows: Sequence[Row], exc: Exception) -> None:
        failure = failure_of(exc, code="E_EMBEDDING")
        if failure.permanent and len(rows) > 1:
            for row in rows:
                self._embed([row])
            return
        tries = min(10, *(row["tries"] for row in rows))
        pause = REFUSED_PAUSE_S if failure.permanent else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (tries - 1))
        pause = max(pause * random.uniform(0.8, 1.2), failure.after_s or 0.0)  # noqa: S311 - spreads retries, guards nothing
        vectors.fail(self._db, self.model, [row["memory_id"] for row in rows], failure, after_s=pause)
        log.warning("entries have no vector yet", model=self.model, entries=len(rows), error=failure.message)

    def _loop(self) -> None:
        pause = LOOK_S
        while not self._stop.wait(pause * random.uniform(0.9, 1.1)):  # noqa: S311 - spreads the looks of many workers
            pause = LOOK_S
            try:
                pause = 0.0 if self.look() == BATCH else LOOK_S
            except (psycopg.Error, MeshError) as exc:
                log.warning("nothing is embedded; trying again", model=self.model, error=str(exc).splitlines()[0])
            except Exception:
                log.exception("nothing is embedded; trying again", model=self.model)
