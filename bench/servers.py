"""The servers a bench measures on: its own, so that nothing else is counted and nothing of the machine's is touched."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from tests.servers import OwnPostgres, OwnRabbit, OwnRedis

SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "300"}
"""Beside the shipped ones of the embedded server; fsync and synchronous_commit are on."""


@contextmanager
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ambench-"))
    folder.chmod(0o755)  # the server's account goes in
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own; its URL."""
    server = OwnPostgres(folder / "postgres", **SETTINGS)
    server.start()
    try:
        yield f"postgresql://postgres@/postgres?host={quote(str(server.socket), safe='')}"
    finally:
        server.stop()


@contextmanager
def broker(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    """The environment that leads to a broker of its own: pg (that is none), redis, amqp."""
    if kind == "pg":
        yield {"PEER_BROKER": "pg"}
        return
    made = OwnRedis(folder) if kind == "redis" else OwnRabbit(folder)
    made.start()
    try:
        url = "REDIS_URL" if kind == "redis" else "AMQP_URL"
        yield {"PEER_BROKER": kind, url: made.url, "BENCH_BROKER_PIDS": str(made._process.pid)}  # type: ignore[union-attr]
    finally:
        made.stop()


@contextmanager
def surroundings(kind: str, *, redis: bool = False) -> Iterator[dict[str, str]]:
    """What a measuring process is told by environment; `redis`: of a Redis, too, whichever broker is ours."""
    with ExitStack() as stack:
        folder = stack.enter_context(home())
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AGENTMESH_")}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        url = kept.get("PG_URL") or stack.enter_context(postgres(folder))
        beside = stack.enter_context(broker("redis", folder)) if redis and kind != "redis" else {}
        more = {"REDIS_URL": beside["REDIS_URL"]} if beside else {}
        yield kept | {"PG_URL": url} | more | stack.enter_context(broker(kind, folder))
