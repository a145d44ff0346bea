"""ACPClient, the producer's side: of a mesh whose database it reaches itself, or of a gateway.

A producer that talks to a gateway loads no database driver and no Celery; neither does importing this.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmesh.errors import Mistake

if TYPE_CHECKING:
    from agentmesh.communication.handle import Handle
    from agentmesh.communication.remote import RemoteClient
    from agentmesh.infrastructure.settings import Settings
    from agentmesh.records import Intent
    from agentmesh.wiring import Mesh


class ACPClient:
    """Hands intents over. `where` None or settings: writes to the mesh itself; "https://…": posts to that gateway.

    Connects when it first sends. For a gateway: `token` (None: $AGENTMESH_GATEWAY_TOKEN), or `key`, the file of a
    registered key that signs for the mesh of name `mesh`; one try takes at most `timeout_s`, all together `patience_s`.
    """

    def __init__(
        self, where: Settings | str | None = None, *, token: str | None = None, key: Path | str | None = None,
        mesh: str = "mesh", timeout_s: float = 10.0, patience_s: float = 30.0,
    ) -> None:  # fmt: skip
        self._where = where
        if isinstance(where, str) and not where.startswith(("http://", "https://")):
            raise Mistake("this is no address of a gateway", value=where, expected="http://… or https://…")
        self._options = {"token": token, "key": Path(key) if key else None, "mesh": mesh}
        self._times = {"timeout_s": timeout_s, "patience_s": patience_s}

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh this writes to itself. Raises Mistake for a gateway's client, which has none."""
        from agentmesh.wiring import build  # noqa: PLC0415 - everything, and only for who writes itself

        if isinstance(self._where, str):
            raise Mistake(
                "a gateway's client does not reach the mesh itself", value=self._where, expected="ACPClient()"
            )
        return build(self._where)

    @cached_property
    def _remote(self) -> RemoteClient | None:
        from agentmesh.communication.remote import RemoteClient  # noqa: PLC0415

        if not isinstance(self._where, str):
            return None
        options: dict[str, Any] = self._options | self._times
        return RemoteClient(self._where, **options)

    def send(self, intent: Intent, *, session: Any = None) -> Handle:
        """The handle of its trace. Raises what the mesh refuses it with."""
        return (self._remote or self.mesh.client).send(intent, session=session)

    def send_many(self, intents: Sequence[Intent], *, session: Any = None) -> Sequence[Handle]:
        """All are accepted, or none. Raises Mistake for more than one at a gateway."""
        return (self._remote or self.mesh.client).send_many(intents, session=session)

    def close(self) -> None:
        """Afterwards it holds no connection."""
        for part in (self.__dict__.get("_remote"), self.__dict__.get("mesh")):
            if part is not None:
                part.close()
