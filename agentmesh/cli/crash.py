"""The demo's crash: workers are killed with SIGKILL while they work, and the books are read from the database.

Each of the four workers is killed once and replaced, two of each kind; nothing is assumed about what survived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from agentmesh.cli.children import Children
from agentmesh.cli.output import say, table
from agentmesh.cli.session import plain

if TYPE_CHECKING:
    from agentmesh.cli.demo import Stage
    from agentmesh.infrastructure.database import Row
    from agentmesh.observation.runs import Ledger

PLAN = ((0.1, "agents", "demo-agents-1"), (0.25, "tools", "demo-tools-1"), (0.45, "agents", "demo-agents-2"),
        (0.6, "tools", "demo-tools-2"))  # fmt: skip
"""At which share of finished messages whom."""
CHECKED = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8")


@dataclass(frozen=True, slots=True)
class Books:
    """What a run with kills came to."""

    ledger: Ledger
    twice: int
    broken: dict[str, list[str]]
    killed: list[dict[str, Any]]
    rescued: list[Row]

    @property
    def promise(self) -> str:
        seen = self.ledger
        return f"{seen.done} of {seen.accepted} done, {seen.lost} lost, {self.twice} recorded twice"

    @property
    def code(self) -> int:
        """6 when a promise is broken, 1 when a trace failed, else 0."""
        if self.ledger.lost or self.twice or self.broken:
            return 6
        return int(self.ledger.done != self.ledger.accepted)

    def as_json(self) -> dict[str, Any]:
        return {"promise": self.promise, **self.ledger.row, "lost": self.ledger.lost, "twice": self.twice,
                "broken": self.broken, "killed": self.killed, "rescued": self.rescued}  # fmt: skip


@dataclass(slots=True)
class Crash:
    """Kills by plan; `strike` is asked again and again how far the run is."""

    children: Children
    total: int
    killed: list[dict[str, Any]] = field(default_factory=list)

    def strike(self, stage: Stage, ended: int) -> None:
        """The next of the plan is killed and replaced, once its time has come and it works."""
        from agentmesh.observation import health

        if len(self.killed) == len(PLAN):
            return
        share, kind, name = PLAN[len(self.killed)]
        if ended < share * self.total or name not in health.alive(stage.mesh.db):
            return
        held = health.held_by(stage.mesh.db, stage.mesh.tenant, name)
        if not held and ended < (share + 0.1) * self.total:
            return  # sooner or later it is in the middle of something
        pid = self.children.kill(name)
        again = f"{name}-again"
        self.children.start(kind, again)
        self.killed.append(
            {"worker": name, "kind": kind, "pid": pid, "after": ended, "held": held, "replaced_by": again}
        )
        say(f"kill -9 {pid} ({name}) after {ended} messages, while it held {held}; {again} takes its place")

    def ledger(self, stage: Stage, ids: Sequence[UUID]) -> Books:
        """The books, from the database."""
        import psycopg

        from agentmesh.demo import tables
        from agentmesh.observation import runs
        from agentmesh.state import invariants

        db, tenant = stage.mesh.db, stage.mesh.tenant
        broken = invariants.broken(plain(stage.mesh), slack_s=3 * stage.mesh.settings.lease.lease)
        with psycopg.connect(plain(stage.mesh)) as connection:
            filed = [case["case"] for case in tables.filed(connection, stage.run)]
        seen = runs.ledger(db, tenant, ids)
        return Books(
            seen, seen.twice + len(filed) - len(set(filed)), {name: broken[name] for name in CHECKED if name in broken},
            self.killed, runs.rescued(db, tenant, ids),
        )  # fmt: skip


def print_ledger(books: Books) -> None:
    """What was killed, what was rescued, and the promise."""
    say("")
    table(
        ["killed", "pid", "after", "held", "replaced by"],
        ([one["worker"], one["pid"], one["after"], one["held"], one["replaced_by"]] for one in books.killed),
        empty="the run was over before anybody could be killed; take more: --count",
    )
    table(
        ["rescued", "of", "attempts", "count"],
        ([one["kind"], one["name"], one["outcome"], one["n"]] for one in books.rescued),
        empty="no attempt was running when its worker was killed",
    )
    for number, ids in books.broken.items():
        print(f"FAIL {number}: {', '.join(ids[:5])}")
    row = books.ledger.row
    say(f"{row['children_done']} of {row['children']} reports that were delegated done; {row['calls_won']} results of "
        f"{row['calls_done']} finished calls; I1 to I8 {'hold' if not books.broken else 'are broken'}")  # fmt: skip
    print(books.promise)
