"""People: what they tell a trace, and what they decide for it, checked before it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from agentmesh.errors import AlreadyDecided, BadChoice, BadPayload, NotAsked
from agentmesh.execution import plan as plans
from agentmesh.execution.plan import BehaviorPlan
from agentmesh.infrastructure import jsontext
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.fit import misfit
from agentmesh.records import Json, Ring, check_name
from agentmesh.state import signals
from agentmesh.state.blobs import BlobStore
from agentmesh.state.signals import Sent


class People:
    """The doors by which people, and systems in their place, move waiting traces of one tenant on."""

    def __init__(
        self, db: Database, blobs: BlobStore, *, tenant: str, plan: Callable[[str, str], BehaviorPlan],
        ring: Callable[[Sequence[Ring]], None],
    ) -> None:  # fmt: skip
        self._db, self._blobs, self._tenant, self._plan, self._ring = db, blobs, tenant, plan, ring

    def signal(self, trace_id: UUID, name: str, payload: Json = None, *, by: str, key: str | None = None) -> Sent:
        """The trace has the signal; once under its `key`. Raises BadPayload, UnknownTrace or TraceEnded."""
        check_name(name, "a signal")
        self._require_fit(trace_id, name, payload)
        kept = self._blobs.shrink(self._tenant, payload, what="the payload of a signal")
        sent = signals.send(self._db, tenant=self._tenant, trace_id=trace_id, name=name, payload=kept, by=by, key=key)
        self._ring(sent.rings)
        return sent

    def _require_fit(self, trace_id: UUID, name: str, payload: Json) -> None:
        """Raises BadPayload for what does not fit the step that waits, or any step of the plan that will."""
        found = signals.listening(self._db, tenant=self._tenant, trace_id=trace_id, name=name)
        if found is None:
            return  # the sender is told by what it does next
        schemas = [found["schema"]] if found["waits"] else self._later(found["plan_hash"], name)
        wrong = [schema and misfit(schema, payload) for schema in schemas]
        if wrong and all(wrong):
            raise BadPayload(f"the payload of signal {name} does not fit its schema", value=wrong[0])

    def _later(self, plan_hash: str | None, name: str) -> list[dict[str, Json] | None]:
        """The schemas of the steps that may wait for this signal; None for one that has none."""
        nodes = self._plan(self._tenant, plan_hash).nodes if plan_hash else ()
        return [one.payload_schema for one in nodes if isinstance(one, plans.Signal) and one.signal == name]

    def asked(self, trace_id: UUID | None = None, *, after: UUID | None = None, limit: int = 200) -> list[Row]:
        """What waits for a decision, oldest first, behind step `after`: trace, node, what is asked of whom, until when, and
        its `digest`."""
        rows = signals.asked(self._db, tenant=self._tenant, trace_id=trace_id, after=after, limit=limit)
        return [row | {"digest": _digest(row)} for row in rows]

    def decide(
        self, trace_id: UUID, choice: str | None = None, *, refuse: bool = False, by: str, reason: str | None = None,
        seen: str | None = None,
    ) -> dict[str, str]:  # fmt: skip
        """The approval that the trace waits for is decided; `choice` None: the first option, or the last to `refuse`.

        With the digest that was `seen`, what is asked must still be that. Whoever asked for the trace decides nothing of
        it. Raises UnknownTrace, AlreadyDecided, NotAsked for who may not decide, BadChoice.
        """
        open_ones = self.asked(trace_id)
        if not open_ones:
            raise signals.decided_before(self._db, tenant=self._tenant, trace_id=trace_id)
        step, asked = open_ones[0], open_ones[0]["asked"]
        options: list[str] = asked["options"]
        chosen = choice or options[-1 if refuse else 0]
        if asked["who"] and by not in asked["who"]:
            raise NotAsked(
                f"{step['node']} is not yours to decide", value=by, expected=f"one of {', '.join(asked['who'])}"
            )
        if _person(by) in map(_person, step["asked_by"]):
            raise NotAsked(f"{step['node']} is decided by another than asked for the trace", value=by)
        if seen is not None and seen != step["digest"]:
            raise AlreadyDecided(f"{step['node']} asks for something else than was seen", value=seen,
                                 expected=f"the digest {step['digest']} of what is asked now")  # fmt: skip
        if chosen not in options:
            raise BadChoice(f"{step['node']} has no such option", value=chosen, expected=f"one of {', '.join(options)}")
        if asked["reason_required"] and not (reason or "").strip():
            raise BadChoice(f"{step['node']} is decided with a reason", expected="--reason TEXT")
        ok = chosen != options[-1]
        rings = signals.decide(self._db, tenant=self._tenant, step=step, choice=chosen, ok=ok, by=by, reason=reason)
        self._ring(rings)
        return {"node": step["node"], "choice": chosen, "by": by}


def _person(name: str) -> str:
    """A person, however a door writes them: `user:anna` of a token and of `agentmesh submit` is the account anna."""
    return name.removeprefix("user:")


def _digest(row: Row) -> str:
    """Binds a decision to trace, step and exactly what is asked; who else is asked may change meanwhile."""
    asked = {key: value for key, value in row["asked"].items() if key in {"ask", "options", "reason_required"}}
    return jsontext.digest([str(row["trace_id"]), str(row["step_id"]), row["node"], asked])
