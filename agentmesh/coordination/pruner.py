"""The prune of one tenant: batch after batch, each archived on the disk before its transaction commits.

It may be killed anywhere: what was committed is gone and archived, everything else stands, and the next run goes on. Batches
take only what nobody holds, and no lock outlives its batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from agentmesh.coordination.archive import Archive, Kept, documents
from agentmesh.infrastructure.database import Database, Row, Tx
from agentmesh.infrastructure.faults import point
from agentmesh.records import new_id
from agentmesh.state import leftovers, partitions, pruning

DEADLINE_S = 600.0  # of a round trip: a batch is short, but one trace may have a million events


@dataclass(slots=True)
class Report:
    """What went: traces, rows by table, what stayed and why, files of the archive and their bytes, partitions."""

    before: datetime | None = None
    traces: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    files: int = 0
    size: int = 0
    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to go: traces that ended `age_s` ago, dead letters settled `letters_s` ago; `exact`: also of a week of events
    that is only partly over, whose rows are then deleted one by one."""

    age_s: float
    letters_s: float
    exact: bool = False
    batch: int = 500


class Pruner:
    """Prunes one tenant by the order of `by`, into `archive` (None: into nothing)."""

    def __init__(self, db: Database, *, tenant: str, wish: Wish, archive: Archive | None, by: str) -> None:
        self._db = db.alone(deadline_s=DEADLINE_S)
        self._tenant, self._wish, self._archive, self._by = tenant, wish, archive, by
        self.report = Report()

    def close(self) -> None:
        self._db.close()

    def survey(self) -> Report:
        """What would go; nothing is changed."""
        asked = self._cut()
        for found in pruning.trees(self._db, asked, batch=self._wish.batch):
            go = self._sort(found)
            if go:
                self.report.traces += sum(len(tree.ids) for tree in go)
                self.report.rows.update(pruning.counted(self._db, asked, go))
        return self.report

    def run(self, said: Callable[[Report], None] = lambda _: None) -> Report:
        """Everything that may go is gone; `said` is told after each batch. Raises ArchiveRefused."""
        if self._archive is not None:
            self._archive.ready()
        self.report.made = partitions.make_ahead(self._db)
        asked = self._cut()
        for found in pruning.trees(self._db, asked, batch=self._wish.batch):
            go = self._sort(found)
            if go:
                self._traces(asked, go)
                said(self.report)
        self._leftovers(asked.before)
        self._partitions(asked)
        return self.report

    def _cut(self) -> pruning.Cut:
        asked = pruning.cut(self._db, tenant=self._tenant, age_s=self._wish.age_s, partitions=partitions.listed(self._db),
                            exact=self._wish.exact)  # fmt: skip
        self.report.before = asked.before
        return asked

    def _sort(self, found: Sequence[pruning.Tree]) -> list[pruning.Tree]:
        """Those that go; the others are counted by what keeps them."""
        self.report.kept.update(tree.why for tree in found if tree.why is not None)
        return [tree for tree in found if tree.why is None]

    # --- one batch

    def _traces(self, asked: pruning.Cut, go: Sequence[pruning.Tree]) -> None:
        with self._db.begin() as tx:
            pruning.patient(tx)
            taken = pruning.take(tx, asked, go, rows=self._archive is not None)
            self.report.kept["held"] += sum(len(tree.ids) for tree in go) - len(taken.ids)
            if not taken.ids:
                return
            batch = new_id()
            kept = self._keep("traces", batch, documents(taken.ids, taken.rows)) if self._archive else None
            self._note(tx, "traces", taken.ids, taken.counts, batch, kept)
            point("prune.before_commit")
        point("prune.after_commit")
        self.report.traces += len(taken.ids)
        self.report.rows.update(taken.counts)

    def _some(self, kind: str, table: str, take: Callable[[Tx], list[Row]]) -> int:
        """One batch of rows that hang on no trace; how many went."""
        with self._db.begin() as tx:
            pruning.patient(tx)
            rows = take(tx)
            if not rows:
                return 0
            batch = new_id()
            lines = [
                f'{{"schema": "agentmesh.archived_row/1", "table": "{table}", "row": {row["row"]}}}' for row in rows
            ]
            self._note(tx, kind, [], {table: len(rows)}, batch, self._keep(kind, batch, lines))
            point("prune.before_commit")
        self.report.rows[table] += len(rows)
        return len(rows)

    def _keep(self, kind: str, batch: UUID, lines: Sequence[str]) -> Kept | None:
        if self._archive is None:
            return None
        kept = self._archive.write(kind, batch, lines)
        self.report.files += 1
        self.report.size += kept.size
        return kept

    def _note(
        self, tx: Tx, kind: str, ids: Sequence[UUID], counts: dict[str, int], batch: UUID, kept: Kept | None
    ) -> None:
        about: dict[str, Any] = {"archive": str(kept.path), "digest": kept.digest} if kept else {}
        pruning.note(tx, self._tenant, kind, ids, counts, by=self._by, batch=batch, **about)

    # --- what traces leave behind

    def _leftovers(self, before: datetime) -> None:
        tenant = self._tenant
        for some in leftovers.contexts(self._db, tenant):
            while self._some("memory", "memory", lambda tx, some=some: leftovers.forget(tx, tenant, before, some)):  # type: ignore[misc]
                pass
            self.report.rows["contexts"] += leftovers.empty(self._db, tenant, before, some)
        settled = before + timedelta(seconds=self._wish.age_s - self._wish.letters_s)
        while self._some("letters", "dead_letters", lambda tx: leftovers.letters(tx, tenant, settled)):
            pass
        while self._some("workers", "workers", lambda tx: leftovers.workers(tx, before)):
            pass
        unused = leftovers.unused_blobs(self._db, tenant, before)
        for at in range(0, len(unused), leftovers.BLOBS):
            some = unused[at : at + leftovers.BLOBS]
            self._some("blobs", "blobs", lambda tx, some=some: leftovers.drop_blobs(tx, tenant, before, some))  # type: ignore[misc]

    def _partitions(self, asked: pruning.Cut) -> None:
        """Those that are over and hold no trace are dropped; of the others, what belongs to no trace any more is deleted."""
        for one in partitions.listed(self._db):
            if one.low is None or one.high > partitions.first_id_at(asked.before):
                continue
            if partitions.drop(self._db, one):
                self.report.dropped.append(one.name)
            else:
                pruning.sweep(self._db, one)
