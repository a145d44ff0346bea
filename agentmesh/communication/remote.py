"""A producer's client over HTTP: intents go to a gateway, and their traces are read from it.

A post is safe to repeat: the trace's id is made here, and is its key where it brings no other. So whatever may pass is
tried again, for a while. Errors are those of the mesh itself. Needs neither Celery nor a database driver.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential_jitter

from agentmesh import errors
from agentmesh.communication.handle import Handle
from agentmesh.errors import GatewayUnreachable, MeshError, Mistake
from agentmesh.infrastructure import jsontext
from agentmesh.records import Intent, Json, new_id

if TYPE_CHECKING:
    from agentmesh.communication.keys import SigningKey

TOKEN = "AGENTMESH_GATEWAY_TOKEN"  # noqa: S105 - a variable's name
MAX_ANSWER_BYTES = 64 * 1024 * 1024
AGAIN = frozenset({429, 502, 503, 504})
MAX_WAIT_S = 30.0
_LONGER = wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.3)


@dataclass(frozen=True, slots=True)
class RemoteTrace(Handle):
    """The handle of an intent that a gateway accepted."""

    id: UUID
    client: RemoteClient

    def _row(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/traces/{self.id}")
        return found

    def _events(self, after: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get(f"/v1/traces/{self.id}/events?after={after}&limit=200")["items"]
        return found

    def _whole(self, result: Json) -> Json:
        return result

    def feedback(self, reward: float, *, step: int | None = None, key: str | None = None, note: str = "") -> int:
        """Bind `reward` to the decision that led to step number `step` (None: to the last one); under one `key`, once. The
        number of its step. Raises what the mesh refuses it with."""
        said = _said(
            reward=reward, step=step, note=note, key=key or str(new_id())
        )  # a post that is repeated counts once
        return int(self.client.post(f"/v1/traces/{self.id}/feedback", said)["step"])


class RemoteClient:
    """Posts to the gateway at `url`, with a token or signed by a registered key.

    `token` None: $AGENTMESH_GATEWAY_TOKEN. With `key`, a file, envelopes are signed for the mesh of name `mesh`; reading
    a trace wants a token all the same. Each try may take `timeout_s`, all of them together `patience_s`.
    """

    def __init__(
        self, url: str, *, token: str | None = None, key: Path | None = None, mesh: str = "mesh", tenant: str = "default",
        timeout_s: float = 10.0, patience_s: float = 30.0,
    ) -> None:  # fmt: skip
        self._url, self._token, self._mesh, self._tenant = url.rstrip("/"), token or os.environ.get(TOKEN), mesh, tenant
        self._key_file, self._timeout_s, self._patience_s = key, timeout_s, patience_s

    def send(self, intent: Intent, *, session: Any = None) -> RemoteTrace:
        """Accepted when this returns. Raises what the mesh refuses it with, or GatewayUnreachable: then it may have
        been accepted, and sending it again under its idempotency key tells."""
        if session is not None:
            raise Mistake("a session does not travel over HTTP", value=self._url,
                          expected="ACPClient() on the mesh's own database, or no session")  # fmt: skip
        trace_id = new_id()
        content, headers = self._signed(intent, trace_id) if self._key_file else self._plain(intent, trace_id)
        if intent.idempotency_key is not None:
            headers["Idempotency-Key"] = intent.idempotency_key
        params = {"priority": str(intent.priority)} | ({"delay": repr(intent.delay_s)} if intent.delay_s else {})
        told = self._ask("POST", f"/agent/{intent.to_id}", content=content, headers=headers, params=params)
        return RemoteTrace(UUID(told["id"]), self)

    def send_many(self, intents: Sequence[Intent], *, session: Any = None) -> list[RemoteTrace]:
        """Raises Mistake for more than one: all or none cannot be promised over HTTP."""
        if len(intents) > 1:
            raise Mistake("a gateway takes one intent at a time", value=f"{len(intents)} intents",
                          expected="dispatch, one by one")  # fmt: skip
        return [self.send(one, session=session) for one in intents]

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, said: Mapping[str, Json]) -> Any:
        content = jsontext.dumps(dict(said), what="the request").encode()
        return self._ask("POST", path, content=content, headers={"Content-Type": "application/json"})

    def close(self) -> None:
        if "_http" in self.__dict__:
            self._http.close()

    # --- one request ------------------------------------------------------------------------------------------------

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self._url, timeout=self._timeout_s, trust_env=False, follow_redirects=False,
            verify=not self._url.startswith("http://"),  # where there is no TLS, its certificates are not read either
        )  # fmt: skip

    @cached_property
    def _key(self) -> SigningKey:
        from agentmesh.communication.keys import load_key  # noqa: PLC0415 - only who signs pays for it

        if self._key_file is None:
            raise Mistake("this client has no key")
        return load_key(self._key_file, tenant=self._tenant)

    def _plain(self, intent: Intent, trace_id: UUID) -> tuple[bytes, dict[str, str]]:
        said = {
            "meta": {"trace_id": str(trace_id), "timestamp": _now_s(), "from": intent.from_id, "to": intent.to_id},
            "context": _said(context_id=intent.context_id, locale=intent.locale, permissions=intent.permissions),
            "command": _said(
                intent=intent.intent, payload=intent.payload,
                policy=intent.policy and intent.policy.model_dump(mode="json", exclude_none=True),
            ),
        }  # fmt: skip
        return jsontext.dumps(said, what="the envelope").encode(), {"Content-Type": "application/json"}

    def _signed(self, intent: Intent, trace_id: UUID) -> tuple[bytes, dict[str, str]]:
        from agentmesh.communication.envelope import Command, Context, Envelope, Meta, audience, sign  # noqa: PLC0415

        envelope = Envelope(
            meta=Meta(trace_id=trace_id, timestamp=_now_s(), from_=intent.from_id, to=intent.to_id),
            context=Context(context_id=intent.context_id, locale=intent.locale, permissions=intent.permissions),
            command=Command(intent=intent.intent, payload=intent.payload, policy=intent.policy),
        )
        token = sign(envelope, self._key, aud=audience(self._mesh, "gateway"), jti=new_id(), now_s=_now_s())
        return token.encode(), {"Content-Type": "application/jose"}

    def _ask(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **request: Any) -> Any:
        """What the gateway answers; tried again while that may help. Raises GatewayUnreachable, or its own problem."""
        given = dict(headers or {})
        if self._token and given.get("Content-Type") != "application/jose":
            given["Authorization"] = f"Bearer {self._token}"
        tries = Retrying(
            retry=retry_if_exception(_may_pass), wait=_wait_s, stop=stop_before_delay(self._patience_s), reraise=True
        )
        try:
            return tries(self._once, method, path, headers=given, **request)
        except _Again as again:
            raise again.problem from None
        except httpx.HTTPError as exc:
            said = str(exc) or type(exc).__name__
            raise GatewayUnreachable(f"the gateway does not answer: {said}", value=self._url) from exc

    def _once(self, method: str, path: str, **request: Any) -> Any:
        with self._http.stream(method, path, **request) as answer:
            text = b"".join(_bounded(answer))
        try:
            said = jsontext.loads(text, what="the answer", max_bytes=MAX_ANSWER_BYTES)
        except errors.BadJson:
            said = None
        if answer.is_success and said is not None:
            return said
        problem = problem_of(said, answer.status_code)
        if answer.status_code in AGAIN:
            raise _Again(problem, _seconds(answer.headers.get("retry-after")))
        raise problem


class _Again(Exception):
    """An answer that says: not now."""

    def __init__(self, problem: MeshError, after_s: float | None) -> None:
        super().__init__(str(problem))
        self.problem, self.after_s = problem, after_s


def _may_pass(exc: BaseException) -> bool:
    return isinstance(exc, _Again | httpx.TransportError)


def _wait_s(state: RetryCallState) -> float:
    """Before the next try: as long as the gateway said, else longer each time."""
    exc = state.outcome.exception() if state.outcome else None
    said = exc.after_s if isinstance(exc, _Again) else None
    return said if said is not None else _LONGER(state)


def problem_of(said: Json, status: int) -> MeshError:
    """The error that a problem tells, as the class it was raised as."""
    if not isinstance(said, dict) or not isinstance(said.get("code"), str):
        return GatewayUnreachable("something else than a gateway answers", value=f"status {status}")
    kind = next((one for one in _classes(MeshError) if one.code == said["code"]), MeshError)
    parts = {name: said.get(name) for name in ("value", "expected", "next")}
    what = str(said.get("detail"))
    return (kind if kind is not errors.EnvelopeRefused else errors.Unauthenticated)(what, **parts)


def _classes(base: type[MeshError]) -> Iterator[type[MeshError]]:
    yield base
    for one in base.__subclasses__():
        yield from _classes(one)


def _bounded(answer: httpx.Response) -> Iterator[bytes]:
    size = 0
    for piece in answer.iter_bytes():
        size += len(piece)
        if size > MAX_ANSWER_BYTES:
            raise httpx.DecodingError("the answer is too large")
        yield piece


def _seconds(text: str | None) -> float | None:
    return min(float(text), MAX_WAIT_S) if text is not None and text.isdigit() else None


def _said(**fields: Any) -> dict[str, Json]:
    return {name: value for name, value in fields.items() if value is not None}


def _now_s() -> int:
    return int(time.time())  # noqa: TID251 - what a sender's clock says; nobody else believes it
