"""Where an agent's messages come in: believed or refused, and then only "look at this row".

An envelope that a message carries is verified before anything else in it is read. Whatever a
message says, it makes no row and moves none: what it names is handed on as a Ring, and wins or
loses there. Refusing is counted, never raised: a hostile message is not a failing task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal
from uuid import UUID

from agentmesh.communication.envelope import audience, parse_id, verify
from agentmesh.communication.keys import PublicKeys
from agentmesh.errors import EnvelopeRefused
from agentmesh.infrastructure.faults import point
from agentmesh.records import Json, Ring

MAX_EPOCH = 2**31 - 1  # PostgreSQL's integer

Refused = Callable[[str, dict[str, Json]], None]
"""Told why a message was refused (for a counter), and what may be said of it (for the audit)."""


class ACPServer:
    """Receives what stands on the queues of one mesh."""

    def __init__(
        self,
        *,
        keys: PublicKeys,
        mesh: str,
        now_s: Callable[[], int],
        refused: Refused,
        handle: Callable[[Ring], Sequence[Ring]],
    ) -> None:
        self._keys = keys
        self._mesh = mesh
        self._now_s = now_s
        self._refused = refused
        self._handle = handle

    def receive(
        self,
        queue: str,
        kind: object,
        row_id: object,
        epoch: object,
        envelope: object = None,
        *,
        task: str = "",
    ) -> Sequence[Ring] | None:
        """What `handle` made of the ring; None when the message was refused and nothing was done.

        `queue` and `task` are what this worker listens to; all else is as the message says, of any
        type. Raises only what `handle` and the key table raise (a database that is away).
        """
        point("receive.before_verify")
        try:
            ring = self._believed(queue, task, (kind, row_id, epoch), envelope)
        except EnvelopeRefused as refused:
            row = parse_id(row_id)
            said = {"queue": queue, "row": None if row is None else str(row)}
            self._refused(refused.reason, said)
            return None
        return self._handle(ring)

    def _believed(self, queue: str, task: str, said: tuple[object, object, object], token: object) -> Ring:
        believed = None
        if token is not None:
            believed = verify(
                token,
                keys=self._keys.get,
                aud=audience(self._mesh, queue),
                now_s=self._now_s(),
            )
        kind, row, epoch = _arguments(*said)
        if believed is not None and (kind, row) != ("trace", believed.envelope.meta.trace_id):
            raise EnvelopeRefused("trace")
        return Ring(
            kind=kind,
            id=row,
            epoch=epoch,
            queue=queue,
            task=task,
            trace_id=row if kind == "trace" else UUID(int=0),  # the row says which
            envelope=token if isinstance(token, str) else None,
        )


def _arguments(kind: object, row_id: object, epoch: object) -> tuple[Literal["trace", "step", "call"], UUID, int]:
    """The three, well formed. Raises EnvelopeRefused: whoever sent others is not one of us."""
    row = parse_id(row_id)
    if row is None or isinstance(epoch, bool) or not isinstance(epoch, int):
        raise EnvelopeRefused("arguments")
    if not isinstance(kind, str) or not 0 <= epoch <= MAX_EPOCH:
        raise EnvelopeRefused("arguments")
    match kind:
        case "trace" | "step" | "call":
            return kind, row, epoch
        case _:
            raise EnvelopeRefused("arguments")
