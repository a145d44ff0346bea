"""What one look of a rescuer finds: whether it leads, and which of its chores have anything to do.

One statement a look, so that a cluster with nothing to do asks for little. A chore that is named is then looked into by a
selection of its own; what turns up after this look is for the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from agentmesh.infrastructure.counts import transition
from agentmesh.infrastructure.database import Database
from agentmesh.state import admission, children, leases, rescue, rings, signals, steering

CHORES = {
    "silent": leases.SILENT, "orphans": rescue.ORPHANS, "overdue": rescue.OVERDUE, "waking": signals.DUE,
    "owed": children.OWED, "unwanted": children.UNWANTED, "held": children.HELD, "cancels": steering.OWED,
    "lanes": f"SELECT 1 FROM mesh.traces t WHERE {admission.DUE}", "rings": rings.DUE,
    "unsealed": "SELECT 1 FROM mesh.audit WHERE seq IS NULL",
}  # fmt: skip
_NAMED = ",\n ".join(f"CASE WHEN EXISTS ({one}) THEN '{name}' END" for name, one in CHORES.items())

LOOK = f"""
WITH l AS ({leases.LEAD})
SELECT x.leads, CASE WHEN x.leads THEN array_remove(ARRAY[{_NAMED}], NULL) END AS chores
 FROM (SELECT EXISTS (SELECT 1 FROM l) AS leads) x
"""


@dataclass(frozen=True, slots=True)
class Look:
    """Whether this worker leads, and then what there is to do."""

    leads: bool
    chores: frozenset[str]


@transition("look")
def look(
    db: Database, worker_id: UUID, *, lease_s: float, silent_s: float = 2.0, again_s: float = 2.0, cap_s: float = 10.0
) -> Look:
    """What there is to do; this worker leads for `lease_s` from now, unless another one does."""
    row = db.once(LOOK, {
        "id": worker_id, "lease_s": lease_s, "after_s": silent_s, "again_s": again_s, "cap_s": cap_s, "batch": 1,
    })[0]  # fmt: skip
    return Look(row["leads"], frozenset(row["chores"] or ()))
