"""The embedded server is started or adopted, comes back after SIGKILL, and is reachable by its owner alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from agentmesh.errors import NoPostgres
from agentmesh.infrastructure import binaries
from agentmesh.infrastructure.postgres import EmbeddedPostgres, choose_home, server_owner

ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).parents[2]
only_root = pytest.mark.skipif(not ROOT, reason="only root drops to another account")


@pytest.fixture
def home() -> Iterator[Path]:
    """Short and reachable by the server's account, which pytest's own folders are not."""
    made = Path(tempfile.mkdtemp(prefix="amt-"))
    made.chmod(0o755)
    yield made / "home"
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def server(home: Path) -> Iterator[EmbeddedPostgres]:
    made = EmbeddedPostgres(home)
    yield made
    made.stop()


def ask(server: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.dsn(), autocommit=True) as db:
        done = db.execute(statement)  # type: ignore[arg-type]
        return done.fetchall() if done.description else []


def postmaster(server: EmbeddedPostgres) -> int:
    return int((server.data / "postmaster.pid").read_text().split()[0])


def test_second_start_adopts_the_running_server_and_data_outlives_a_stop(server: EmbeddedPostgres) -> None:
    assert server.start() is True
    ask(server, "CREATE TABLE kept AS SELECT 7 AS n")
    assert EmbeddedPostgres(server.home).start() is False
    server.stop()
    assert server.start() is True
    assert ask(server, "SELECT n FROM kept") == [(7,)]


def test_start_recovers_what_was_committed_before_the_postmaster_was_killed(server: EmbeddedPostgres) -> None:
    server.start()
    ask(server, "CREATE TABLE kept AS SELECT 7 AS n")
    os.kill(postmaster(server), signal.SIGKILL)
    assert server.start() is True
    assert ask(server, "SELECT n FROM kept") == [(7,)]


def test_of_two_starts_at_once_one_starts_and_one_adopts(server: EmbeddedPostgres) -> None:
    ready = threading.Barrier(2)
    answers: list[bool] = []

    def start() -> None:
        ready.wait(10)
        answers.append(EmbeddedPostgres(server.home).start())

    threads = [threading.Thread(target=start) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert sorted(answers) == [False, True]


def test_pid_file_that_names_another_program_does_not_block_the_start(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n0\n5432\n{server.socket}\n\n0 0\n")
    assert server.start() is True


def test_server_listens_on_a_closed_socket_directory_and_not_on_the_network(server: EmbeddedPostgres) -> None:
    server.start()
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    assert ask(server, "SHOW listen_addresses") == [("",)]
    assert ask(server, "SHOW synchronous_commit") == [("on",)]


def test_long_path_moves_the_socket_to_a_short_one(home: Path) -> None:
    server = EmbeddedPostgres(home / ("deep-" * 20))
    try:
        server.start()
        assert not server.socket.is_relative_to(home)
        assert ask(server, "SELECT 1") == [(1,)]
    finally:
        server.stop()
        shutil.rmtree(server.socket)


def test_socket_directory_that_others_can_enter_is_refused(home: Path) -> None:
    server = EmbeddedPostgres(home / ("deep-" * 20))
    server.socket.mkdir(mode=0o777)
    server.socket.chmod(0o777)
    try:
        with pytest.raises(NoPostgres, match="not ours alone"):
            server.start()
    finally:
        server.socket.rmdir()


def test_folder_that_cannot_be_written_is_an_error_with_its_name(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(NoPostgres, match=str(home)):
        EmbeddedPostgres(home / "below").start()


@only_root
def test_root_drops_to_another_account_and_leaves_parents_as_they_were(server: EmbeddedPostgres) -> None:
    before = stat.S_IMODE(server.home.parent.stat().st_mode)
    server.start()
    owner = server_owner()
    assert owner is not None
    assert Path(f"/proc/{postmaster(server)}").stat().st_uid == owner.uid != 0
    assert stat.S_IMODE(server.home.parent.stat().st_mode) == before


@only_root
def test_closed_parent_moves_the_home_and_says_so() -> None:
    with tempfile.TemporaryDirectory() as closed:
        home, sentence = choose_home(Path(closed) / "project" / ".agentmesh")
        assert home.is_relative_to("/var/lib/agentmesh")
        assert sentence is not None
        assert str(home) in sentence
        with pytest.raises(NoPostgres, match="cannot reach"):
            EmbeddedPostgres(Path(closed) / "project").start()
        assert stat.S_IMODE(Path(closed).stat().st_mode) == 0o700


def test_reachable_home_stays_where_it_was_asked_for(home: Path) -> None:
    assert choose_home(home) == (home, None)
    home.mkdir(mode=0o700)
    assert choose_home(home) == (home, None)


@only_root
def test_normal_user_starts_adopts_and_recovers_without_root(home: Path) -> None:
    home.mkdir()
    os.chown(home, 65534, 65534)
    # imports first: the interpreter itself may live where that user cannot look
    script = """
import os, signal, sys
from pathlib import Path
from agentmesh.infrastructure.postgres import EmbeddedPostgres
os.chdir("/")
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
server = EmbeddedPostgres(Path(sys.argv[1]))
answers = [server.start(), server.start()]
os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
answers.append(server.start())
server.stop()
print(os.geteuid(), answers)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(home)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.split(maxsplit=1) == ["65534", "[True, False, True]\n"], done.stderr


@only_root
def test_copied_programs_run_as_an_account_that_cannot_see_the_original(home: Path) -> None:
    home.mkdir(mode=0o755)
    programs = binaries.copy_into(binaries.find(), home)
    assert binaries.copy_into(binaries.find(), home) == programs
    done = subprocess.run(
        [programs / "initdb", "--version"], user=65534, group=65534, extra_groups=[], cwd="/",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "PostgreSQL" in done.stdout


def test_no_fitting_server_is_an_error_that_says_what_was_seen() -> None:
    with pytest.raises(NoPostgres, match="PostgreSQL 3, which made the data"):
        binaries.find(3)


def test_wheel_comes_before_the_system_and_its_code_is_not_imported() -> None:
    first = next(iter(binaries.candidates()))
    assert first.parent.parent.name in binaries.WHEELS
    assert (binaries.major_version(first) or 0) >= 15
    assert not set(binaries.WHEELS) & set(sys.modules)


def test_socket_of_a_stopped_server_refuses(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError, match=r"No such file|refused"):
        probe.connect(str(server.socket / ".s.PGSQL.5432"))
