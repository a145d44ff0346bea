"""Answers that come later: a signed URL for whoever has one, and the way of an answer into its call; and what a person
knows of a `once` call that was lost.

The URL names the call and is signed with the secret `callbacks`, which tool workers and gateways share. It is good for
as long as the call is open. A result that breaks the tool's schema is refused, and the call waits on.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from agentmesh.errors import UnknownCall
from agentmesh.execution.schemas import Declared
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.logging import redact
from agentmesh.infrastructure.secrets import Secrets
from agentmesh.records import Failure, Json, Ring
from agentmesh.state import later
from agentmesh.state.blobs import BlobStore
from agentmesh.state.retry import resolve

SECRET = "callbacks"  # noqa: S105 - its name
PATH = "/v1/callbacks"


class Answers:
    """`announced(tenant)` are the tools that workers announced, by name."""

    def __init__(
        self, db: Database, blobs: BlobStore, *, announced: Callable[[str], Mapping[str, Mapping[str, Any]]],
        ring: Callable[[Sequence[Ring]], None], secrets: Secrets, base_url: str,
    ) -> None:  # fmt: skip
        self._db, self._blobs, self._announced, self._ring = db, blobs, announced, ring
        self._secrets, self._base_url = secrets, base_url.rstrip("/")

    def url(self, call_id: UUID) -> str:
        """Where the answer of this call is posted. Raises SecretMissing."""
        return f"{self._base_url}{PATH}/{call_id.hex}.{self._sign(call_id)}"

    def named(self, token: str) -> UUID:
        """The call that a URL ending in `token` was made for. Raises UnknownCall for one that is not ours."""
        name, _, signature = token.partition(".")
        try:
            call_id = UUID(hex=name)
        except ValueError:
            raise UnknownCall("no call is answered here") from None
        if not hmac.compare_digest(signature.encode(), self._sign(call_id).encode()):
            raise UnknownCall("no call is answered here")
        return call_id

    def tenant_of(self, call_id: UUID) -> str:
        """Whose call it is. Raises UnknownCall."""
        return str(later.find(self._db, call_id)["tenant_id"])

    def finish(self, call_id: UUID, result: Json, *, by: str = "callback", tenant: str | None = None) -> None:
        """The call ends with this result, which `by` brought. Raises UnknownCall, CallEnded, or BadResult: then it waits on."""
        call = later.find(self._db, call_id, tenant=tenant)
        self._ring(later.answer(self._db, call, "won", result=self._kept(call, result), by=by).rings)

    def fail(self, call_id: UUID, message: str, *, by: str = "callback", tenant: str | None = None) -> None:
        """The call has failed, and is not tried again. Raises UnknownCall or CallEnded."""
        call = later.find(self._db, call_id, tenant=tenant)
        failure = Failure("E_TOOL", redact(message), permanent=True, detail={"type": "Later"})
        self._ring(later.answer(self._db, call, "failed", failure=failure, by=by).rings)

    def resolve(
        self, call_id: UUID, to: Literal["done", "failed", "again"], *, by: str, result: Json = None, reason: str = "",
        tenant: str | None = None,
    ) -> None:  # fmt: skip
        """The trace goes on with what a person knows of its lost `once` call: see state/retry.

        Raises UnknownCall, NotResolvable, or BadResult for a result that breaks the tool's schema.
        """
        call = later.find(self._db, call_id, tenant=tenant)
        kept = self._kept(call, result) if to == "done" else None
        self._ring(resolve(self._db, call, to=to, by=by, result=kept, reason=reason))

    def _kept(self, call: Row, result: Json) -> Json:
        """The result as rows keep it. Raises BadResult."""
        known = self._announced(call["tenant_id"]).get(call["tool"])
        schema = known["spec"].get("returns") if known else None
        if schema is not None:
            result = Declared(schema, what=f"the result of {call['tool']}").output(call["tool"], result)
        return self._blobs.shrink(call["tenant_id"], result, what=f"the result of {call['tool']}")

    def _sign(self, call_id: UUID) -> str:
        mac = hmac.digest(self._secrets(SECRET).encode(), b"agentmesh callback " + call_id.bytes, hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")
