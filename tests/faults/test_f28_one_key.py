"""F28, F03, F04: fifty submitters with one key, producers that die around their commit."""

from __future__ import annotations

import json
import signal
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from agentmesh import ACPClient, BIRRouter
from agentmesh.behavior.router import make_intent
from agentmesh.errors import KeyConflict
from agentmesh.testing import race, until
from tests.faults.bench import Bench
from tests.meshes import RUN_PRODUCER, Process

RESCUE_S, AGAIN_S = 0.5, 1.0


def producer(bench: Bench, faults: str = "", **options: Any) -> Process:
    """A process that dispatches one intent and says the id of its trace."""
    intent = {
        "intent": "work", "from_id": "bench", "to_id": bench.agent("worker"), "context_id": "c",
        "payload": {"shape": "answer", "n": 1}, **options,
    }  # fmt: skip
    return bench.run([str(RUN_PRODUCER), json.dumps(intent)], f"producer-{len(bench.processes)}",
                     AGENTMESH_TEST_FAULTS=faults)  # fmt: skip


def test_f28_fifty_submitters_of_one_key_are_told_one_trace(make_bench: Any) -> None:
    bench: Bench = make_bench("embedded")
    bench.worker("agents")
    intent = ("work", "bench", bench.agent("worker"), "c", {"shape": "answer", "n": 1})
    meshes = [bench.mesh, bench.tenant("acme")]
    for mesh in meshes:
        mesh.router.dispatch(*intent)  # keys and agents are known from here on
    killed = [producer(bench, fault, idempotency_key="k") for fault in ("dispatch.after_commit=kill", "")]
    engine = sa.create_engine(bench.database_url.replace("postgresql://", "postgresql+psycopg://"))

    def rolled_back() -> None:
        with Session(engine) as db:
            bench.mesh.router.dispatch(*intent, idempotency_key="k", session=db)
            db.rollback()

    def other_payload() -> Any:
        return bench.mesh.router.dispatch(*intent[:4], {"shape": "answer", "n": 2}, idempotency_key="k")

    submit = [lambda mesh=mesh: mesh.router.dispatch(*intent, idempotency_key="k") for mesh in meshes * 24]
    *told, gone = race(*submit, rolled_back)
    with pytest.raises(KeyConflict):  # afterwards: in the race it could be first, and the others refused
        other_payload()
    engine.dispose()
    assert killed[0].wait(30) == -signal.SIGKILL
    assert killed[1].wait(30) == 0
    assert not [one for one in told if isinstance(one, BaseException)]
    ids = {(one.tenant_id, one.id) for one in told}
    assert len(ids) == 2
    assert str(next(one.id for one in told if one.tenant_id == "default")) in killed[1].text()
    assert gone is None
    bench.settle()
    keyed = "SELECT tenant_id, count(*) AS n FROM mesh.envelopes WHERE idem_key = 'k' GROUP BY 1 ORDER BY 1"
    assert bench.rows(keyed) == [{"tenant_id": "acme", "n": 1}, {"tenant_id": "default", "n": 1}]


def test_f28_one_key_through_two_gateways_and_from_python_is_one_trace(make_bench: Any) -> None:
    bench: Bench = make_bench("embedded")
    bench.worker("agents")
    doors = [bench.gateway(), bench.gateway()]
    clients = [ACPClient(url, token=token) for url, token in doors]
    routers = [*(BIRRouter(acp_client=one) for one in clients), bench.mesh.router]
    intent = ("work", "bench", bench.agent("worker"), "c", {"shape": "answer", "n": 1})
    dying = producer(bench, "dispatch.after_commit=kill", idempotency_key="k")
    told = race(*[lambda router=router: router.dispatch(*intent, idempotency_key="k") for router in routers * 16])
    assert dying.wait(30) == -signal.SIGKILL
    (known,) = {one.id for one in told}  # type: ignore[union-attr]
    for router in routers:
        with pytest.raises(KeyConflict):
            router.dispatch(*intent[:4], {"shape": "answer", "n": 2}, idempotency_key="k")
    assert clients[0].send(make_intent(*intent, idempotency_key="k")).result(timeout=20) == {"n": 1}
    for client in clients:
        client.close()
    bench.settle()
    assert bench.rows("SELECT id, status FROM mesh.traces") == [{"id": known, "status": "done"}]


@pytest.mark.parametrize("kind", [pytest.param("redis", marks=pytest.mark.faults), "amqp"])
@pytest.mark.parametrize("point", ["dispatch.after_commit", "dispatch.after_publish"])
def test_f03_producers_killed_after_their_commit_have_their_intents_run(make_bench: Any, kind: str, point: str) -> None:
    bench: Bench = make_bench(kind)
    bench.worker("agents")
    dead = [producer(bench, f"{point}=kill") for _ in range(5)]
    assert [one.wait(30) for one in dead] == [-signal.SIGKILL] * 5
    bench.settle()
    assert bench.statuses() == {("worker", "done"): 5}
    waited = "SELECT max(extract(epoch FROM started_at - created_at))::float8 FROM mesh.traces"
    assert bench.value(waited) < RESCUE_S + AGAIN_S + 1


@pytest.mark.parametrize("kind", [pytest.param("redis", marks=pytest.mark.faults), "amqp"])
def test_f04_producers_killed_before_their_commit_leave_no_row_and_no_message(make_bench: Any, kind: str) -> None:
    bench: Bench = make_bench(kind)
    bench.worker("agents").kill()  # announced, and nobody consumes: a message would stay
    dead = [producer(bench, "dispatch.before_commit=kill") for _ in range(5)]
    assert [one.wait(30) for one in dead] == [-signal.SIGKILL] * 5
    bench.settle()
    assert bench.value("SELECT count(*) FROM mesh.traces") == 0
    assert set(bench.mesh.broker.depths(bench.queues()).values()) == {0}


@pytest.mark.parametrize("end", ["raise", "rollback", "savepoint"])
def test_f04_a_callers_transaction_that_does_not_commit_leaves_nothing(make_bench: Any, end: str) -> None:
    bench: Bench = make_bench("embedded")
    bench.worker("agents").kill()
    engine = sa.create_engine(bench.database_url.replace("postgresql://", "postgresql+psycopg://"))
    intent = ("work", "bench", bench.agent("worker"), "c", {"shape": "answer", "n": 1})

    def submit() -> None:
        with Session(engine) as db, db.begin() as transaction:
            db.execute(sa.text("INSERT INTO filed (idem_key) VALUES ('theirs')"))
            if end == "savepoint":
                with db.begin_nested() as savepoint:
                    bench.mesh.router.dispatch(*intent, session=db)
                    savepoint.rollback()
                return
            bench.mesh.router.dispatch(*intent, session=db)
            if end == "raise":
                raise ValueError("changed its mind")
            transaction.rollback()

    if end == "raise":
        with pytest.raises(ValueError, match="changed its mind"):
            submit()
    else:
        submit()
    engine.dispose()
    with psycopg.connect(bench.database_url, autocommit=True) as connection:
        theirs = connection.execute("DELETE FROM filed RETURNING idem_key").fetchall()
    assert theirs == ([("theirs",)] if end == "savepoint" else [])
    assert bench.value("SELECT count(*) FROM mesh.traces") == 0
    assert bench.mesh.broker.depths([f"agent.worker-{bench.tag}"]) == {f"agent.worker-{bench.tag}": 0}
    until(lambda: not bench.rows("SELECT 1 FROM mesh.idempotency"), within=1, what="no key")
