"""F10, F11: the links of workers to PostgreSQL and to the broker are cut, or swallow what they carry."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import httpx
import pytest

from agentmesh.execution.failures import AWAY
from agentmesh.infrastructure.database import Database
from agentmesh.testing import race, until
from tests.faults.bench import Bench
from tests.faults.load import Load
from tests.faults.proxy import Proxy

FAULTY = pytest.mark.faults
OUTAGE_S = 8
DEADLINE_S = 10.0  # within which each side of a silent link gives it up by itself


def linked(make_bench: Any, own_postgres: Any, own_broker: Any, kind: str) -> Bench:
    """A mesh whose workers, and whose producer, reach everything through proxies."""
    broker = None if kind == "embedded" else own_broker(kind)
    links = ("postgres",) if broker is None else ("postgres", "broker")
    bench: Bench = make_bench(kind, server=own_postgres(), broker=broker, links=links)
    return bench


@pytest.mark.parametrize("kind", ["redis", pytest.param("amqp", marks=FAULTY), pytest.param("embedded", marks=FAULTY)])
def test_f10_links_cut_one_by_one_and_healed_at_random_lose_nothing(
    make_bench: Any, own_postgres: Any, own_broker: Any, kind: str, chance: random.Random
) -> None:
    bench = linked(make_bench, own_postgres, own_broker, kind)
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    with Load(bench, pause_s=0.1) as load:
        for _ in range(2):
            load.more(4)
            swizzle = [chance.sample(list(bench.links.values()), len(bench.links)) for _ in range(2)]
            for link in swizzle[0]:
                link.cut()
                threading.Event().wait(chance.uniform(0.1, 2))
            for link in swizzle[1]:
                link.pass_()
                threading.Event().wait(chance.uniform(0.1, 1))
    bench.settle(within=90)
    load.check()
    assert all(worker.running for worker in workers)


@pytest.mark.parametrize("mode", ["cut", pytest.param("hole", marks=FAULTY)])
def test_f10_while_postgres_is_away_a_gateway_says_so_within_five_seconds(
    make_bench: Any, own_postgres: Any, mode: str
) -> None:
    bench: Bench = make_bench("embedded", server=own_postgres(), links=("postgres",))
    bench.worker("agents")
    url, token = bench.gateway()
    said = {"to": bench.agent("worker"), "from": "bench", "intent": "work", "context_id": "c",
            "payload": {"shape": "answer", "n": 1}}  # fmt: skip
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30, verify=False) as client:

        def post(n: int) -> httpx.Response:
            return client.post("/v1/intents", json=said, headers={"Idempotency-Key": f"k{n}"})

        assert post(0).status_code == 201
        getattr(bench.links["postgres"], mode)()
        answers = [post(1), client.get("/readyz"), *race(*[lambda n=n: post(n) for n in range(2, 12)])]
        for answer in answers:
            assert answer.status_code == 503
            assert answer.elapsed.total_seconds() < 5.5
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["code"] in {"E_DATABASE", "E_OVERLOADED", "E_COMMIT_UNKNOWN", "E_POOL_TIMEOUT"}
        assert client.get("/livez").status_code == 200
        bench.heal()
        until(lambda: client.get("/readyz").status_code == 200, within=30, what="the gateway, well again")
        told = [post(n).json()["id"] for n in range(12)]
        assert told == [post(n).json()["id"] for n in range(12)]
    bench.settle(within=60)
    assert bench.statuses() == {("worker", "done"): 12}


@FAULTY
@pytest.mark.parametrize("kind", ["redis", "amqp"])
def test_f10_a_broker_that_stays_away_is_not_hammered(
    make_bench: Any, own_postgres: Any, own_broker: Any, kind: str
) -> None:
    bench = linked(make_bench, own_postgres, own_broker, kind)
    bench.worker("agents")
    link = bench.links["broker"]
    link.cut()
    began = time.monotonic()
    threading.Event().wait(10)
    tried = [at for at in link.opened if at > began]
    assert len(tried) <= 3 * 10  # the consumer's, and one a rescue look: about 2 a second
    bench.heal()
    assert bench.start("answer", 1).result(timeout=30) == {"n": 1}
    bench.settle()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [pytest.param(kind, mode, marks=FAULTY) for kind in ("redis", "amqp", "embedded") for mode in ("hole", "one_way")],
)  # fmt: skip
def test_f11_a_holder_behind_a_silent_hole_loses_its_lease_and_its_late_commit(
    make_bench: Any, own_postgres: Any, own_broker: Any, kind: str, mode: str
) -> None:
    bench = linked(make_bench, own_postgres, own_broker, kind)
    through = bench.workers(("agents", "threads"), ("tools", "threads"))
    direct = bench.database_url
    trace = bench.given({"tool": "gated", "args": {"gate": "gate", "n": 3}})
    bench.until_ran("gated")
    silent = time.monotonic()
    getattr(bench.links["postgres"], mode)()
    bench.workers(("agents", "threads"), ("tools", "threads"), AGENTMESH_DATABASE_URL=direct)
    until(lambda: bench.outcomes()["lost"] == 1, within=20, what="the lease moved")
    bench.open("gate")
    until(lambda: bench.value("SELECT status FROM mesh.traces") == "done", within=20, what="the trace's end elsewhere")
    bench.heal()
    healed = time.monotonic()
    until(lambda: bench.outcomes() == {"stale": 1, "won": 1}, within=30, what="the late answer, marked stale")
    pids = [one.pid for one in through]
    alive = "SELECT count(*) FROM mesh.workers WHERE state = 'alive' AND pid = ANY(%s)"
    until(lambda: bench.value(alive, pids) == 2, within=DEADLINE_S + 5, what="both registered anew")
    assert healed - silent < 60
    assert trace.result(timeout=DEADLINE_S + 5) == {"gated": 9}
    bench.settle()


@FAULTY
@pytest.mark.parametrize("kind", ["redis", "amqp"])
@pytest.mark.parametrize("mode", ["hole", "one_way"])
def test_f11_workers_behind_a_silent_broker_consume_again(
    make_bench: Any, own_postgres: Any, own_broker: Any, kind: str, mode: str
) -> None:
    bench = linked(make_bench, own_postgres, own_broker, kind)
    bench.workers(("agents", "threads"), ("tools", "threads"))
    assert bench.start("serial", 1).result(timeout=20) == 1
    getattr(bench.links["broker"], mode)()
    began = time.monotonic()
    trace = bench.start("serial", 2)
    assert time.monotonic() - began < 5
    threading.Event().wait(3)
    bench.heal()
    assert trace.result(timeout=40) == 2
    bench.settle()


@FAULTY
@pytest.mark.parametrize("kind", ["redis", "amqp"])
def test_f10_nobody_runs_against_a_closed_door_more_than_twice_a_second(
    make_bench: Any, own_postgres: Any, own_broker: Any, kind: str
) -> None:
    bench = linked(make_bench, own_postgres, own_broker, kind)
    bench.env |= {"AGENTMESH_LEASE_LEASE": "10s", "AGENTMESH_LEASE_BEAT": "1s", "AGENTMESH_LEASE_RESCUE": "1s"}
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    for link in bench.links.values():
        link.cut()
        threading.Event().wait(1)  # what was open is gone
        link.opened.clear()
        threading.Event().wait(OUTAGE_S)
        tries = len(link.opened)
        link.pass_()
        assert 0 < tries <= 2 * OUTAGE_S * len(workers)
    bench.start("parallel", 3).result(timeout=40)


@FAULTY
@pytest.mark.parametrize("kind", ["redis", "amqp", "embedded"])
def test_f11_a_link_that_garbles_or_crawls_changes_nothing(
    make_bench: Any, own_postgres: Any, own_broker: Any, kind: str
) -> None:
    bench = linked(make_bench, own_postgres, own_broker, kind)
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    with Load(bench, pause_s=0.2) as load:
        for link in bench.links.values():
            load.more(3)
            link.garble()
            threading.Event().wait(1.5)
            link.cut()
            link.slow(20_000)
            threading.Event().wait(2)
            link.delay(0.05)
            threading.Event().wait(1)
            link.pass_()
    bench.settle(within=90)
    assert {trace.status() for trace in load.accepted} == {"done"}
    assert all(worker.running for worker in workers)


@pytest.mark.parametrize("mode", ["garble", "cut"])
def test_f11_an_answer_that_is_none_of_postgresqls_is_the_end_of_its_connection_and_no_fault_of_the_statement(
    steady: Any, mode: str
) -> None:
    link = Proxy(steady.path)
    db = Database(f"postgresql://postgres@127.0.0.1:{link.port}/postgres", check_role=False)
    try:
        assert db.once("SELECT 1 AS n") == [{"n": 1}]
        getattr(link, mode)()
        with pytest.raises(AWAY):
            db.once("SELECT 2 AS n, repeat('x', 100) AS text")
        link.pass_()
        assert db.once("SELECT 3 AS n") == [{"n": 3}]
    finally:
        db.close()
        link.close()
