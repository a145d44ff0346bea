"""Dead letters: what was parked because no process survived it, or no code could read it; a person decides.

A letter is a row beside the failed trace, with its reason and its evidence. Retrying the trace settles it
(state/retry.py); an edited copy of the intent replaces it; it may be discarded.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from agentmesh.errors import UnknownLetter
from agentmesh.infrastructure.database import Database, Row
from agentmesh.state.audit import said

LETTERS = """
SELECT d.id, d.trace_id, d.step_id, d.call_id, d.code, d.fingerprint, d.evidence, d.at, t.agent, t.intent, t.context_id,
  t.from_id, t.payload, t.permissions, t.error, c.tool, c.args
 FROM mesh.dead_letters d JOIN mesh.traces t ON t.id = d.trace_id AND t.tenant_id = d.tenant_id
  LEFT JOIN mesh.calls c ON c.id = d.call_id AND c.tenant_id = d.tenant_id
 WHERE d.tenant_id = %(tenant)s AND d.settled_at IS NULL
  AND (%(letter)s::uuid IS NULL OR d.id = %(letter)s) AND (%(fingerprint)s::text IS NULL OR d.fingerprint = %(fingerprint)s)
  AND (%(after)s::uuid IS NULL OR d.id > %(after)s)
 ORDER BY d.id LIMIT %(limit)s
"""

GROUPS = """
SELECT fingerprint, code, count(*)::int AS letters, min(at) AS first, max(at) AS last FROM mesh.dead_letters
 WHERE tenant_id = %(tenant)s AND settled_at IS NULL GROUP BY 1, 2 ORDER BY 3 DESC, 1
"""


def letters(
    db: Database, tenant: str, *, fingerprint: str | None = None, after: UUID | None = None, limit: int = 10_000
) -> list[Row]:
    """Open letters with their traces, oldest first, behind `after`; of one cause where a fingerprint is given."""
    at = {"tenant": tenant, "letter": None, "fingerprint": fingerprint, "after": after, "limit": limit}
    return db.once(LETTERS, at)


def letter(db: Database, tenant: str, letter_id: UUID) -> Row:
    """One open letter. Raises UnknownLetter."""
    at = {"tenant": tenant, "letter": letter_id, "fingerprint": None, "after": None, "limit": 1}
    rows = db.once(LETTERS, at)
    if not rows:
        raise UnknownLetter("no open dead letter has this id", value=str(letter_id))
    return rows[0]


def groups(db: Database, tenant: str) -> list[Row]:
    """Open letters by cause: how many, first and last seen."""
    return db.once(GROUPS, {"tenant": tenant})


def settle(
    db: Database, tenant: str, letter_id: UUID, settled_as: Literal["replaced", "discarded"], *, by: str
) -> bool:
    """True when the letter was open and is settled now; False when somebody else was first."""
    rows = db.once(
        "UPDATE mesh.dead_letters SET settled_at = mesh.mesh_now(), settled_as = %(as)s, settled_by = %(by)s"
        " WHERE id = %(letter)s AND tenant_id = %(tenant)s AND settled_at IS NULL"
        " RETURNING id, mesh.audit_note(tenant_id, %(action)s, %(said)s::jsonb || jsonb_build_object('trace_id', trace_id))",
        {
            "letter": letter_id,
            "tenant": tenant,
            "as": settled_as,
            "by": str(by),
            "action": f"LETTER_{settled_as.upper()}",
            "said": said(by, letter=str(letter_id)),
        },
    )
    return bool(rows)
