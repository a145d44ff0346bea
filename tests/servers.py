"""Servers of a test's own, on free ports: started, stopped, killed and emptied without touching a machine's others."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import kombu
import psycopg
import redis

from agentmesh import testing
from agentmesh.infrastructure.postgres import EmbeddedPostgres
from agentmesh.testing import until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class OwnPostgres(EmbeddedPostgres):
    """A PostgreSQL on a socket of its own, which may be ended in every way there is."""

    def __init__(self, home: Path, **settings: str) -> None:
        super().__init__(home)
        self._settings = settings

    @property
    def path(self) -> Path:
        """Where it listens."""
        return self.socket / ".s.PGSQL.5432"

    def configure(self, **settings: str) -> None:
        """From its next start on."""
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _create_cluster(self, programs: Path) -> None:
        super()._create_cluster(programs)
        self.configure(**self._settings)

    def end(self, mode: str) -> None:
        """`pg_ctl stop -m fast` or `immediate`, or "kill": SIGKILL to the postmaster alone."""
        pid = self.pid
        if mode == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            self._run(self._programs() / "pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", 20, "stop")
        until(lambda: self._postmaster() is None, within=20, what=f"the end of PostgreSQL by {mode}")

    @property
    def pid(self) -> int:
        found = self._postmaster()
        assert found is not None, "this PostgreSQL does not run"
        return found

    def rows(self, query: str, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn(dbname), autocommit=True) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]

    def standby(self, home: Path) -> OwnPostgres:
        """A streaming standby of this server, made and started. This one needs wal_level = replica."""
        made = OwnPostgres(home)
        made.home.mkdir(parents=True, exist_ok=True)
        if made.owner is not None:
            os.chown(made.home, made.owner.uid, made.owner.gid)
        code, said = self._run(
            self._programs() / "pg_basebackup", "-h", self.socket, "-U", "postgres", "-D", made.data, "-R", "-c", "fast",
            "-X", "stream",
        )  # fmt: skip
        assert code == 0, said
        with (made.data / "postgresql.auto.conf").open("a") as conf:  # where -R has put it, above all else
            conf.write(f"primary_conninfo = 'host={self.socket} user=postgres application_name=standby'\n")
        made.start()
        return made

    def promote(self) -> None:
        code, said = self._run(self._programs() / "pg_ctl", "-D", self.data, "-w", "promote")
        assert code == 0, said

    def _ensure_database(self) -> None:
        if not self.rows("SELECT pg_is_in_recovery()")[0][0]:
            super()._ensure_database()


class OwnRedis:
    """A redis-server on a free port, started and stopped by the test."""

    def __init__(self, home: Path, password: str | None = None) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            testing.missing("redis-server")
        self.port = free_port()
        self._command = [str(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
        if password:
            self._command += ["--requirepass", password]
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            try:
                with redis.Redis.from_url(self.url) as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        until(answers, what="redis-server")

    def stop(self) -> None:
        """Gone with everything in it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)
            self._process = None


class OwnRabbit:
    """A RabbitMQ node with a name, a folder, a cookie and an epmd of its own."""

    def __init__(self, home: Path) -> None:
        self._server = _rabbit("rabbitmq-server")
        self._control = _rabbit("rabbitmqctl")
        epmd = shutil.which("epmd")
        if self._server is None or self._control is None or epmd is None:
            testing.missing("rabbitmq-server")
        self.port, ports = free_port(), {"ERL_EPMD_PORT": str(free_port()), "RABBITMQ_DIST_PORT": str(free_port())}
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._home = home / "rabbit"
        self._home.mkdir(exist_ok=True)
        (self._home / "plugins").write_text("[].")
        (self._home / "rabbitmq.conf").write_text("disk_free_limit.absolute = 50MB\nlog.console = false\n")
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RABBITMQ_")}
        self._env = kept | ports | {
            "HOME": str(self._home), "RABBITMQ_NODENAME": f"faults{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port), "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(self._home / "mnesia"), "RABBITMQ_LOG_BASE": str(self._home / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "plugins"), "RABBITMQ_PID_FILE": str(self._home / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self._home / "rabbitmq.conf"), "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
        }  # fmt: skip
        quiet: dict[str, Any] = {"env": self._env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._quiet = quiet
        self._epmd = subprocess.Popen([str(epmd), "-port", ports["ERL_EPMD_PORT"]], **quiet)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It takes connections."""
        self._process = subprocess.Popen([str(self._server)], start_new_session=True, **self._quiet)
        until(self._answers, within=60, what="rabbitmq-server")

    def _answers(self) -> bool:
        with suppress(OSError, kombu.exceptions.OperationalError), kombu.Connection(self.url, connect_timeout=2) as one:
            one.connect()
            return True
        return False

    def kill(self) -> None:
        """SIGKILL to the node and all its helpers."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def control(self, *words: str) -> str:
        """What `rabbitmqctl` says."""
        done = subprocess.run(
            [str(self._control), "-q", *words], env=self._env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        """Gone with its epmd."""
        self.kill()
        self._epmd.kill()
        self._epmd.wait(5)


def _rabbit(program: str) -> Path | None:
    """The program itself: Debian's wrapper of the same name becomes another user."""
    for folder in sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin")):
        return folder / program
    found = shutil.which(program)
    return Path(found) if found else None
