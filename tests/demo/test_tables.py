"""The demo's tables on a real PostgreSQL: loaded once, searched by full text, filed into."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import psycopg
import pytest
import sqlalchemy as sa

from agentmesh.demo import data, tables
from agentmesh.demo.cases import VOTERS, Similar, is_settled, vote
from agentmesh.errors import Mistake
from agentmesh.records import new_id
from agentmesh.testing import need


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database of this module's own."""
    server = need("AGENTMESH_TEST_POSTGRES_URL")
    name = f"amtest_demo_{new_id().hex[-12:]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield psycopg.conninfo.make_conninfo(server, dbname=name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def loaded(database: str) -> str:
    with psycopg.connect(database) as connection:
        assert tables.prepare(connection)
    return database


@pytest.fixture(scope="module")
def engine(loaded: str) -> Iterator[sa.Engine]:
    made = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(loaded))
    yield made
    made.dispose()


def test_loading_fills_every_table(loaded: str) -> None:
    with psycopg.connect(loaded) as connection:
        counts = [
            connection.execute(f"SELECT count(*) FROM demo.{table}").fetchone()
            for table in ("past_cases", "open_cases", "filed_cases")
        ]
    assert counts == [(10_003,), (910,), (0,)]


def test_preparing_again_changes_nothing(loaded: str) -> None:
    with psycopg.connect(loaded) as connection:
        assert not tables.prepare(connection)


def test_two_who_prepare_at_once_load_once(database: str) -> None:
    name = f"amtest_demo_{new_id().hex[-12:]}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        together = Barrier(2)

        def prepare(_: int) -> bool:
            with psycopg.connect(psycopg.conninfo.make_conninfo(database, dbname=name)) as mine:
                together.wait(10)
                return tables.prepare(mine)

        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(prepare, range(2)))
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert sorted(made) == [False, True]


def test_a_schema_of_somebody_elses_is_left_alone(database: str) -> None:
    name = f"amtest_demo_{new_id().hex[-12:]}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(psycopg.conninfo.make_conninfo(database, dbname=name)) as mine:
            mine.execute("CREATE SCHEMA demo CREATE TABLE treasure (gold int)")
            with pytest.raises(Mistake, match="did not make"):
                tables.prepare(mine)
            there = mine.execute("SELECT to_regclass('demo.treasure') IS NOT NULL").fetchone()
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    assert there == (True,)


def test_the_most_similar_case_comes_first(engine: sa.Engine) -> None:
    with engine.begin() as tx:
        found = tables.similar(tx, "My card still hasn't arrived!", limit=5, wide=True)
    assert len(found) == 5
    assert found[0]["category"] == "card_arrival"
    assert [one["rank"] for one in found] == sorted((one["rank"] for one in found), reverse=True)


def test_a_rare_word_weighs_more_than_many_common_ones(engine: sa.Engine) -> None:
    with engine.begin() as tx:
        (first,) = tables.similar(tx, "what can I do with my mastercard", limit=1, wide=False)
    assert "mastercard" in first["text"].lower()


@pytest.mark.parametrize("text", ["", "  ", "?!", "zzzqqq xyzzyx", "\\ ' \" | & ! ( ) :* <-> %s %(text)s", "привет"])
def test_odd_texts_find_what_they_find_and_break_nothing(engine: sa.Engine, text: str) -> None:
    with engine.begin() as tx:
        assert len(tables.similar(tx, text, limit=3, wide=True)) <= 3


def test_open_cases_are_one_customers_oldest_first(engine: sa.Engine) -> None:
    with engine.begin() as tx:
        found = [one for customer in range(1, 51) for one in tables.open_cases(tx, customer)]
        (some,) = [tables.open_cases(tx, data.customer_of(11))]
    assert found
    assert {one["id"] % tables.OPEN_EVERY for one in found} == {0}
    assert 11 in {one["id"] for one in some}
    assert [one["age_days"] for one in some] == sorted((o["age_days"] for o in some), reverse=True)


def test_a_case_filed_twice_shows_twice_and_only_in_its_run(loaded: str, engine: sa.Engine) -> None:
    run = str(new_id())
    with engine.begin() as tx:
        for _ in range(2):
            tables.file_case(tx, trace_id=str(new_id()), run=run, body='{"case": "test-1"}')
    with psycopg.connect(loaded) as connection:
        assert tables.filed(connection, run) == [{"case": "test-1"}] * 2
        assert tables.filed(connection, "another") == []


def classified(tx: sa.Connection, text: str) -> str | None:
    for turn, limit in VOTERS.items():
        rows = tables.similar(tx, text, limit=limit, wide=turn > 1)
        found = vote([Similar(**row) for row in rows], round=turn)
        if found and is_settled(found):
            return found.category
    return None


def test_the_vote_agrees_with_most_labels_of_unseen_messages(engine: sa.Engine) -> None:
    messages = data.load_test_messages(200)
    with engine.begin() as tx:
        agreed = sum(classified(tx, one.text) == one.category for one in messages)
    assert agreed / len(messages) >= 0.8
