"""A gateway on a socket of its own, in this process: real requests, real rows, doorbells by hand."""

from __future__ import annotations

import threading
from typing import Any

import httpx

from agentmesh.communication.keys import new_api_key
from agentmesh.console.serving import Server
from agentmesh.records import new_id
from agentmesh.testing import Bells
from agentmesh.wiring import Mesh
from tests.conftest import Lab


class Door:
    """One gateway that listens, and clients with keys of their own."""

    def __init__(self, mesh: Mesh, bells: Bells, url: str) -> None:
        self.lab = Lab(url, mesh, bells)
        self.mesh, self.bells = mesh, bells
        self.url = ""
        self._server: Server | None = None
        self._clients: list[httpx.Client] = []

    def start(self) -> None:
        listening = threading.Event()

        def ready(url: str) -> None:
            self.url = url
            listening.set()

        self._server = Server(self.mesh.gateway, ready)
        self._thread = threading.Thread(target=self._server.serve_until_stopped, name="gateway")
        self._thread.start()
        assert listening.wait(10)

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(10)
            assert not self._thread.is_alive()

    def issue(self, *grants: str, owner: str = "shop", tenant: str = "default") -> tuple[str, str]:
        """A new API key: its id and its token."""
        kid, token, digest = new_api_key()
        self.mesh.key_table.register(kid=kid, tenant_id=tenant, owner=owner, public=digest, grants=grants)
        return kid, token

    def client(self, *grants: str, token: str | None = None, **owner: str) -> httpx.Client:
        """A client with an API key of these grants (all, if none is named), or with this token."""
        token = token or self.issue(*(grants or ["*"]), **owner)[1]
        return self.stranger(Authorization=f"Bearer {token}")

    def stranger(self, **headers: str) -> httpx.Client:
        made = httpx.Client(base_url=self.url, headers=headers, timeout=15, trust_env=False, verify=False)
        self._clients.append(made)
        return made

    def count(self, table: str) -> int:
        return int(self.lab.rows(f"SELECT count(*) AS n FROM mesh.{table}")[0]["n"])


def envelope(payload: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """An ACP envelope in three parts, as JSON."""
    made: dict[str, Any] = {
        "meta": {"trace_id": str(new_id()), "timestamp": 1_700_000_000, "from": "shop", "to": "puppet"},
        "context": {"context_id": "c-1"},
        "command": {"intent": "work", "payload": payload or {}},
    }
    for part in made.values():
        part.update(
            {name: changes.pop(name) for name in list(changes) if name in {*part, "permissions", "policy", "locale"}}
        )
    assert not changes
    return made


def intent(payload: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The body of POST /v1/intents."""
    return {"to": "puppet", "from": "shop", "intent": "work", "context_id": "c-1", "payload": payload or {}} | changes


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem an answer tells; it must be this one, whole."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told: dict[str, Any] = answer.json()
    assert told["code"] == code, told
    assert all(told[name] for name in ("type", "title", "status", "detail", "instance", "expected", "next"))
    return told
