"""F15: PostgreSQL's disk is full under load, then free again: nothing is accepted meanwhile, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import MeshError
from agentmesh.testing import until
from tests.faults.bench import Bench
from tests.faults.load import Load

DISK = "192m"


@pytest.fixture
def disk(home: Path) -> Iterator[Path]:
    """A small disk, on which the first PostgreSQL of the test will be."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = home / "postgres0"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Afterwards not a page is free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                list(iter(lambda size=size: file.write(b"\1" * size), 0))
    return ballast


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_f15_a_full_disk_accepts_nothing_and_loses_nothing(disk: Path, make_bench: Any, own_postgres: Any) -> None:
    server = own_postgres(max_wal_size="64MB", min_wal_size="32MB")
    bench: Bench = make_bench("redis", server=server)
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    with Load(bench) as load:
        load.more(10)
        ballast = fill(disk)
        large = {"n": 1, "text": "x" * (1 << 20)}

        def refused() -> bool:
            try:
                load.accepted.append(bench.start("answer", **large))
            except MeshError as exc:
                return exc.exit_code == 5
            return False

        until(refused, within=60, what="a refusal that says that the database is away")
        ballast.unlink()
        server.start()  # a full disk under its log is the end of the server
        load.more(10, within=60)
    bench.settle(within=90)
    load.check()
    assert all(worker.running for worker in workers)
