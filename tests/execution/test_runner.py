"""One call as a leaf: what a tool raises is its failure, transactional tools apply their SQL exactly once."""

import contextlib
import threading

import psycopg
import pytest
import sqlalchemy as sa

from agentmesh.errors import DatabaseUnreachable, Permanent, PoolTimeout, Retry
from agentmesh.execution.tools import register_tool
from agentmesh.infrastructure import faults
from agentmesh.records import Backoff
from agentmesh.state.calls import TaskManager

AT_ONCE = Backoff(base_s=0, cap_s=0)


@pytest.fixture
def ledger(database_url):
    """A table of the tool's own."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS ledger (n int)")
        connection.execute("DELETE FROM ledger")
    return lambda lab: [row["n"] for row in lab.rows("SELECT n FROM ledger ORDER BY n")]


def book(ctx, n):
    ctx.tx.execute(sa.text("INSERT INTO ledger VALUES (:n)"), {"n": n})


def failure(lab, trace):
    return lab.calls(trace)[0]["error"]


# --- what a tool raises


@pytest.mark.parametrize("raised", [
    ValueError("no"), psycopg.OperationalError("its own database is down"), psycopg.InterfaceError("closed"),
    KeyError("k"), SystemError("odd"), ExceptionGroup("many", [ValueError("a")]),
])  # fmt: skip
def test_whatever_a_tool_raises_is_its_calls_failure(make_lab, tools, raised):
    @register_tool("raises", registry=tools, attempts=1)
    def raises() -> int:
        raise raised

    lab = make_lab()
    trace = lab.open("raises")
    lab.drain()
    assert trace.status() == "failed"
    assert failure(lab, trace)["code"] == "E_TOOL"
    assert lab.outcomes(trace) == ["failed"]


def test_a_tool_whose_own_database_is_down_falls_back(make_lab, tools):
    @register_tool("raises", registry=tools, attempts=1)
    def raises() -> int:
        raise psycopg.OperationalError("down")

    @register_tool("works", registry=tools)
    def works() -> int:
        return 3

    lab = make_lab()
    trace = lab.start({"tools": ["raises", "works"], "strategy": "fallback"})
    lab.drain()
    assert trace.result(0) == 3


def test_permanent_is_not_retried_and_retry_says_when(make_lab, tools):
    runs = []

    @register_tool("fatal", registry=tools, attempts=5, backoff=AT_ONCE)
    def fatal() -> int:
        runs.append("fatal")
        raise Permanent("never")

    @register_tool("later", registry=tools, attempts=5, backoff=AT_ONCE)
    def later() -> int:
        runs.append("later")
        raise Retry("busy", after=500)

    lab = make_lab()
    trace = lab.start({"tools": ["fatal", "later"], "strategy": "parallel", "require": 1})
    lab.drain()
    assert sorted(runs) == ["fatal", "later"]
    by_tool = {one["tool"]: one for one in lab.calls(trace)}
    assert by_tool["fatal"]["status"] == "failed"
    assert by_tool["later"]["status"] == "ready"
    assert by_tool["later"]["wake_at"] is not None


def test_our_own_database_that_is_away_is_no_failure_of_the_tool(make_lab, tools):
    @register_tool("works", registry=tools, attempts=1)
    def works() -> int:
        faults.arm("call.after_effect", away)
        return 1

    def away():
        faults.disarm()
        lab.mesh.runner._blobs._db = Away()

    class Away:
        def once(self, *_):
            lab.mesh.runner._blobs._db = lab.mesh.db
            raise psycopg.OperationalError("away")

        read = once

    lab = make_lab()
    lab.mesh.blobs._inline = 0  # so that the result has to be put aside
    trace = lab.open("works")
    lab.drain()
    assert trace.result(0) == 1
    assert (lab.calls(trace)[0]["failures"], lab.outcomes(trace)) == (0, ["won"])


def test_a_tool_that_this_worker_does_not_have_fails_its_call_for_good(lab, tools):
    trace = lab.open("work")
    tools.unregister("work")
    lab.drain()
    assert failure(lab, trace)["code"] == "E_TOOL_UNKNOWN"


def test_an_async_tool_is_awaited(make_lab, tools):
    import asyncio

    @register_tool("slowly", registry=tools)
    async def slowly(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    @register_tool("slowly-inline", registry=tools, inline=True)
    async def slowly_inline(n: int) -> int:
        await asyncio.sleep(0)
        return n + 2

    lab = make_lab()
    trace = lab.start({"tools": [{"tool": "slowly", "args": {"n": 1}}]}, {"tools": [{"tool": "slowly-inline", "args": {"n": 1}}]},
                      policy={"trigger_next_action": True})  # fmt: skip
    lab.drain()
    assert trace.result(0) == {"slowly": 2, "slowly-inline": 3}


# --- transactional tools


@pytest.fixture
def booked(make_lab, tools, ledger):
    """(lab, start, ledger): `start(n)` opens a trace whose one call books n."""

    @register_tool("book", registry=tools, tx=True, attempts=3, backoff=AT_ONCE)
    def book_it(ctx, n: int) -> int:
        book(ctx, n)
        return n

    lab = make_lab()
    return lab, lambda n: lab.open({"tool": "book", "args": {"n": n}}), lambda: ledger(lab)


def test_a_transactional_tools_sql_commits_with_its_result(booked):
    lab, start, entries = booked
    trace = start(4)
    lab.drain()
    assert (trace.result(0), entries()) == (4, [4])


def test_a_transactional_tool_that_lost_its_call_meanwhile_is_rolled_back(booked):
    lab, start, entries = booked
    trace = start(5)

    def lose():
        faults.disarm()
        lab.rows("UPDATE mesh.calls SET epoch = epoch + 1, status = 'ready', worker_id = NULL, claim_id = NULL")
        lab.rows("UPDATE mesh.attempts SET outcome = 'lost', ended_at = now() WHERE kind = 'tool'")

    faults.arm("call.in_commit", lose)
    lab.drain()
    assert entries() == []
    assert lab.outcomes(trace) == ["stale"]


def test_a_transactional_tool_that_raises_leaves_nothing(make_lab, tools, ledger):
    @register_tool("book", registry=tools, tx=True, attempts=1)
    def book_it(ctx) -> int:
        book(ctx, 1)
        raise ValueError("no")

    lab = make_lab()
    trace = lab.open("book")
    lab.drain()
    assert (trace.status(), ledger(lab)) == ("failed", [])


@pytest.mark.parametrize("how", ["commit", "rollback", "sql"])
def test_a_transactional_tool_that_ends_the_transaction_itself_fails_for_good(make_lab, tools, ledger, how):
    @register_tool("book", registry=tools, tx=True, attempts=5, backoff=AT_ONCE)
    def book_it(ctx) -> int:
        if how == "sql":
            ctx.tx.exec_driver_sql("COMMIT")
        else:
            getattr(ctx.tx, how)()
        return 1

    lab = make_lab()
    trace = lab.open("book")
    lab.drain()
    assert failure(lab, trace)["code"] == "E_TOOL_COMMITTED"
    assert lab.outcomes(trace) == ["failed"]
    assert ledger(lab) == []


def test_a_savepoint_inside_a_transactional_tool_is_its_own_business(make_lab, tools, ledger):
    @register_tool("book", registry=tools, tx=True)
    def book_it(ctx) -> int:
        book(ctx, 1)
        inner = ctx.tx.begin_nested()
        book(ctx, 2)
        inner.rollback()
        return 1

    lab = make_lab()
    lab.open("book")
    lab.drain()
    assert ledger(lab) == [1]


def test_a_connection_lent_to_a_transactional_tool_goes_back_in_autocommit(booked):
    lab, start, _ = booked
    start(1)
    lab.drain()
    with lab.mesh.db.checkout() as tx:
        assert tx.connection.autocommit
        assert tx.connection.info.transaction_status.name == "IDLE"


@pytest.mark.parametrize("landed", [True, False])
def test_a_transactional_commit_without_an_answer_is_settled_by_releasing_it(booked, landed):
    lab, start, entries = booked
    trace = start(6)

    def answerless(connection):
        sa.event.remove(lab.mesh.db.engine, "commit", answerless)
        if landed:
            connection.connection.driver_connection.commit()
        raise sa.exc.OperationalError("COMMIT", None, psycopg.OperationalError("connection lost"))

    sa.event.listen(lab.mesh.db.engine, "commit", answerless)
    lab.drain()
    assert (trace.result(0), entries()) == (6, [6])
    assert lab.outcomes(trace) == (["won"] if landed else ["released", "won"])
    assert lab.calls(trace)[0]["failures"] == 0


def cut_sessions(lab):
    faults.disarm()
    lab.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'idle in transaction'"
    )


def test_a_transaction_whose_connection_is_cut_is_released_and_runs_again(booked):
    lab, start, entries = booked
    trace = start(7)
    faults.arm("call.after_effect", lambda: cut_sessions(lab))
    lab.drain()
    assert (trace.result(0), entries()) == (7, [7])
    assert lab.outcomes(trace) == ["released", "won"]
    assert lab.calls(trace)[0]["failures"] == 0


def test_a_session_that_idles_in_its_transaction_is_ended_by_the_server_and_counts_as_timed_out(
    make_lab, tools, ledger
):
    waits = threading.Event()

    @register_tool("idles", registry=tools, tx=True, attempts=1)
    def idles(ctx) -> int:
        book(ctx, 1)
        ctx.tx.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '50ms'")
        waits.wait(0.4)
        return 1

    lab = make_lab()
    trace = lab.open("idles")
    lab.drain()
    assert (trace.status(), lab.outcomes(trace), ledger(lab)) == ("failed", ["timeout"], [])
    with lab.mesh.db.checkout() as tx:
        limit = tx.one("SELECT current_setting('idle_in_transaction_session_timeout') AS s")
    assert limit == {"s": "5s"}


# --- a recorded result whose answer was lost (rule 16)


@pytest.mark.parametrize("landed", [True, False])
def test_a_result_whose_answer_was_lost_is_recorded_once_and_rings_the_join(lab, landed):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])

    class Once:
        def __init__(self):
            self.left = 1

        def checkout(self):
            outer = self

            class Held:
                def __enter__(self):
                    self.inner = lab.mesh.db.checkout()
                    tx = self.inner.__enter__()
                    if outer.left and not landed:
                        outer.left -= 1
                        self.inner.__exit__(None, None, None)
                        raise psycopg.OperationalError("cut before")
                    return tx

                def __exit__(self, *exc):
                    self.inner.__exit__(*exc)
                    if outer.left:
                        outer.left -= 1
                        raise psycopg.OperationalError("cut after")

            return Held()

        def once(self, *args):
            return lab.mesh.db.once(*args)

    settled = TaskManager(Once()).record(claimed, "won", result=11)
    assert [ring.kind for ring in settled.rings] == ["step"]
    assert lab.outcomes(trace) == ["won"]
    assert lab.step(trace)["wins"] == 1
    lab.bells.waiting.clear()
    lab.bells.ring(settled.rings)
    lab.drain()
    assert trace.result(0) == 11


def test_a_once_tool_whose_result_meets_a_database_that_is_away_runs_once(make_lab, tools, monkeypatch):
    ran, refused = [], []

    @register_tool("pay", registry=tools, effect="once")
    def pay() -> int:
        ran.append(1)
        real = lab.mesh.db.engine.raw_connection

        def away():
            if len(refused) == 4:
                return real()
            refused.append(1)
            raise psycopg.OperationalError("away")

        monkeypatch.setattr(lab.mesh.db.engine, "raw_connection", away)
        return 7

    lab = make_lab()
    trace = lab.start({"tools": ["pay"]})
    lab.drain()
    assert trace.result(0) == 7
    assert (len(ran), len(refused), lab.outcomes(trace)) == (1, 4, ["won"])


def test_a_result_whose_settling_was_cut_too_is_known_when_it_is_recorded_again(lab):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])
    lab.settle(claimed, result=11)
    settled = TaskManager(lab.mesh.db).record(claimed, "won", result=11)
    assert settled is not None
    assert (settled.status, [ring.kind for ring in settled.rings]) == ("done", ["step"])
    assert lab.outcomes(trace) == ["won"]


def test_an_end_that_others_recorded_is_not_taken_for_our_result(lab):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])
    lab.settle(claimed, "timeout")
    assert TaskManager(lab.mesh.db).record(claimed, "won", result=11) is None
    assert lab.outcomes(trace) == ["stale"]


def test_settling_a_result_writes_so_that_its_commit_waits_for_the_standby(lab):
    trace = lab.open("work")
    claimed = lab.claim(lab.calls(trace)[0])
    lab.settle(claimed, result=11)
    version = "SELECT xmin::text FROM mesh.attempts WHERE id = %(id)s"
    [before] = lab.rows(version, id=claimed.attempt_id)
    assert TaskManager(lab.mesh.db).known(claimed, "won") is not None
    assert lab.rows(version, id=claimed.attempt_id) != [before]


def test_a_server_that_refuses_its_connection_is_no_failure_of_a_transactional_tool(booked, monkeypatch):
    lab, start, entries = booked
    trace = start(8)
    refusals = monkeypatch.context()

    def refuse():
        refusals.__exit__(None, None, None)
        raise psycopg.OperationalError("the server is starting up")

    def restart():
        faults.disarm()
        refusals.__enter__().setattr(lab.mesh.db.engine, "raw_connection", refuse)

    faults.arm("call.after_claim", restart)
    with pytest.raises(DatabaseUnreachable):
        lab.drain()
    [call] = lab.calls(trace)
    assert (call["status"], call["failures"], entries()) == ("running", 0, [])


def test_a_pool_that_has_no_connection_left_lends_none(lab):
    engine = lab.mesh.db.engine
    engine.pool._timeout = 0.1
    with contextlib.ExitStack() as taken:
        for _ in range(engine.pool.size() + engine.pool._max_overflow):
            taken.enter_context(engine.connect())
        with pytest.raises(PoolTimeout), lab.mesh.db.lend():
            pass


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_transactional_tool_whose_own_statement_meets_the_cut_is_released_and_runs_again(
    make_lab, tools, ledger, wrapped
):
    runs = []

    @register_tool("book", registry=tools, tx=True, attempts=1)
    def book_it(ctx) -> int:
        runs.append(1)
        book(ctx, 9)
        if len(runs) == 1:
            cut_sessions(lab)
        try:
            book(ctx, 10)
        except sa.exc.DBAPIError:
            if wrapped:
                raise ValueError("could not book") from None
            raise
        return 1

    lab = make_lab()
    trace = lab.open("book")
    lab.drain()
    assert (trace.result(0), ledger(lab)) == (1, [9, 10])
    assert lab.outcomes(trace) == ["released", "won"]


def test_a_transactional_tool_that_meets_the_end_of_its_idle_session_has_timed_out(make_lab, tools, ledger):
    waits = threading.Event()

    @register_tool("idles", registry=tools, tx=True, attempts=1)
    def idles(ctx) -> int:
        ctx.tx.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '50ms'")
        waits.wait(0.4)
        book(ctx, 1)
        return 1

    lab = make_lab()
    trace = lab.open("idles")
    lab.drain()
    assert (trace.status(), lab.outcomes(trace), ledger(lab)) == ("failed", ["timeout"], [])
