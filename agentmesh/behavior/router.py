"""Where intents enter: what a producer asks is checked here, made a value, and handed on.

The router knows no row and no queue: its client does. Nothing is written before every check here
has passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypedDict, Unpack

from pydantic import ValidationError

from agentmesh.errors import BadName, BadPayload, BadPolicy, MeshError, Mistake, PayloadTooLarge
from agentmesh.infrastructure import jsontext
from agentmesh.records import Intent, Json, PolicyPatch, check_name, check_permissions

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024


class Client(Protocol):
    """What the router needs of ACPClient; `session` is a caller's SQLAlchemy session."""

    def send(self, intent: Intent, *, session: Any = None) -> Any: ...

    def send_many(self, intents: Sequence[Intent], *, session: Any = None) -> list[Any]: ...


class Options(TypedDict, total=False):
    """What `dispatch` may be told beyond the intent itself."""

    permissions: Iterable[str] | None
    idempotency_key: str | None
    policy: PolicyPatch | Mapping[str, Json] | None
    delay: float | None
    priority: int | None
    locale: str | None


class BIRRouter:
    """Dispatches behaviour intents. `trace_writer` is part of the known signature; BIR_DISPATCH is
    written by the transaction that accepts the intent.
    """

    def __init__(self, acp_client: Client, trace_writer: Any = None) -> None:
        self.client = acp_client
        self.trace_writer = trace_writer

    def dispatch(  # noqa: PLR0913 - the public call, with the arguments people know
        self,
        intent: str,
        from_id: str,
        to_id: str,
        context_id: str,
        payload: Mapping[str, Json],
        *,
        permissions: Iterable[str] | None = None,
        session: Any = None,
        idempotency_key: str | None = None,
        policy: PolicyPatch | Mapping[str, Json] | None = None,
        delay: float | None = None,
        priority: int | None = None,
        locale: str | None = None,
    ) -> Any:
        """The handle of the trace that now works on it (`str(trace)` is its id).

        `permissions` None: all the producer may give and the agent accepts. `policy` is a partial
        one, `delay` is in seconds, `priority` 0 to 9 (9 first, None: 5). With `session` nothing
        exists unless the caller commits. Raises what `make_intent` raises, or the client refuses.
        """
        made = make_intent(
            intent,
            from_id,
            to_id,
            context_id,
            payload,
            permissions=permissions,
            idempotency_key=idempotency_key,
            policy=policy,
            delay=delay,
            priority=priority,
            locale=locale,
        )
        return self.client.send(made, session=session)

    def dispatch_many(self, intents: Iterable[Intent | Mapping[str, Any]], *, session: Any = None) -> list[Any]:
        """The handles, in order; all are accepted, or none. Mappings hold dispatch's arguments."""
        made: list[Intent] = []
        for number, one in enumerate(intents):
            try:
                made.append(one if isinstance(one, Intent) else make_intent(**one))
            except MeshError as exc:
                exc.what = f"intent {number}: {exc.what}"
                raise
            except TypeError as exc:
                raise Mistake(f"intent {number}: {exc}", expected="the arguments of dispatch") from None
        return self.client.send_many(made, session=session) if made else []


def make_intent(
    intent: str,
    from_id: str,
    to_id: str,
    context_id: str,
    payload: Mapping[str, Json],
    **options: Unpack[Options],
) -> Intent:
    """The intent as an immutable value, its payload a copy.

    Raises BadName, BadPayload, BadJson, PayloadTooLarge, BadPermission, BadPolicy or Mistake.
    """
    if odd := sorted(set(options) - set(Options.__annotations__)):
        raise Mistake(
            "dispatch has no such argument",
            value=odd[0],
            expected=f"one of {', '.join(Options.__annotations__)}",
        )
    check_name(to_id, "the agent")
    permissions = options.get("permissions")
    fields: dict[str, Any] = {
        "intent": intent,
        "from_id": from_id,
        "to_id": to_id,
        "context_id": context_id,
        "payload": _checked_payload(payload),
        "permissions": None if permissions is None else check_permissions(permissions),
        "policy": _checked_policy(options.get("policy")),
        "idempotency_key": options.get("idempotency_key"),
        "delay_s": options.get("delay") or None,
        "locale": options.get("locale"),
    }
    if options.get("priority") is not None:
        fields["priority"] = options["priority"]
    try:
        return Intent.model_validate(fields)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        refusal = BadName if name in {"intent", "from_id", "context_id"} else Mistake
        raise refusal(f"{name} is not allowed", value=first["input"], expected=first["msg"]) from None


def _checked_payload(payload: object) -> dict[str, Json]:
    if not isinstance(payload, Mapping):
        raise BadPayload("the payload is not an object", value=type(payload).__name__)
    text = jsontext.dumps(dict(payload), what="the payload", max_bytes=1 << 31)
    if len(text.encode()) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge("the payload is too large", value=f"{len(text.encode())} bytes")
    copied: dict[str, Json] = jsontext.loads(text, what="the payload")
    return copied


def _checked_policy(policy: PolicyPatch | Mapping[str, Json] | None) -> PolicyPatch | None:
    if policy is None or isinstance(policy, PolicyPatch):
        return policy
    try:
        return PolicyPatch.model_validate_json(jsontext.dumps(dict(policy), what="the policy"))
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadPolicy(f"policy.{name} is not allowed", value=first["input"], expected=first["msg"]) from None
