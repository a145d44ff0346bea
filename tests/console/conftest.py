"""A gateway on a socket of its own, in this process, over a database of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import structlog

from agentmesh.behavior.agents import define_agent
from agentmesh.execution.tools import ToolRegistry, register_tool
from agentmesh.infrastructure.logging import configure
from agentmesh.testing import Bells
from agentmesh.wiring import Mesh
from tests.conftest import do_as_told
from tests.console.doors import Door


@pytest.fixture
def make_door(
    make_mesh: Callable[..., tuple[Mesh, Bells]], tools: ToolRegistry, database_url: str
) -> Iterator[Callable[..., Door]]:
    """make_door(*other agents, **flags) -> Door. Tools: work (n + 1, needs data:read), boom (fails)."""
    made: list[Door] = []
    configure(level="error", format="text")

    def make(*others: object, **flags: object) -> Door:
        if not tools.list():
            register_tool("work", registry=tools, needs=["data:read"])(_work)
            register_tool("boom", registry=tools, attempts=1)(_boom)
        puppet = define_agent(
            "puppet", reasoner=do_as_told, tools=["work", "boom"], grants=["data:read"], tenants=["default", "acme"]
        )
        given = {"gateway__address": "127.0.0.1:0", "gateway__failures": "100000/minute"} | flags
        mesh, bells = make_mesh(puppet, *others, **given)
        door = Door(mesh, bells, database_url)
        made.append(door)
        door.start()
        return door

    yield make
    for door in made:
        door.stop()
    structlog.reset_defaults()


def _work(n: int = 0) -> int:
    return n + 1


def _boom() -> int:
    raise ValueError("boom")


@pytest.fixture
def door(make_door: Callable[..., Door]) -> Door:
    return make_door()
