"""Memory by hand: what is stored is what is read, whatever its size."""

import pytest

from agentmesh.errors import BadJson
from agentmesh.records import new_id
from agentmesh.state.memory import MemoryEngine

BIG = {"text": "x" * 100_000}


@pytest.fixture
def memory(lab):
    return MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1", trace_id=new_id())


def kept(lab):
    return [row["value"] for row in lab.rows("SELECT value FROM mesh.memory ORDER BY key, version")]


@pytest.mark.parametrize("type_", ["long_term", "short_term"])
@pytest.mark.parametrize("value", [BIG, "x" * 70_000, {"$blob": "0" * 64}])
def test_a_big_value_is_put_aside_and_read_back_whole(lab, memory, type_, value):
    memory.store("k", 1, type_)
    memory.update("k", value, type_)
    assert memory.retrieve("k", type_) == value
    assert kept(lab)[0] == 1
    assert kept(lab)[1].keys() == {"$blob"}


def test_a_snapshot_has_every_entry_whole(memory):
    memory.store("big", BIG)
    memory.store("small", 2)
    memory.store("small", 3, "short_term")
    assert memory.snapshot() == {"long_term:big": BIG, "long_term:small": 2, "short_term:small": 3}


def test_what_a_search_finds_is_whole(lab, memory):
    memory.store("k", BIG)
    [reference] = kept(lab)
    assert [row["value"] for row in memory.query(reference["$blob"])] == [BIG]


def test_a_value_beyond_every_limit_is_refused_and_nothing_is_written(lab, memory):
    with pytest.raises(BadJson, match="too large"):
        memory.store("k", "x" * (17 << 20))
    assert kept(lab) == []


def test_the_callback_and_the_engine_read_each_others_big_values(make_lab, tools):
    lab = make_lab(reasoner=lambda session: {"answer": [len(session.memory["long_term:k"]["text"]), "y" * 100_000]})
    MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1").store("k", BIG)
    trace = lab.start()
    lab.drain()
    assert trace.result(0)[0] == 100_000
    theirs = MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1", trace_id=trace.id)
    assert theirs.retrieve("result:reason", "short_term") == trace.result(0)
