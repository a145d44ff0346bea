"""Stories: whole meshes of worker processes, cleaned up always.

When a test fails, what its workers logged stands in the report.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentmesh import testing
from agentmesh.infrastructure import migrate
from agentmesh.infrastructure.postgres import EmbeddedPostgres
from tests import meshes
from tests.servers import OwnRedis

AGENTS = {
    "analyst": """
        agent: analyst-{tag}
        tools: [orders, contract, rate, ask_model, vote]
        grants: ["data:read", "reports:write"]
        policy: {{callbacks: [judge]}}
        reasoner: {{python: "story_parts:Analyst"}}
    """,
    "archivist": """
        agent: archivist-{tag}
        tools: [file_report]
        grants: ["reports:write"]
        reasoner: {{python: "story_parts:Archivist"}}
    """,
    "runner": """
        agent: runner-{tag}
        tools: [slow, once, stubborn, rate, rude, abort]
        grants: ["data:*"]
        policy: {{on_fail: callback}}
        reasoner: {{python: "story_parts:Runner"}}
    """,
}


class Story(meshes.Story):
    """A mesh with the agents above, whose tools may write to a table of their own."""

    agents = AGENTS

    def prepare(self) -> None:
        """What its tools write to: no unique key, so that a doubled write would show."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE filed (trace_id uuid)")


# --- what a story stands on


@contextmanager
def embedded_server(folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def embedded(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """An embedded server for all stories; each has a database of its own in it."""
    home = Path(tempfile.mkdtemp(prefix="amembedded-"))
    home.chmod(0o755)
    with embedded_server(home) as server:
        yield server
    shutil.rmtree(home, ignore_errors=True)


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


@pytest.fixture
def make_story(request: pytest.FixtureRequest, home: Path) -> Iterator[Callable[..., Story]]:
    """make_story(kind) for embedded, redis or amqp; the story's promises are checked when the test is over."""
    made: list[tuple[Story, Any]] = []

    def make(kind: str, *, broker_url: str | None = None) -> Story:
        if kind == "embedded":
            server = request.getfixturevalue("embedded")
            database, broker = testing.database(plain(server.url())), None
        else:
            name = {"redis": "AGENTMESH_TEST_REDIS_URL", "amqp": "AGENTMESH_TEST_AMQP_URL"}[kind]
            broker = broker_url or testing.need(name)
            postgres, template = request.getfixturevalue("postgres"), request.getfixturevalue("template")
            database = testing.database(postgres, template=template)
        story = Story(kind, home, plain(database.__enter__()), broker)
        made.append((story, database))
        story.prepare()
        return story

    yield make
    for story, database in made:
        _end(request, story)
        try:
            broken = testing.broken(story.database_url)
        finally:
            database.__exit__(None, None, None)
        assert broken == {}


@pytest.fixture
def newcomer(request: pytest.FixtureRequest, home: Path) -> Iterator[Story]:
    """A story on the embedded parts as a newcomer has them: nothing configured but the home."""
    with embedded_server(home / "home") as server:
        migrate.upgrade(server.url())
        story = Story("embedded", home, plain(server.url()), None, named=False)
        story.env["AGENTMESH_HOME"] = str(home / "home")
        story.prepare()
        yield story
        _end(request, story)
        assert testing.broken(story.database_url) == {}


def _end(request: pytest.FixtureRequest, story: Story) -> None:
    story.close()
    if request.session.testsfailed:
        for process in story.processes:
            print(f"--- {process.name} (pid {process.pid})\n{process.text()[-6000:]}")  # noqa: T201 - for the report
    story.clean()


@pytest.fixture
def own_redis(home: Path) -> Iterator[Callable[..., OwnRedis]]:
    made: list[OwnRedis] = []

    def make(password: str | None = None) -> OwnRedis:
        one = OwnRedis(home, password)
        one.start()
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()
