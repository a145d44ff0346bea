"""Values too big for a row: content-addressed per tenant, put before the row that refers to them.

A reference is {"$blob": sha256}. Putting is an upsert that touches the row, so that what is referred to is never
garbage. Nothing is shared between tenants.
"""

from __future__ import annotations

import hashlib
import os

import psycopg

from agentmesh.errors import BlobMissing, DatabaseUnreachable, PayloadTooLarge
from agentmesh.infrastructure import jsontext
from agentmesh.infrastructure.database import Database
from agentmesh.records import Json

PUT = """
INSERT INTO mesh.blobs AS b (tenant_id, hash, body) VALUES (%(tenant)s, %(hash)s, %(body)s)
ON CONFLICT (tenant_id, hash) DO UPDATE SET touched_at = mesh.mesh_now()
"""

ROOM_BYTES = 256 * 1024  # more than the free space of a table's last pages


class BlobStore:
    """Puts what is over `inline_bytes` aside, and brings it back. Over `max_bytes` nothing is written."""

    def __init__(self, db: Database, *, inline_bytes: int = 64 * 1024, max_bytes: int = 16 * 1024 * 1024) -> None:
        self._db, self._inline, self._max = db, inline_bytes, max_bytes

    def shrink(self, tenant_id: str, value: Json, *, what: str) -> Json:
        """The value itself, or a reference to it, which is then durable. Raises BadJson, PayloadTooLarge.

        A value that looks like a reference is put aside too: expanding gives back what was shrunk, and no more.
        """
        text = jsontext.dumps(value, what=what)
        body = text.encode()
        return value if len(body) <= self._inline and not is_reference(value) else self._put(tenant_id, body, what)

    def put(self, tenant_id: str, value: Json, *, what: str) -> Json:
        """A reference to the value, whatever its size; durable. Raises BadJson, PayloadTooLarge."""
        return self._put(tenant_id, jsontext.dumps(value, what=what).encode(), what)

    def _put(self, tenant_id: str, body: bytes, what: str) -> Json:
        if len(body) > self._max:
            raise PayloadTooLarge(
                f"{what} is too large", value=f"{len(body)} bytes", expected=f"at most {self._max} bytes"
            )
        digest = hashlib.sha256(body).hexdigest()
        self._db.read(PUT, {"tenant": tenant_id, "hash": digest, "body": body})
        return {"$blob": digest}

    def try_room(self, tenant_id: str) -> None:
        """Afterwards the server has shown that it takes what is written; nothing is kept. Raises DatabaseUnreachable."""
        try:
            with self._db.begin() as tx:
                tx.count(PUT, {"tenant": tenant_id, "hash": "room", "body": os.urandom(ROOM_BYTES)})
                raise psycopg.Rollback
        except psycopg.Error as exc:
            raise DatabaseUnreachable(f"the database takes no write: {str(exc).splitlines()[0]}") from exc

    def expand(self, tenant_id: str, value: Json) -> Json:
        """The value a reference stands for; anything else as it is. Raises BlobMissing."""
        if not is_reference(value):
            return value
        rows = self._db.once(
            "SELECT body FROM mesh.blobs WHERE tenant_id = %(tenant)s AND hash = %(hash)s",
            {"tenant": tenant_id, "hash": value["$blob"]},
        )
        if not rows:
            raise BlobMissing("a value that was put aside is not there", value=value["$blob"])
        return jsontext.loads(bytes(rows[0]["body"]), what="a blob", max_bytes=self._max)


def is_reference(value: Json) -> bool:
    return isinstance(value, dict) and value.keys() == {"$blob"} and isinstance(value["$blob"], str)
