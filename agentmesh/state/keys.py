"""Public keys of producers and of the mesh: whose envelopes are believed, for which tenant, with which grants.

Found by exact kid. A key is never deleted, only revoked. Private halves never come here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from agentmesh.infrastructure.database import Database, Row
from agentmesh.state.audit import said

COLUMNS = "kid, tenant_id, owner, public, grants, registered_at, revoked_at"


class KeyTable:
    """The rows, with a memory of `fresh_s` seconds: a revocation is believed everywhere within it."""

    def __init__(self, db: Database, *, fresh_s: float = 20.0) -> None:
        self._db, self._fresh_s = db, fresh_s
        self._seen: dict[str, tuple[float, Row | None]] = {}

    def row(self, kid: str) -> Row | None:
        """The key with exactly this id; None when there is none."""
        at, row = self._seen.get(kid, (float("-inf"), None))
        if time.monotonic() - at > self._fresh_s:
            found = self._db.read(f"SELECT {COLUMNS} FROM mesh.keys WHERE kid = %(kid)s", {"kid": kid})
            row = found[0] if found else None
            if len(self._seen) > 1000:
                self._seen.clear()
            self._seen[kid] = (time.monotonic(), row)
        return row

    def register(
        self, *, kid: str, tenant_id: str, owner: str, public: bytes, grants: Sequence[str], by: str = "mesh"
    ) -> None:  # fmt: skip
        """Afterwards envelopes signed by this key are believed; a kid that is known keeps its tenant, owner and grants."""
        self._db.once(
            "INSERT INTO mesh.keys (kid, tenant_id, owner, public, grants)"
            " VALUES (%(kid)s, %(tenant)s, %(owner)s, %(public)s, %(grants)s) ON CONFLICT (kid) DO NOTHING"
            " RETURNING mesh.audit_note(tenant_id, 'KEY_NEW', %(said)s::jsonb)",
            {
                "kid": kid,
                "tenant": tenant_id,
                "owner": owner,
                "public": public,
                "grants": list(grants),
                "said": said(by, kid=kid, owner=owner, grants=list(grants)),
            },
        )
        self._seen.pop(kid, None)

    def revoke(self, kid: str, *, by: str) -> bool:
        """True when the key was valid until now."""
        with self._db.checkout() as tx:
            won = tx.count(
                "UPDATE mesh.keys SET revoked_at = mesh.mesh_now() WHERE kid = %(kid)s AND revoked_at IS NULL"
                " RETURNING mesh.audit_note(tenant_id, 'KEY_REVOKE', %(said)s::jsonb)",
                {"kid": kid, "said": said(by, kid=kid)},
            )
        self._seen.pop(kid, None)
        return won == 1

    def others(self, kid: str) -> int:
        """How many keys are in force beside this one, of all tenants."""
        rows = self._db.read(
            "SELECT count(*) AS n FROM mesh.keys WHERE revoked_at IS NULL AND kid <> %(kid)s", {"kid": kid}
        )
        return int(rows[0]["n"])

    def all(self, tenant_id: str) -> list[Row]:
        return self._db.once(
            f"SELECT {COLUMNS} FROM mesh.keys WHERE tenant_id = %(tenant)s ORDER BY registered_at",
            {"tenant": tenant_id},
        )
