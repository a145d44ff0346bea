"""Memory by meaning: what is found, what never is, and that a write waits for no model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import NoEmbedder
from agentmesh.execution.callbacks import HANDLERS, register_callback
from agentmesh.infrastructure import faults, migrate
from agentmesh.infrastructure.database import Database
from agentmesh.infrastructure.postgres import EmbeddedPostgres
from agentmesh.records import new_id
from agentmesh.state import forgetting, vectors
from agentmesh.state.memory import MemoryEngine
from agentmesh.testing import missing
from tests.meanings import Meanings, embeds, known
from tests.model_server import answers, model_server

FACTS = {"diet": "allergic to nuts", "billing": "she pays by card", "stay": {"wish": "a quiet room"}}
FOOD = "any food intolerances?"


@pytest.fixture
def toy() -> Iterator[Meanings]:
    made = Meanings()
    before = dict(HANDLERS)

    @register_callback("learn")
    def learn(result: Any, session: Any) -> Any:
        facts = session.payload.get("learn", {})
        return {"memory": [{"key": key, "value": value} for key, value in facts.items()]}

    with known(toy=made, other=Meanings()):
        yield made
    HANDLERS.clear()
    HANDLERS.update(before)


@pytest.fixture
def lab(make_lab: Any, toy: Meanings) -> Any:
    return make_lab(memory={"embedder": "toy"}, policy={"callbacks": ["learn"]})


def learn(lab: Any, facts: dict[str, Any], **options: Any) -> Any:
    trace = lab.start({"answer": 1}, payload={"learn": facts}, **options)
    lab.drain()
    return trace


def index(lab: Any, model: str = "toy") -> int:
    return sum(one.catch_up() for one in lab.mesh.indexers() if one.model == model)


def found(lab: Any, question: str = FOOD, *, context: str = "c-1", **options: Any) -> list[str]:
    rows = lab.mesh.memory(context).query(question, by="meaning", **options)
    return [row["key"] for row in rows if row["score"] > 0.1]


def test_an_entry_is_found_by_what_it_means_with_who_wrote_it(lab: Any) -> None:
    learn(lab, FACTS)
    lab.mesh.memory("c-1").store("menu", "no peanut", origin="person:ann", trusted=True)
    index(lab)
    rows = lab.mesh.memory("c-1").query(FOOD, by="meaning")
    assert [(one["key"], one["origin"], one["trusted"]) for one in rows[:2]] == [
        ("menu", "person:ann", True), ("diet", "learn", False),
    ]  # fmt: skip
    assert rows[0]["score"] == pytest.approx(1.0)
    assert len(rows) == 4
    assert lab.mesh.memory("c-1").query("intolerances") == []


def test_an_entry_is_owed_its_vector_in_the_commit_that_writes_it_and_no_model_is_asked_in_one(
    lab: Any, toy: Meanings
) -> None:
    open_ = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    seen: list[Any] = []
    toy.before = lambda: seen.append(lab.rows(open_))
    trace = learn(lab, FACTS)
    assert (trace.result(0), toy.asked) == (1, [])
    assert lab.rows("SELECT count(*) AS n FROM mesh.vectors WHERE vector IS NULL")[0]["n"] == 3
    assert index(lab) == 3
    assert seen == [[]]


def test_a_write_is_committed_while_the_embedder_is_away_and_found_when_it_is_back(lab: Any, toy: Meanings) -> None:
    toy.away = True
    assert learn(lab, FACTS).result(0) == 1
    index(lab)
    [waiting, *_] = vectors.waiting(lab.mesh.db, "default", "toy")
    assert waiting["error"] == "the model's endpoint does not answer"
    toy.away = False
    assert index(lab) == 0  # not before its time
    lab.shift(60)
    assert index(lab) == 3
    assert found(lab) == ["diet"]


def test_one_text_that_is_refused_holds_no_other_up(lab: Any, toy: Meanings) -> None:
    toy.refused = "card"
    learn(lab, FACTS)
    index(lab)
    assert [row["error"] for row in vectors.waiting(lab.mesh.db, "default", "toy")] == [
        "the model's endpoint answered 400"
    ]
    assert found(lab) == ["diet"]


def test_an_endpoint_that_is_busy_is_asked_again_when_it_said(make_lab: Any, toy: Meanings) -> None:
    with model_server(answers(503, retry_after="120"), embeds) as server:
        endpoint = {"model": "small", "base_url": server.url}
        lab = make_lab(memory={"embedder": endpoint}, policy={"callbacks": ["learn"]})
        learn(lab, FACTS)
        index(lab, "small")
        lab.shift(100)
        assert index(lab, "small") == 0
        lab.shift(121)
        assert index(lab, "small") == 3
        lab.mesh.registry.announce(lab.mesh.db)
        assert found(lab) == ["diet"]


def test_entries_of_another_model_are_not_compared_but_embedded_again(lab: Any, make_lab: Any, toy: Meanings) -> None:
    learn(lab, FACTS)
    index(lab)
    later = make_lab(memory={"embedder": "other"}, policy={"callbacks": ["learn"]})
    later.mesh.registry.announce(later.mesh.db)
    assert found(later) == []
    assert later.mesh.memory("c-1").waiting() == 3
    assert index(later, "other") == 3
    assert found(later) == ["diet"]
    with pytest.raises(NoEmbedder):
        found(later, model="toy")


def test_only_the_newest_version_is_found_and_nothing_that_was_taken_back(lab: Any, toy: Meanings) -> None:
    learn(lab, FACTS)
    index(lab)
    learn(lab, {"diet": "likes gold"})
    assert found(lab) == []  # before its vector, too
    index(lab)
    assert found(lab) == []
    assert sorted(found(lab, "who pays?")) == ["billing", "diet"]
    steps = lab.rows("SELECT count(*) AS n FROM mesh.vectors")[0]["n"]
    assert steps == 3  # the vector of the older version went
    lab.rows("INSERT INTO mesh.memory (id, tenant_id, context_id, type, key, version, deleted, origin)"
             " VALUES (gen_random_uuid(), 'default', 'c-1', 'long_term', 'billing', 2, true, 'rewind')")  # fmt: skip
    assert found(lab, "who pays?") == ["diet"]


def test_what_is_forgotten_is_not_found_and_its_vector_is_gone(make_lab: Any, toy: Meanings) -> None:
    lab = make_lab(memory={"embedder": "toy", "keep": "1d"}, policy={"callbacks": ["learn"]})
    learn(lab, FACTS)
    index(lab)
    lab.shift(2 * 86_400)
    for context in forgetting.due(lab.mesh.db, batch=100):
        forgetting.forget(lab.mesh.db, context, batch=100)
    assert lab.rows("SELECT 1 FROM mesh.vectors") == []
    assert found(lab) == []


def test_nothing_of_another_context_or_tenant_is_found(lab: Any) -> None:
    learn(lab, FACTS)
    learn(lab, {"diet": "allergic to peanut"}, context_id="c-2")
    MemoryEngine(lab.mesh.db, tenant_id="acme", context_id="c-1").store("secret", "they eat nuts")
    vectors.owe(lab.mesh.db, "acme", "c-1", "toy")
    assert index(lab) == 5
    assert found(lab) == ["diet"]
    assert [row["value"] for row in lab.mesh.memory("c-2").query(FOOD, by="meaning")] == ["allergic to peanut"]
    near = vectors.nearest(lab.mesh.db, "acme", "c-1", "toy", [1, 0, 0], limit=10)
    assert [row["key"] for row in near.rows] == ["secret"]


def test_a_value_that_was_put_aside_is_embedded_by_what_it_says(lab: Any) -> None:
    learn(lab, {"notes": "allergic to nuts " + "x" * 100_000})
    index(lab)
    assert found(lab) == ["notes"]


def test_vectors_of_another_length_are_not_compared(lab: Any) -> None:
    learn(lab, FACTS)
    index(lab)
    lab.rows("UPDATE mesh.vectors SET vector = '{1, 0}', dims = 2 WHERE memory_id IN"
             " (SELECT id FROM mesh.memory WHERE key = 'diet')")  # fmt: skip
    assert found(lab) == []


def test_an_entry_that_is_written_anew_while_it_is_embedded_is_found_by_its_new_meaning(lab: Any) -> None:
    learn(lab, FACTS)
    faults.arm("index.before_fill", lambda: (faults.disarm(), learn(lab, {"diet": "likes gold"})))
    index(lab)
    assert found(lab) == []
    assert found(lab, "gold") == ["diet", "billing"]


@pytest.mark.parametrize("point", ["index.after_take", "index.before_fill"])
def test_what_a_dead_indexer_had_taken_is_embedded_by_another(lab: Any, point: str) -> None:
    def die() -> None:
        faults.disarm()
        raise KeyboardInterrupt

    learn(lab, FACTS)
    faults.arm(point, die)
    with pytest.raises(KeyboardInterrupt):
        index(lab)
    assert index(lab) == 0
    lab.shift(61)
    assert index(lab) == 3


def test_a_fork_finds_what_was_copied_to_it_once_it_is_asked(lab: Any) -> None:
    trace = learn(lab, FACTS)
    index(lab)
    fork = lab.mesh.forks.fork(trace.id, 1, changes={}, plan_hash=None, by="ann")
    [row] = lab.rows("SELECT context_id FROM mesh.traces WHERE id = %(id)s", id=fork.id)
    lab.drain()
    found(lab, context=row["context_id"])
    index(lab)
    assert found(lab, context=row["context_id"]) == ["diet"]


# --- by pgvector, where the database has it


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    """The server of the extra `embedded`, whose wheel brings pgvector."""
    home = Path(tempfile.mkdtemp(prefix="amv-"))
    home.chmod(0o755)
    server = EmbeddedPostgres(home / "home")
    server.start()
    try:
        migrate.upgrade(server.url())
        db = Database(server.url())
        if not db.read("SELECT 1 FROM pg_extension WHERE extname = 'vector'"):
            missing("pgvector")
        db.close()
        yield server.url()
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def test_pgvector_finds_what_arithmetic_finds(embedded: str) -> None:
    db = Database(embedded)
    wanted = {new_id(): [n / 10, 1 - n / 10, 0.5] for n in range(10)}
    for n, one in enumerate(wanted):
        db.once(
            "INSERT INTO mesh.memory (id, tenant_id, context_id, type, key, version, value, origin)"
            " VALUES (%(id)s, 'default', 'c', 'long_term', %(key)s, 1, '1', 't')", {"id": one, "key": f"k{n}"}
        )  # fmt: skip
    vectors.owe(db, "default", "c", "m")
    vectors.fill(db, "m", wanted)

    def ask() -> list[tuple[str, float]]:
        near = vectors.nearest(db, "default", "c", "m", [0.6, 0.7, 0.1], limit=5)
        return [(row["key"], round(row["score"], 5)) for row in near.rows]

    with_it = ask()
    db.once("DROP EXTENSION vector")
    assert ask() == with_it
    db.once("CREATE SCHEMA elsewhere")
    db.once("CREATE EXTENSION vector SCHEMA elsewhere")
    assert ask() == with_it
    assert with_it[0] == ("k0", 0.75)
    db.close()
