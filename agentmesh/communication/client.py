"""How an intent is handed over: accepted as rows, signed, and rung after the commit.

DirectClient writes to the mesh's own database, in a transaction of its own or inside a caller's SQLAlchemy session; a
Trace is the handle a producer gets. Nothing is published before the commit that made the row.
"""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from agentmesh.behavior import limits
from agentmesh.communication.envelope import (
    INLINE_PAYLOAD_BYTES,
    Command,
    Context,
    Envelope,
    Meta,
    audience,
    sign,
)  # fmt: skip
from agentmesh.communication.handle import Handle
from agentmesh.communication.keys import SigningKey
from agentmesh.errors import (
    Backlogged,
    BadPayload,
    DatabaseNotMigrated,
    DelegationTooDeep,
    StillWorking,
    UnknownAgent,
    UnknownIntent,
)
from agentmesh.infrastructure import jsontext
from agentmesh.infrastructure.database import Database, Row, Tx
from agentmesh.infrastructure.faults import point
from agentmesh.records import Intent, Json, Ring, Verdict, expand_grants, new_id
from agentmesh.state import admission, dispatch, events, rewards, traces
from agentmesh.state.admission import Lane
from agentmesh.state.blobs import BlobStore, is_reference
from agentmesh.state.changes import NewTrace, Parent
from agentmesh.state.rewards import Rewarded
from agentmesh.state.traces import Held

AGENTS_FRESH_S = 5.0
UNDEFINED_TABLE = "42P01"


@dataclass(frozen=True, slots=True)
class Trace(Handle):
    """The handle of a dispatched intent, read from the mesh's database."""

    id: UUID
    tenant_id: str
    db: Database
    blobs: BlobStore

    def feedback(self, reward: float, *, step: int | None = None, key: str | None = None, **about: Json) -> Rewarded:
        """Bind `reward` to the decision that led to step number `step` (None: to the last one); under one `key`, once.

        Raises Mistake or NoDecision.
        """
        return rewards.reward(
            self.db, reward, tenant_id=self.tenant_id, trace_id=self.id, step=step, about=about, key=key
        )

    def _whole(self, result: Json) -> Json:
        return self.blobs.expand(self.tenant_id, result)

    def _row(self) -> Row:
        row = traces.fate(self.db, self.tenant_id, self.id)
        if row is None:
            raise StillWorking("the dispatch of this trace has not been committed", value=str(self.id))
        return row

    def _events(self, after: int) -> list[Row]:
        return events.after(self.db, self.tenant_id, self.id, after)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a sender signed, and the key it is believed by."""

    kid: str
    jws: str


class DirectClient:
    """Accepts intents into the mesh's own database."""

    def __init__(  # noqa: PLR0913 - what wiring hands over
        self, db: Database, *, key: SigningKey, grants: Sequence[str], mesh: str, ring: Callable[[Sequence[Ring]], None],
        admit: Callable[[Sequence[Lane]], None], blobs: BlobStore, now_s: Callable[[], int], backlog: int = 100_000,
    ) -> None:  # fmt: skip
        self._db, self._key, self._grants, self._mesh = db, key, tuple(grants), mesh
        self._ring, self._admit, self._blobs, self._now_s = ring, admit, blobs, now_s
        self._backlog = backlog
        self._agents: dict[str, tuple[float, dict[str, Row]]] = {}
        self._since: Counter[str] = Counter()  # what was accepted here since the agents, and who waits, were read

    def send(self, intent: Intent, *, session: Any = None) -> Trace:
        """Accept one intent; durable when this returns, unless `session` is given: then with its commit."""
        return self.send_many([intent], session=session)[0]

    def send_many(self, intents: Sequence[Intent], *, session: Any = None) -> list[Trace]:
        """Accept all of them or none. Raises UnknownAgent, UnknownIntent, BadPayload, KeyConflict and what the
        database raises; then nothing was written."""
        made = [self._accepted(one) for one in intents]
        point("dispatch.before_commit")
        if session is not None:
            ids = self._within(session, made)
        else:
            ids = dispatch.accept(self._db, made)
            point("dispatch.after_commit")
            self._begin(made, ids)
            point("dispatch.after_publish")
        return [Trace(one, self._key.tenant, self._db, self._blobs) for one in ids]

    def admit(
        self,
        intent: Intent,
        *,
        grants: Sequence[str],
        trace_id: UUID | None = None,
        evidence: Evidence | None = None,
        by: str | None = None,
    ) -> tuple[Trace, bool]:
        """Accept one intent that came through a gateway; its trace, and whether this made it.

        `grants` are those of who sent it, `by` whom the audit names. A `trace_id` of the sender's is its key where it
        brought no other: the same intent again is the same trace. With `evidence` the sender's signature is kept in
        place of ours, and the row is rung by its id alone. Raises what `send` raises, and TraceTaken.
        """
        made = replace(self._accepted(intent, grants=grants, trace_id=trace_id), by=by)
        if trace_id is not None and intent.idempotency_key is None:
            made = replace(made, idem_key=f"envelope {trace_id}", digest=_digest(intent))  # no key holds a space
        if evidence is not None:
            made = replace(made, kid=evidence.kid, jws=evidence.jws)
        point("dispatch.before_commit")
        known, new = dispatch.accept_first(self._db, made)
        point("dispatch.after_commit")
        if new:
            self._begin([made], [known], envelope=evidence is None)
            point("dispatch.after_publish")
        return Trace(known, self._key.tenant, self._db, self._blobs), new

    def send_if(self, intent: Intent, won: Callable[[Tx], bool]) -> Trace | None:
        """Accept one intent in the transaction in which `won` is true; None where it is false: then nothing was written.

        Raises what `send` raises.
        """
        made = self._accepted(intent)
        with self._db.begin() as tx:
            if not won(tx):
                return None
            dispatch.insert(tx, [made])
        self._begin([made], [made.id])
        return Trace(made.id, made.tenant_id, self._db, self._blobs)

    def check(self, intent: Intent, *, grants: Sequence[str] | None = None) -> tuple[str, tuple[str, ...]]:
        """The queue this intent would go to and the permissions it would get, of `grants` or ours; nothing is written.

        Raises what `send` refuses it with."""
        agent, granted = self._admitted(intent, self._key.tenant, self._grants if grants is None else grants)
        return agent["queue"], granted

    def child(self, held: Held, verdict: Verdict, *, depth_limit: int = 16) -> NewTrace:
        """The trace that a verdict hands on to."""
        return self.send_child(
            held, to=verdict.to, intent=verdict.intent, payload=verdict.payload or {}, depth_limit=depth_limit
        )

    def send_child(  # noqa: PLR0913 - all that makes a delegation
        self, held: Held | Parent, *, to: str | None, intent: str | None, payload: Json, permissions: Sequence[str] | None = None,
        plan_hash: str | None = None, depth_limit: int = 16, waited: bool = False,
    ) -> NewTrace:  # fmt: skip
        """The trace a delegation makes: in the same context, with no more permissions than its parent has.

        One that is `waited` for needs no place of its own where its parent is in one.

        Raises DelegationTooDeep, UnknownAgent, UnknownIntent, BadPayload.
        """
        if held.depth + 1 > depth_limit:
            way = [*dispatch.hops(self._db, held.tenant_id, held.id), to]
            raise DelegationTooDeep(f"a delegation goes too deep: {' → '.join(map(str, way[-20:]))}", value=held.depth + 1,
                                    expected=f"at most {depth_limit}")  # fmt: skip
        if not isinstance(payload, dict):
            raise BadPayload("what a child trace is given is not an object", value=payload)
        wanted = (
            held.permissions if permissions is None else tuple(one for one in held.permissions if one in permissions)
        )
        made = Intent.model_validate({
            "intent": intent, "from_id": held.agent, "to_id": to, "context_id": held.context_id,
            "payload": payload, "permissions": wanted, "priority": held.priority,
        })  # fmt: skip
        accepted = self._accepted(made, tenant=held.tenant_id, grants=held.permissions)
        if waited and accepted.lane is not None and admission.in_a_place(
            self._db, tenant=held.tenant_id, trace_id=held.id
        ):  # fmt: skip
            accepted = replace(accepted, lane=None)
        return replace(accepted, plan_hash=plan_hash)

    def send_along(self, intent: Intent, *, plan_hash: str) -> Trace:
        """Accept an intent whose trace is to follow this plan; durable when this returns."""
        made = replace(self._accepted(intent), plan_hash=plan_hash)
        ids = dispatch.accept(self._db, [made])
        self._begin([made], ids)
        return Trace(ids[0], self._key.tenant, self._db, self._blobs)

    def copy(self, of: Row, *, payload: Json, context_id: str) -> NewTrace:
        """A trace that asks the same again, with this payload and in this context, and waits for no place.

        Raises what `send` raises."""
        made = Intent.model_validate({
            "intent": of["intent"], "from_id": of["from_id"], "to_id": of["agent"], "context_id": context_id,
            "payload": payload, "permissions": tuple(of["permissions"]), "priority": of["priority"],
        })  # fmt: skip
        return replace(self._accepted(made, grants=of["permissions"]), lane=None)

    # --- one intent -----------------------------------------------------------------------------------------------

    def _accepted(
        self, intent: Intent, *, tenant: str | None = None, grants: Sequence[str] | None = None,
        trace_id: UUID | None = None,
    ) -> NewTrace:  # fmt: skip
        """The rows of an intent: checked against its agent, its permissions expanded, its envelope signed."""
        tenant = tenant or self._key.tenant
        agent, granted = self._admitted(intent, tenant, self._grants if grants is None else grants)
        payload = intent.payload
        if len(jsontext.dumps(payload, what="the payload").encode()) > INLINE_PAYLOAD_BYTES:
            payload = self._blobs.put(tenant, payload, what="the payload")
        trace_id, jti = trace_id or new_id(), new_id()
        envelope = Envelope(
            meta=Meta(trace_id=trace_id, timestamp=self._now_s(), from_=intent.from_id, to=intent.to_id),
            context=Context(context_id=intent.context_id, locale=intent.locale, permissions=granted),
            command=Command(intent=intent.intent, payload=payload, policy=intent.policy),
        )
        jws = sign(envelope, self._key, aud=audience(self._mesh, agent["queue"]), jti=jti, now_s=self._now_s())
        return NewTrace(
            id=trace_id, envelope_id=jti, tenant_id=tenant, context_id=intent.context_id, agent=intent.to_id,
            intent=intent.intent, from_id=intent.from_id, queue=agent["queue"], permissions=granted, payload=payload,
            kid=self._key.kid, jws=jws, priority=intent.priority, locale=intent.locale, delay_s=intent.delay_s,
            policy=intent.policy.model_dump(mode="json", exclude_none=True) if intent.policy else {},
            idem_key=intent.idempotency_key, digest=_digest(intent) if intent.idempotency_key else None,
            lane=_lane(agent["limits"], intent, tenant),
        )  # fmt: skip

    def _admitted(self, intent: Intent, tenant: str, grants: Sequence[str]) -> tuple[Row, tuple[str, ...]]:
        """The agent's row, and what the trace may do."""
        agent = self._agent(intent, tenant)
        granted = expand_grants(grants, agent["accepts"])
        if intent.permissions is not None:
            granted = tuple(one for one in granted if one in intent.permissions)
        if is_reference(intent.payload):
            raise BadPayload("a payload may not look like a reference of ours", value="$blob")
        return agent, granted

    def _agent(self, intent: Intent, tenant: str) -> Row:
        at, known = self._agents.get(tenant, (float("-inf"), {}))
        if intent.to_id not in known or time.monotonic() - at > AGENTS_FRESH_S:
            known = self._read_agents(tenant)
        agent = known.get(intent.to_id)
        if agent is None:
            near = difflib.get_close_matches(intent.to_id, known, n=1)
            hint = f" · did you mean {near[0]}?" if near else ""
            raise UnknownAgent("no worker has announced this agent", value=intent.to_id,
                               expected=f"one of {', '.join(sorted(known)) or 'none yet'}{hint}")  # fmt: skip
        if agent["intents"] is not None and intent.intent not in agent["intents"]:
            raise UnknownIntent(f"agent {intent.to_id} does not know this intent", value=intent.intent,
                                expected=f"one of {', '.join(agent['intents'])}")  # fmt: skip
        self._require_room(agent, tenant)
        return agent

    def _read_agents(self, tenant: str) -> dict[str, Row]:
        known = dispatch.agents(self._db, tenant, most=self._backlog)
        self._agents[tenant] = (time.monotonic(), known)
        self._since[tenant] = 0
        return known

    def _require_room(self, agent: Row, tenant: str) -> None:
        """Raises Backlogged. What was accepted here may have begun since it was counted: then it is counted anew."""
        waiting = agent["waiting"] + self._since[tenant]
        if waiting >= self._backlog and self._since[tenant]:
            waiting = next(iter(self._read_agents(tenant).values()))["waiting"]
        if waiting >= self._backlog:
            raise Backlogged("too many traces of this tenant wait to begin", value=waiting,
                             expected=f"at most {self._backlog} (limits.backlog)", after_s=AGENTS_FRESH_S)  # fmt: skip
        self._since[tenant] += 1

    # --- inside a caller's transaction ------------------------------------------------------------------------------

    def _within(self, session: Any, made: list[NewTrace]) -> list[UUID]:
        from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

        from agentmesh.communication.caller import AfterCommit  # noqa: PLC0415 - SQLAlchemy's ORM, only when used

        after = AfterCommit.of(session)
        connection = after.connection()
        try:
            ids = dispatch.accept_within(connection, made)
        except DBAPIError as exc:
            if connection.dialect.name == "postgresql" and getattr(exc.orig, "sqlstate", None) != UNDEFINED_TABLE:
                raise
            raise DatabaseNotMigrated(
                "the session is on a database without a mesh", value=connection.engine.url.render_as_string(),
                expected="a session on the mesh's own database, as 'agentmesh doctor' names it", next="agentmesh doctor",
            ) from exc  # fmt: skip
        after.then(lambda: self._begin(made, ids))
        return ids

    def _begin(self, made: Sequence[NewTrace], ids: Sequence[UUID], *, envelope: bool = True) -> None:
        """After the commit: ring what is queued, and see whether what is held has a place already."""
        now = [one for one, known in zip(made, ids, strict=True) if one.id == known and one.delay_s is None]
        self._ring([
            Ring("trace", one.id, 1, one.queue, f"agent.{one.agent}", one.id, one.priority, one.jws if envelope else None)
            for one in now if one.lane is None
        ])  # fmt: skip
        self._admit([Lane(one.tenant_id, one.agent, one.lane) for one in now if one.lane is not None])


def _lane(given: dict[str, Json] | None, intent: Intent, tenant: str) -> str | None:
    """Where the agent is limited, whose turn the intent waits for. Raises BadPayload."""
    if given is None:
        return None
    return limits.lane(given, {
        "intent": intent.intent, "payload": intent.payload, "from_": intent.from_id, "context_id": intent.context_id,
        "agent": intent.to_id, "tenant": tenant,
    })  # fmt: skip


def _digest(intent: Intent) -> str:
    """What a repeated dispatch under one key must agree on."""
    said = intent.model_dump(mode="json", exclude={"idempotency_key", "delay_s", "priority"})
    return jsontext.digest(said)
