"""F15: PostgreSQL's disk is full under load, then free again: nothing is accepted meanwhile, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentmesh.cli.doctor import examine
from agentmesh.errors import MeshError
from agentmesh.testing import until
from tests.faults.bench import Bench
from tests.faults.load import Load
from tests.servers import OwnPostgres

DISK = "192m"


class OnDisk(OwnPostgres):
    """A PostgreSQL of which one part lies on the small disk: its log ("wal"), its tables ("heap"), what it sorts ("temp")."""

    def __init__(self, home: Path, disk: Path, part: str) -> None:
        super().__init__(home, max_wal_size="64MB", min_wal_size="32MB")
        self._disk, self._part = disk, part

    def _create_cluster(self, programs: Path) -> None:
        super()._create_cluster(programs)
        if self._part != "temp":
            here = self.data / {"wal": "pg_wal", "heap": "base"}[self._part]
            here.symlink_to(shutil.move(here, self._disk / "part"))
        for path in (self._disk, *self._disk.rglob("*")):
            if self.owner is not None:
                os.chown(path, self.owner.uid, self.owner.gid)


@pytest.fixture
def disk(home: Path) -> Iterator[Path]:
    """A small disk."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = home / "disk"
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


@pytest.fixture
def server_on(home: Path, disk: Path) -> Iterator[Callable[[str], OnDisk]]:
    """server_on(part): a server of which that part lies on the small disk."""
    made: list[OnDisk] = []

    def make(part: str) -> OnDisk:
        made.append(OnDisk(home / "postgres", disk, part))
        made[0].start()
        return made[0]

    yield make
    for one in made:
        one.stop()


@pytest.mark.faults
@pytest.mark.timeout(240)
@pytest.mark.parametrize("part", ["wal", "heap"])
def test_f15_a_full_disk_accepts_nothing_and_loses_nothing(
    disk: Path, make_bench: Any, server_on: Any, part: str
) -> None:
    server = server_on(part)
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
        said = [one.says for one in examine(bench.mesh, deep=False) if one.name == "database" and not one.ok]
        assert said != []
        assert part == "wal" or "No space left on device" in said[0]
        ballast.unlink()
        server.start()  # a full disk under its log is the end of the server
        load.more(10, within=60)
    bench.settle(within=90)
    load.check()
    assert all(worker.running for worker in workers)


SPILLS = (
    "SELECT count(*) AS n FROM (SELECT DISTINCT n, repeat('x', 100) FROM generate_series(1, 400000) n ORDER BY 2, 1) s"
)


@pytest.mark.faults
def test_f15_no_room_to_sort_fails_what_sorts_and_stops_nothing_else(
    disk: Path, make_bench: Any, server_on: Any
) -> None:
    server = server_on("temp")
    bench: Bench = make_bench("redis", server=server)
    with psycopg.connect(bench.database_url, autocommit=True) as admin:
        admin.execute(f"CREATE TABLESPACE small LOCATION '{disk}'".encode())
        admin.execute("ALTER SYSTEM SET temp_tablespaces = 'small'")
        admin.execute("ALTER SYSTEM SET work_mem = '64kB'")
        admin.execute("SELECT pg_reload_conf()")
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    with Load(bench) as load:
        load.more(5)
        ballast = fill(disk)
        with pytest.raises(psycopg.errors.DiskFull):
            bench.mesh.db.once(SPILLS)
        load.more(10)
        ballast.unlink()
        assert bench.mesh.db.once(SPILLS) == [{"n": 400_000}]
    assert load.refused == []
    bench.settle(within=90)
    load.check()
    assert all(worker.running for worker in workers)
