"""What goes into the database must not be refused by it for one character, and no connection is left behind."""

import contextlib
import json

import psycopg
import pytest

from agentmesh.execution.tools import register_tool
from agentmesh.infrastructure.database import jsonb


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a\x00b", "a\ufffdb"),
        ("a\\\x00b", "a\\\ufffdb"),
        ("a\\u0000b", "a\\u0000b"),
        ("a\udc80b", "a?b"),
        ("é😀", "é😀"),
    ],
)
def test_text_that_postgresql_cannot_hold_is_replaced_and_all_other_text_kept(said, kept):
    assert json.loads(jsonb({"said": said})) == {"said": kept}


def test_a_rollback_whose_connection_is_lost_is_still_no_error(lab):
    with lab.mesh.db.begin() as tx:
        tx.all("UPDATE mesh.workers SET name = 'nobody'")
        pid = tx.connection.info.backend_pid
        lab.rows("SELECT pg_terminate_backend(%(pid)s, 5000)", pid=pid)
        raise psycopg.Rollback
    assert lab.rows("SELECT name FROM mesh.workers") == [{"name": "hand"}]


@pytest.mark.parametrize("way", ["checkout", "lend"])
def test_when_one_connection_breaks_what_others_still_hold_is_closed_as_it_comes_back(lab, way):
    db = lab.mesh.db
    with getattr(db, way)() as held:
        driver = held.connection if way == "checkout" else held.connection.driver_connection
        with contextlib.suppress(psycopg.OperationalError), db.checkout() as broken:
            broken.one("SELECT pg_terminate_backend(pg_backend_pid())")
        assert not driver.closed
    assert driver.closed


@pytest.mark.parametrize("said", ["a NUL \x00", "half a pair \udc80"])
@pytest.mark.parametrize("inline", [False, True])
def test_a_tool_whose_exception_cannot_be_stored_fails_and_is_not_run_for_ever(make_lab, tools, said, inline):
    @register_tool("odd", registry=tools, attempts=1, inline=inline)
    def odd() -> int:
        raise ValueError(said)

    lab = make_lab()
    trace = lab.start({"tools": ["odd"]})
    lab.drain()
    assert trace.status() == "failed"


def test_a_note_that_cannot_be_stored_does_not_stick_its_trace(make_lab):
    def mind(session):
        session.note("REASONER_PROMPT", {"prompt": "a\x00b"})
        return {"answer": 1}

    lab = make_lab(reasoner=mind)
    trace = lab.start()
    lab.drain()
    assert trace.result(0) == 1
