"""What every test may ask for: a server, a fresh database that keeps its promises, a mesh whose doorbells ring by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from agentmesh import testing
from agentmesh.execution.tools import ToolRegistry
from agentmesh.testing import Bells
from agentmesh.wiring import Mesh


# In CI the same examples every time: a new counterexample is found at the desk, not in somebody else's change.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")


@pytest.fixture(scope="session")
def postgres() -> str:
    """A PostgreSQL server where databases may be made."""
    return testing.need("AGENTMESH_TEST_POSTGRES_URL")


@pytest.fixture(scope="session")
def template(postgres: str) -> Iterator[str]:
    with testing.database(postgres) as url:
        yield url.rpartition("/")[2]


@pytest.fixture
def database_url(postgres: str, template: str) -> Iterator[str]:
    """A migrated database of the test's own; afterwards I1–I12 must hold in it."""
    with testing.database(postgres, template=template) as url:
        yield url
        assert testing.broken(url) == {}


@pytest.fixture
def tools() -> ToolRegistry:
    return ToolRegistry()


@pytest.fixture
def make_mesh(database_url: str, tools: ToolRegistry, tmp_path: Path) -> Iterator[Callable[..., tuple[Mesh, Bells]]]:
    """make_mesh(*agents, **flags) -> (mesh, bells): these agents and the `tools` fixture, hosted in this process."""
    made: list[Mesh] = []

    def make(*agents: Any, **flags: object) -> tuple[Mesh, Bells]:
        known = {one.agent: one for one in agents}
        dotted = {name.replace("__", "."): value for name, value in flags.items()}
        mesh, bells = testing.hand_mesh(database_url, root=tmp_path, flags=dotted, tools=tools, agents=known)
        made.append(mesh)
        return mesh, bells

    yield make
    for mesh in made:
        mesh.close()
