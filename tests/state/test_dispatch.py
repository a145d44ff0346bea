"""Accepting intents: once per key, inside a caller's transaction, in few statements, with payloads of any size."""

import asyncio
import contextlib
import threading

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from agentmesh.errors import (
    DatabaseNotMigrated,
    DatabaseUnreachable,
    KeyConflict,
    KeyContended,
    Mistake,
    OutcomeUnknown,
    PayloadTooLarge,
)
from agentmesh.infrastructure import jsontext
from agentmesh.infrastructure.database import Database
from agentmesh.testing import hand_mesh, race

KIB = 1024


@pytest.fixture
def own(database_url):
    """The caller's engine, with a table of the caller's."""
    engine = sa.create_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE IF NOT EXISTS own (n int)"))
        connection.execute(sa.text("DELETE FROM own"))
    yield engine
    engine.dispose()


def rung(lab):
    return [ring.id for ring in lab.bells.waiting]


def counts(lab):
    tables = ("traces", "envelopes", "events", "idempotency")
    return tuple(lab.rows(f"SELECT count(*) AS n FROM mesh.{table}")[0]["n"] for table in tables)


def another_tenant(lab, database_url, tmp_path):
    from agentmesh.behavior.agents import define_agent

    spec = define_agent("puppet", reasoner=lambda s: {"answer": 1}, tenants=["acme"])
    home = tmp_path / "acme"
    home.mkdir()
    return hand_mesh(
        database_url, root=home, flags={"mesh.tenant": "acme"}, agents={"puppet": spec}, tools=lab.mesh.tools
    )


# --- keys of idempotency


def test_twenty_dispatches_of_one_key_at_a_barrier_are_one_trace(lab):
    lab.start()
    found = race(*[lambda: lab.start(idempotency_key="k1").id] * 20)
    assert len(set(found)) == 1
    assert counts(lab) == (2, 2, 2, 1)
    assert rung(lab).count(found[0]) == 1


def test_a_key_with_another_payload_is_refused_and_writes_nothing(lab):
    first = lab.start(idempotency_key="k1")
    before = lab.everything()
    with pytest.raises(KeyConflict) as refused:
        lab.start(idempotency_key="k1", payload={"other": "secret"})
    assert str(first) in str(refused.value)
    assert "secret" not in str(refused.value)
    assert lab.everything() == before


def test_keys_race_with_different_payloads_and_one_wins(lab):
    found = race(*[lambda n=n: lab.start(idempotency_key="k1", payload={"n": n}).id for n in range(6)])
    assert sum(not isinstance(one, BaseException) for one in found) == 1
    assert {type(one) for one in found if isinstance(one, BaseException)} == {KeyConflict}
    assert counts(lab) == (1, 1, 1, 1)


def test_a_key_outlives_the_end_of_its_trace(lab):
    first = lab.start(idempotency_key="k1")
    lab.drain()
    assert first.status() == "done"
    assert lab.start(idempotency_key="k1").id == first.id
    assert not lab.bells.waiting


def test_s25_the_same_key_in_another_tenant_is_another_trace(lab, database_url, tmp_path):
    first = lab.start(idempotency_key="k1")
    mesh, _ = another_tenant(lab, database_url, tmp_path)
    try:
        other = mesh.router.dispatch("work", "tester", "puppet", "c-1", {"a": "b"}, idempotency_key="k1")
        assert other.id != first.id
        assert lab.trace(other)["tenant_id"] == "acme"
        again = mesh.router.dispatch("work", "tester", "puppet", "c-1", {"a": "b"}, idempotency_key="k1")
        assert again.id == other.id
    finally:
        mesh.close()


def test_one_batch_may_name_a_key_twice_and_an_old_one(lab):
    old = lab.start(idempotency_key="old")
    intent = {"intent": "work", "from_id": "t", "to_id": "puppet", "context_id": "c-1", "payload": {"do": []}}
    same = {"intent": "work", "from_id": "tester", "to_id": "puppet", "context_id": "c-1", "payload": {"do": []}}
    found = lab.mesh.router.dispatch_many([
        intent | {"idempotency_key": "new"}, intent | {"idempotency_key": "new"}, same | {"idempotency_key": "old"}, intent,
    ])  # fmt: skip
    assert found[0].id == found[1].id
    assert found[2].id == old.id
    assert counts(lab)[0] == 3


def test_a_key_that_somebody_else_is_using_right_now_is_contended(lab, own):
    with Session(own) as session:
        lab.start(idempotency_key="k1", session=session)
        with pytest.raises(KeyContended):
            lab.start(idempotency_key="k1")
        session.rollback()
    assert counts(lab) == (0, 0, 0, 0)


def test_a_waiting_dispatch_gets_the_trace_that_the_other_transaction_commits(lab, own):
    found = []
    with Session(own) as session:
        first = lab.start(idempotency_key="k1", session=session)
        thread = threading.Thread(target=lambda: found.append(lab.start(idempotency_key="k1").id))
        thread.start()
        lab.until_blocked(1)
        session.commit()
        thread.join(timeout=10)
    assert found == [first.id]


def test_a_contended_key_at_repeatable_read_has_an_error_of_its_own(lab, own):
    with Session(own.execution_options(isolation_level="REPEATABLE READ")) as session:
        session.execute(sa.text("SELECT 1 FROM own"))
        lab.start(idempotency_key="k1")
        with pytest.raises(KeyContended):
            lab.start(idempotency_key="k1", session=session)


# --- inside a caller's transaction


def test_nothing_exists_and_nothing_rings_before_the_callers_commit(lab, own):
    with Session(own) as session:
        session.execute(sa.text("INSERT INTO own VALUES (1)"))
        trace = lab.start({"answer": 1}, session=session)
        assert (counts(lab)[0], rung(lab)) == (0, [])
        session.commit()
    assert rung(lab) == [trace.id]
    lab.drain()
    assert trace.result(0) == 1


def test_a_rollback_takes_the_trace_with_the_callers_rows(lab, own):
    with Session(own) as session:
        session.execute(sa.text("INSERT INTO own VALUES (1)"))
        lab.start(session=session, idempotency_key="k")
        session.rollback()
    assert (counts(lab), rung(lab)) == ((0, 0, 0, 0), [])
    assert lab.rows("SELECT * FROM own") == []


def test_a_savepoint_that_is_rolled_back_takes_its_trace_and_its_ring(lab, own):
    with Session(own) as session:
        kept = lab.start(session=session)
        nested = session.begin_nested()
        lab.start(session=session)
        nested.rollback()
        session.commit()
    assert rung(lab) == [kept.id]
    assert counts(lab)[0] == 1


def test_a_released_savepoint_rings_with_the_root_commit_whatever_later_savepoints_do(lab, own):
    with Session(own) as session:
        with session.begin_nested():
            kept = lab.start(session=session)
        assert rung(lab) == []
        for _ in range(20):
            nested = session.begin_nested()
            lab.start(session=session)
            nested.rollback()
            del nested
        session.commit()
    assert rung(lab) == [kept.id]


def test_an_inner_savepoint_goes_with_the_outer_one(lab, own):
    with Session(own) as session:
        outer = session.begin_nested()
        with session.begin_nested():
            lab.start(session=session)
        outer.rollback()
        session.commit()
    assert (counts(lab)[0], rung(lab)) == (0, [])


def test_a_session_that_is_closed_without_commit_never_rings(lab, own):
    session = Session(own)
    lab.start(session=session)
    session.close()
    session.execute(sa.text("INSERT INTO own VALUES (1)"))
    session.commit()
    session.close()
    assert (counts(lab)[0], rung(lab)) == (0, [])


def test_a_refused_dispatch_leaves_the_callers_transaction_usable(lab, own):
    lab.start(idempotency_key="k1")
    with Session(own) as session:
        session.execute(sa.text("INSERT INTO own VALUES (7)"))
        with pytest.raises(KeyConflict):
            lab.start(idempotency_key="k1", payload={"x": 1}, session=session)
        session.commit()
    assert lab.rows("SELECT n FROM own") == [{"n": 7}]


def test_what_the_session_holds_is_flushed_first_and_its_lock_timeout_is_put_back(lab, own):
    with Session(own) as session:
        session.execute(sa.text("SET LOCAL lock_timeout = '1234ms'"))
        lab.start(session=session)
        assert session.scalar(sa.text("SELECT current_setting('lock_timeout')")) == "1234ms"
        assert session.scalar(sa.text("SELECT current_setting('synchronous_commit')")) == "on"
        session.commit()
        lab.bells.waiting.clear()
        assert session.scalar(sa.text("SELECT current_setting('lock_timeout')")) != "1234ms"


def test_a_ring_that_fails_does_not_raise_into_the_callers_commit(lab, own):
    with Session(own) as session:
        trace = lab.start(session=session)
        lab.bells.ring = lambda rings: (_ for _ in ()).throw(RuntimeError("no broker"))
        lab.mesh.client._ring = lab.bells.ring
        session.commit()
    assert trace.status() == "queued"


def test_an_async_session_dispatches_through_run_sync(lab, database_url):
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def work():
        engine = create_async_engine(sa.make_url(database_url).set(drivername="postgresql+psycopg_async"))
        async with AsyncSession(engine) as session:
            trace = await session.run_sync(lambda one: lab.start({"answer": 2}, session=one))
            assert rung(lab) == []
            await session.commit()
        await engine.dispose()
        return trace

    trace = asyncio.run(work())
    assert rung(lab) == [trace.id]


def test_an_async_session_given_as_it_is_says_what_to_do(lab):
    class LikeAsyncSession:
        async def run_sync(self, function):
            return function

    with pytest.raises(Mistake, match="run_sync"):
        lab.start(session=LikeAsyncSession())


@pytest.mark.parametrize("place", ["postgresql", "sqlite"])
def test_a_session_on_a_database_without_a_mesh_has_an_error_of_its_own(lab, database_url, place):
    elsewhere = sa.make_url(database_url).set(drivername="postgresql+psycopg", database="postgres")
    engine = sa.create_engine(elsewhere if place == "postgresql" else "sqlite://")
    with Session(engine) as session, pytest.raises(DatabaseNotMigrated, match="without a mesh"):
        lab.start({"answer": 1}, session=session, idempotency_key="k")
    engine.dispose()


def test_a_session_in_somebody_elses_transaction_is_not_rung(lab, own):
    with own.connect() as connection:
        transaction = connection.begin()
        session = Session(connection, join_transaction_mode="create_savepoint")
        trace = lab.start(session=session)
        session.commit()
        session.close()
        transaction.commit()
    assert rung(lab) == []
    assert trace.status() == "queued"


def test_many_dispatches_of_one_transaction_ring_in_order_after_it(lab, own):
    with Session(own) as session:
        made = [lab.start(session=session).id for _ in range(5)]
        session.commit()
    assert rung(lab) == made


# --- many at once


def test_two_thousand_intents_take_few_statements_and_one_publish(lab):
    from agentmesh.infrastructure.database import Tx

    statements, rings = [], []
    lab.mesh.client._ring = lambda some: rings.append(len(some))
    lab.start()
    rings.clear()
    original = Tx.all

    def spying(self, sql, params=None):
        statements.append(sql)
        return original(self, sql, params)

    Tx.all = spying
    try:
        made = lab.mesh.router.dispatch_many([
            {"intent": "work", "from_id": "t", "to_id": "puppet", "context_id": f"c-{n}", "payload": {"n": n}}
            for n in range(2000)
        ])  # fmt: skip
    finally:
        Tx.all = original
    assert len({one.id for one in made}) == 2000
    assert counts(lab)[:3] == (2001, 2001, 2001)
    assert len(statements) <= 8
    assert rings == [2000]
    lab.rows("UPDATE mesh.traces SET rung_at = now()")


def test_many_intents_are_accepted_together_or_not_at_all(lab):
    good = {"intent": "work", "from_id": "t", "to_id": "puppet", "context_id": "c", "payload": {}}
    with pytest.raises(Exception, match="E_AGENT_UNKNOWN"):
        lab.mesh.router.dispatch_many([good] * 3 + [good | {"to_id": "nobody"}])
    assert counts(lab) == (0, 0, 0, 0)


# --- payloads by size


def sized(total):
    """A payload whose JSON is exactly this long."""
    payload = {"do": [], "text": ""}
    payload["text"] = "x" * (total - len(jsontext.dumps(payload, what="it")))
    return payload


@pytest.mark.parametrize(
    ("size", "by_reference"),
    [(32 * KIB - 1, False), (32 * KIB, False), (32 * KIB + 1, True), (64 * KIB - 1, True), (64 * KIB + 1, True)],
)
def test_a_large_payload_travels_by_reference_and_arrives_whole(lab, size, by_reference):
    payload = sized(size)
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload)
    assert (list(lab.trace(trace)["payload"]) == ["$blob"]) == by_reference
    assert len(lab.rows("SELECT jws FROM mesh.envelopes")[0]["jws"]) <= 64 * KIB
    assert lab.mesh.blobs.expand("default", lab.trace(trace)["payload"]) == payload


@pytest.mark.parametrize(("size", "fits"), [(16 * KIB * KIB, True), (16 * KIB * KIB + 1, False)])
def test_a_payload_over_16_mib_is_refused_before_anything_is_written(lab, size, fits):
    payload = sized(size)
    if fits:
        assert lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload).status() == "queued"
        return
    with pytest.raises(PayloadTooLarge):
        lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload)
    assert counts(lab) == (0, 0, 0, 0)
    assert lab.rows("SELECT 1 FROM mesh.blobs") == []


def test_the_same_payload_in_two_tenants_is_two_blobs(lab, database_url, tmp_path):
    mesh, _ = another_tenant(lab, database_url, tmp_path)
    try:
        for one in (lab.mesh, mesh):
            one.router.dispatch("work", "tester", "puppet", "c-1", sized(40 * KIB))
    finally:
        mesh.close()
    assert len(lab.rows("SELECT 1 FROM mesh.blobs")) == 2


# --- a database that is away


def test_a_database_that_is_away_fails_fast_with_its_own_error(lab, tmp_path):
    from agentmesh.infrastructure.settings import load
    from agentmesh.wiring import build

    url = "postgresql://root@127.0.0.1:1/nothing"
    mesh = build(load(flags={"database.url": url}, environ={}, cwd=tmp_path), root=tmp_path)
    try:
        with pytest.raises(DatabaseUnreachable, match="E_DATABASE"):
            mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    finally:
        mesh.close()


def test_a_server_that_dropped_every_pooled_connection_is_dispatched_to_at_once(lab):
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(lab.mesh.db.checkout()).all("SELECT 1")
    lab.start()
    lab.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert lab.start().status() == "queued"


# --- an answer to COMMIT that was lost (rule 16)


class Cut(Database):
    """A database whose first `times` transactions lose their answer: `landed` says whether they had committed."""

    def lose(self, *, times=1, landed=True):
        self.left, self.landed = times, landed

    def checkout(self):
        return _Answerless(self, super().checkout())


class _Answerless:
    def __init__(self, db, inner):
        self.db, self.inner = db, inner

    def __enter__(self):
        tx = self.inner.__enter__()
        if getattr(self.db, "left", 0) and not self.db.landed:
            self.db.left -= 1
            self.inner.__exit__(None, None, None)
            raise psycopg.OperationalError("the connection was cut before anything was sent")
        return tx

    def __exit__(self, *exc):
        self.inner.__exit__(*exc)
        if exc[0] is None and getattr(self.db, "left", 0):
            self.db.left -= 1
            raise psycopg.OperationalError("the answer to COMMIT was lost")


@pytest.fixture
def cut(lab):
    made = Cut(lab.url)
    yield made
    made.close()


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("key", [None, "k1"])
def test_a_dispatch_whose_answer_was_lost_is_settled_by_repeating_it(lab, cut, landed, key):
    lab.start()
    lab.mesh.client._db = cut
    cut.lose(landed=landed)
    trace = lab.start(idempotency_key=key)
    assert lab.trace(trace)["status"] == "queued"
    assert counts(lab)[:3] == (2, 2, 2)
    assert rung(lab)[-1] == trace.id


def test_a_batch_with_an_old_key_whose_answer_was_lost_is_settled_too(lab, cut):
    old = lab.start(idempotency_key="old")
    intent = {"intent": "work", "from_id": "tester", "to_id": "puppet", "context_id": "c-1", "payload": {"do": []}}
    lab.mesh.client._db = cut
    cut.lose()
    found = lab.mesh.router.dispatch_many([intent | {"idempotency_key": "old"}, intent | {"idempotency_key": "new"}])
    assert found[0].id == old.id
    assert counts(lab)[0] == 2


def test_an_answer_that_stays_lost_is_unknown_and_names_the_trace(lab, cut):
    lab.start()
    lab.mesh.client._db = cut
    cut.lose(times=2)
    with pytest.raises(OutcomeUnknown) as unknown:
        lab.start()
    newest = lab.rows("SELECT id FROM mesh.traces ORDER BY id DESC LIMIT 1")[0]["id"]
    assert str(newest) in str(unknown.value)


def test_a_database_that_went_away_in_the_commit_is_unknown_not_refused(lab, cut):
    class Gone:
        def __init__(self):
            self.calls = 0

        def checkout(self):
            self.calls += 1
            if self.calls == 1:
                cut.lose()
                return cut.checkout()
            raise DatabaseUnreachable("gone")

    lab.start()
    lab.mesh.client._db = Gone()
    with pytest.raises(OutcomeUnknown):
        lab.start()


def test_a_statement_that_fails_for_another_reason_is_not_taken_for_a_lost_answer(lab):
    lab.start()
    lab.rows("ALTER TABLE mesh.envelopes ADD CONSTRAINT no_more CHECK (kid = 'x') NOT VALID")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            lab.start()
    finally:
        lab.rows("ALTER TABLE mesh.envelopes DROP CONSTRAINT no_more")
    assert counts(lab)[0] == 1
