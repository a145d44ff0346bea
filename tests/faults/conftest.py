"""Benches for fault tests, and what a failure says: its seed and how long it took.

AGENTMESH_TEST_SEED repeats a run; without it every run has another one.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from agentmesh import testing
from tests.faults.bench import Bench
from tests.faults.proxy import Proxy
from tests.servers import OwnPostgres, OwnRabbit, OwnRedis

SEED = int(os.environ.get("AGENTMESH_TEST_SEED", random.SystemRandom().randrange(2**31)))
REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.when == "call":
        item.stash[REPORT] = report
    if report.failed:
        said = f"AGENTMESH_TEST_SEED={SEED}, {report.duration:.1f} s"
        report.sections.append(("seed and wall time", said))
    return report


@pytest.fixture
def seed() -> int:
    return SEED


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Another one in each round of a test, the same one in each run with the seed."""
    return random.Random(f"{SEED} {request.node.name}")


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


@pytest.fixture(scope="session")
def ledger_server() -> Iterator[OwnPostgres]:
    """Where ledgers are: no test does anything to this server."""
    folder = Path(tempfile.mkdtemp(prefix="amledger-"))
    folder.chmod(0o755)
    server = OwnPostgres(folder, fsync="off")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def steady(ledger_server: OwnPostgres) -> OwnPostgres:
    """A PostgreSQL for tests that leave it alone."""
    return ledger_server


@pytest.fixture
def own_postgres(home: Path) -> Iterator[Callable[..., OwnPostgres]]:
    """own_postgres(**settings): a server that the test may end as it likes."""
    made: list[OwnPostgres] = []

    def make(**settings: str) -> OwnPostgres:
        one = OwnPostgres(home / f"postgres{len(made)}", **settings)
        one.start()
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def own_broker(home: Path) -> Iterator[Callable[[str], Any]]:
    """own_broker("redis" | "amqp"): a broker that the test may end as it likes."""
    made: list[Any] = []

    def make(kind: str) -> Any:
        one = OwnRedis(home) if kind == "redis" else OwnRabbit(home)
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def make_bench(
    request: pytest.FixtureRequest, home: Path, ledger_server: OwnPostgres, own_postgres: Any, own_broker: Any
) -> Iterator[Callable[..., Bench]]:
    """make_bench(kind, server=, broker=, links=): a mesh on `server` (one nobody ends, if none is given) and `broker`
    (the machine's); workers reach what `links` names ("postgres", "broker") through proxies."""
    made: list[tuple[Bench, list[Any]]] = []

    def make(kind: str, *, server: OwnPostgres | None = None, broker: Any = None, links: tuple[str, ...] = ()) -> Bench:
        where = server or request.getfixturevalue("steady")
        databases = [testing.database(plain(where.url())), testing.database(plain(ledger_server.url()))]
        url, ledger = (plain(one.__enter__()) for one in databases)
        if kind == "embedded":
            broker_url = None
        else:
            name = {"redis": "AGENTMESH_TEST_REDIS_URL", "amqp": "AGENTMESH_TEST_AMQP_URL"}[kind]
            broker_url = broker.url if broker is not None else testing.need(name)
        bench = Bench(kind, home, url, broker_url, ledger_url=ledger)
        bench.test = request.node.name
        bench.shares = broker is None
        made.append((bench, databases))
        bench.servers += [one for one in (server,) if one is not None]
        _link(bench, where, links)
        return bench

    yield make
    for bench, databases in made:
        report = request.node.stash.get(REPORT, None)
        try:
            if report is not None and report.passed and not bench.settled:
                bench.settle()
        finally:
            _end(bench, tell=report is None or not report.passed)
            for database in databases:
                database.__exit__(None, None, None)
        assert bench.orphans() == []


def _end(bench: Bench, *, tell: bool) -> None:
    try:
        bench.heal()
    finally:  # a server that cannot be healed is no reason to leave its workers
        bench.close()
    for process in bench.processes if tell else ():
        print(f"--- {process.name} (pid {process.pid})\n{process.text()[-6000:]}")  # noqa: T201 - for the report
    if bench.shares:
        bench.clean()


def _link(bench: Bench, server: OwnPostgres, links: tuple[str, ...]) -> None:
    if "postgres" in links:
        bench.links["postgres"] = proxy = Proxy(server.path)
        name = bench.database_url.partition("?")[0].rpartition("/")[2]
        bench.env["AGENTMESH_DATABASE_URL"] = f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}"
    if "broker" in links:
        parts = urlsplit(bench.broker_url or "")
        bench.links["broker"] = proxy = Proxy(parts.port or 0)
        bench.env["AGENTMESH_BROKER_URL"] = (bench.broker_url or "").replace(f":{parts.port}", f":{proxy.port}")
