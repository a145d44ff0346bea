"""Where a gateway listens, and where it refuses to; the verb, and what doctor says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentmesh.console.exposure import check_open
from agentmesh.console.gateway import ACPGateway
from agentmesh.console.serving import Server
from agentmesh.errors import Mistake, Unsafe
from agentmesh.infrastructure.settings import GatewaySection
from tests.console.doors import Door


@pytest.mark.parametrize(
    ("changes", "keys", "why"),
    [
        ({"address": "0.0.0.0:8700"}, 0, "stranger"),
        ({"address": "[::]:8700"}, 0, "stranger"),
        ({"address": "192.0.2.1:8700"}, 3, "in clear"),
        ({"address": "mesh.example:8700", "issuer": "https://login.example"}, 0, "in clear"),
        ({"address": "0.0.0.0:8700", "insecure": True}, 0, "stranger"),
    ],
)
def test_s46_s60_a_gateway_open_to_the_network_is_refused(changes: dict[str, Any], keys: int, why: str) -> None:
    with pytest.raises(Unsafe, match=why) as refused:
        check_open(GatewaySection(**changes), keys=keys)
    assert refused.value.exit_code == 4


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, 0), ({"address": "localhost:0"}, 0), ({"address": "[::1]:0"}, 0), ({"address": "0.0.0.0:0", "insecure": True}, 1),
        ({"address": "0.0.0.0:0", "certificate": Path("tls.pem"), "issuer": "https://login.example"}, 0),
    ],
)  # fmt: skip
def test_a_gateway_that_knows_its_callers_may_listen(changes: dict[str, Any], keys: int) -> None:
    check_open(GatewaySection(**changes), keys=keys)


def test_the_start_token_is_an_operator_of_this_process_alone(door: Door) -> None:
    token = door.mesh.gateway.parts.authenticator.start_token()
    assert door.client(token=token).get("/v1/traces").status_code == 200
    door.mesh.gateway.parts.authenticator.start_token()
    assert door.client(token=token).get("/v1/traces").status_code == 401


def test_a_port_that_is_taken_is_told(door: Door) -> None:
    section = door.mesh.settings.gateway.model_copy(update={"address": door.url.removeprefix("http://")})
    with pytest.raises(Mistake, match="cannot listen"):
        Server(ACPGateway(replace(door.mesh.gateway.parts, section=section)), lambda _: None)
