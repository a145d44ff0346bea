"""Statements the mesh signs for later: compact JWS of one kind each, believed for the keys a reader names, and for ever."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError

from agentmesh.communication.envelope import ALGORITHM
from agentmesh.communication.keys import SigningKey, verifier_of
from agentmesh.errors import BadJson
from agentmesh.infrastructure import jsontext

_registry = jws.JWSRegistry(algorithms=[ALGORITHM])


def sign_statement(said: Mapping[str, Any], key: SigningKey, *, kind: str) -> str:
    """The statement in one line."""
    header = {"alg": ALGORITHM, "kid": key.kid, "typ": kind}
    return jws.serialize_compact(
        header, jsontext.dumps(dict(said), what="the statement"), key.private, registry=_registry
    )


def read_statement(line: str, publics: Iterable[bytes], *, kind: str) -> dict[str, Any] | None:
    """What it says; None unless it is of this kind and one of these keys (32 bytes each) has signed it."""
    for public in publics:
        try:
            opened = jws.deserialize_compact(line, verifier_of(public), registry=_registry)
            said = jsontext.loads(opened.payload, what="the statement")
        except (JoseError, BadJson, ValueError, TypeError):
            continue
        if opened.headers().get("typ") == kind and isinstance(said, dict):
            return said
    return None
