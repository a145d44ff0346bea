"""The command line run in this process: what a verb printed, said and exited with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from agentmesh.cli.main import main


@dataclass(frozen=True)
class Ran:
    """How a verb ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problem(self) -> Any:
        return json.loads(self.err.splitlines()[-1])


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """cli("trace", "list", AGENTMESH_…="…") in an empty directory, with no settings but those given."""
    monkeypatch.chdir(tmp_path)
    for name in [one for one in os.environ if one.startswith("AGENTMESH_") and not one.startswith("AGENTMESH_TEST_")]:
        monkeypatch.delenv(name)

    def run(*args: object, **environ: str) -> Ran:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main([str(one) for one in args])
            said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    yield run
    structlog.reset_defaults()


@pytest.fixture
def mesh_cli(cli: Callable[..., Ran], database_url: str) -> Callable[..., Ran]:
    """`cli` on the test's own database."""

    def run(*args: object, **environ: str) -> Ran:
        return cli(*args, **{"AGENTMESH_DATABASE_URL": database_url, **environ})

    return run


@pytest.fixture
def bare_database(postgres: str) -> Iterator[str]:
    """A database that nobody has migrated."""
    name = f"amtest_cli_{os.getpid()}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        yield postgres.rpartition("/")[0] + f"/{name}"
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
