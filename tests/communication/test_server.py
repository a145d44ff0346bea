"""What a server makes of messages: a ring that is handed on, or a refusal that is counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OKPKey

from agentmesh.communication.envelope import Command, Context, Envelope, Meta, audience, sign
from agentmesh.communication.keys import PublicKey, SigningKey, public_key
from agentmesh.communication.server import ACPServer
from agentmesh.errors import DatabaseUnreachable
from agentmesh.records import Json, Ring

NOW = 1_750_000_000
QUEUE = "agent.report"
TRACE = UUID("0192f0c1-0000-7000-8000-000000000001")
OTHER = UUID("0192f0c1-0000-7000-8000-000000000002")


def a_key(tenant: str = "default") -> SigningKey:
    private = OKPKey.generate_key("Ed25519")
    return SigningKey(private.thumbprint(), tenant, private)


KEY, STRANGER = a_key(), a_key()


class Keys:
    """One registered key; counts who asked."""

    def __init__(self) -> None:
        at = datetime(2025, 4, 25, tzinfo=UTC)
        self.known = {KEY.kid: public_key(KEY, owner="shop", grants=("*",), registered_at=at)}
        self.asked = 0

    def get(self, kid: str) -> PublicKey | None:
        self.asked += 1
        return self.known.get(kid)


class Mesh:
    """A server with what it handed on and what it refused."""

    def __init__(self) -> None:
        self.keys = Keys()
        self.rings: list[Ring] = []
        self.refused: list[tuple[str, dict[str, Json]]] = []
        self.server = ACPServer(
            keys=self.keys,
            mesh="mesh",
            now_s=lambda: NOW,
            refused=lambda reason, said: self.refused.append((reason, said)),
            handle=self.handle,
        )

    def handle(self, ring: Ring) -> str:
        self.rings.append(ring)
        return "handled"

    def receive(self, *said: Any, **more: Any) -> object:
        return self.server.receive(QUEUE, *said, **more)


def a_token(
    trace: UUID = TRACE,
    key: SigningKey = KEY,
    queue: str = QUEUE,
    *,
    mesh: str = "mesh",
    at: int = NOW,
) -> str:
    sent = Envelope(
        meta=Meta(trace_id=trace, timestamp=at, from_="shop", to="report"),
        context=Context(context_id="session-001"),
        command=Command(intent="generate_report", payload={}),
    )
    return sign(sent, key, aud=audience(mesh, queue), jti=trace, now_s=at)


def test_an_envelope_that_is_believed_rings() -> None:
    mesh, token = Mesh(), a_token()
    assert mesh.receive("trace", str(TRACE), 1, token, task="agent.report") == "handled"
    assert mesh.rings == [Ring("trace", TRACE, 1, QUEUE, "agent.report", trace_id=TRACE, envelope=token)]
    assert mesh.refused == []


@pytest.mark.parametrize("kind", ["trace", "step", "call"])
def test_a_ring_without_an_envelope_is_ids_alone(kind: str) -> None:
    mesh = Mesh()
    assert mesh.receive(kind, str(TRACE), 0) == "handled"
    (ring,) = mesh.rings
    assert (ring.kind, ring.id, ring.epoch, ring.envelope) == (kind, TRACE, 0, None)
    assert mesh.keys.asked == 0


FORGED: dict[str, tuple[str, object]] = {
    "s01 one byte": ("signature", a_token()[:-2] + ("AA" if a_token()[-2:] != "AA" else "BA")),
    "s01 an unknown signer": ("key", a_token(key=STRANGER)),
    "s01 a stranger under a known id": ("signature", a_token(key=replace(STRANGER, kid=KEY.kid))),
    "s01 empty": ("form", ""),
    "s01 truncated": ("form", a_token()[:-20]),
    "s01 no text": ("form", 7),
    "s01 a list": ("form", [a_token()]),
    "s01 ten megabytes": ("form", "a" * 10_000_000),
    "s03 another tenant's": ("tenant", a_token(key=replace(KEY, tenant="other"))),
    "s05 for another queue": ("audience", a_token(queue="agent.other")),
    "s05 for another mesh": ("audience", a_token(mesh="stage")),
    "s06 expired": ("expired", a_token(at=NOW - 631)),
    "s06 not yet": ("early", a_token(at=NOW + 31)),
    "s04 of another trace": ("trace", a_token(OTHER)),
}


@pytest.mark.parametrize(("reason", "token"), FORGED.values(), ids=FORGED.keys())
def test_s01_what_is_not_believed_is_refused_and_the_genuine_one_rings(reason: str, token: object) -> None:
    mesh = Mesh()
    assert mesh.receive("trace", str(TRACE), 1, token) is None
    assert mesh.rings == []
    assert mesh.refused == [(reason, {"queue": QUEUE, "row": str(TRACE)})]
    assert mesh.receive("trace", str(TRACE), 1, a_token()) == "handled"


def test_s01_an_envelope_is_verified_before_anything_else_is_read() -> None:
    mesh = Mesh()
    mesh.receive("no kind", "no id", "no epoch", a_token(key=STRANGER))
    assert mesh.refused == [("key", {"queue": QUEUE, "row": None})]


@pytest.mark.parametrize("kind", ["step", "call"])
def test_an_envelope_starts_a_trace_and_nothing_else(kind: str) -> None:
    mesh = Mesh()
    assert mesh.receive(kind, str(TRACE), 1, a_token()) is None
    assert [reason for reason, _ in mesh.refused] == ["trace"]


HOSTILE: dict[str, tuple[object, object, object]] = {
    "no kind": ("", str(TRACE), 1),
    "another kind": ("worker", str(TRACE), 1),
    "a kind in a list": (["trace"], str(TRACE), 1),
    "a kind as an object": ({"trace": 1}, str(TRACE), 1),
    "a null kind": (None, str(TRACE), 1),
    "a megabyte of kind": ("trace" * 200_000, str(TRACE), 1),
    "no id": ("trace", "", 1),
    "a megabyte of id": ("trace", "0" * 1_000_000, 1),
    "an id with braces": ("trace", f"{{{TRACE}}}", 1),
    "an id in upper case": ("trace", str(TRACE).upper(), 1),
    "an id with a newline": ("trace", f"{TRACE}\n", 1),
    "an id with a quote": ("trace", f"{TRACE}' --", 1),
    "a null id": ("trace", None, 1),
    "an id as number": ("trace", TRACE.int, 1),
    "an id as object": ("trace", {"id": str(TRACE)}, 1),
    "an epoch as text": ("trace", str(TRACE), "1"),
    "a true epoch": ("trace", str(TRACE), True),
    "a fraction of an epoch": ("trace", str(TRACE), 1.0),
    "nan": ("trace", str(TRACE), float("nan")),
    "a negative epoch": ("trace", str(TRACE), -1),
    "a huge epoch": ("trace", str(TRACE), 10**400),
    "an epoch that postgres cannot hold": ("trace", str(TRACE), 2**31),
    "a null epoch": ("trace", str(TRACE), None),
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE.keys())
def test_s16_hostile_arguments_are_refused_and_never_raise(said: tuple[object, ...]) -> None:
    mesh = Mesh()
    assert mesh.receive(*said) is None
    assert mesh.rings == []
    ((reason, shown),) = mesh.refused
    assert reason == "arguments"
    assert len(str(shown)) < 200


@given(*[st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()] * 4)
def test_s16_whatever_a_message_says_it_rings_or_is_refused(
    kind: object, row: object, epoch: object, token: object
) -> None:
    mesh = Mesh()
    mesh.receive(kind, row, epoch, token)
    assert len(mesh.rings) + len(mesh.refused) == 1


def test_a_failing_handler_is_not_a_refusal() -> None:
    mesh = Mesh()

    def away(ring: Ring) -> object:
        raise DatabaseUnreachable(f"no answer about {ring.id}")

    server = ACPServer(
        keys=mesh.keys,
        mesh="mesh",
        now_s=lambda: NOW,
        refused=lambda reason, _: pytest.fail(reason),
        handle=away,
    )
    with pytest.raises(DatabaseUnreachable):
        server.receive(QUEUE, "trace", str(TRACE), 1, a_token())
