"""Memory by hand: what is stored is what is read, whatever its size."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from agentmesh.errors import BadJson, MemoryChanged, UnknownMemory
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


# --- versions


def test_history_names_who_wrote_each_version_where_and_why(lab, memory):
    trace = lab.start({"answer": {"tier": "gold"}})
    lab.drain()
    theirs = MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1", trace_id=trace.id)
    theirs.store("result:reason", "mine", "short_term", origin="person:ann", trusted=True, reason="it was wrong")
    mine, first = theirs.history("result:reason", "short_term")
    assert (first.value, first.origin, first.trusted, first.version) == ({"tier": "gold"}, "callback", False, 1)
    assert (first.node, first.agent, first.intent) == ("reason", "puppet", "work")
    assert (first.trace_id, first.step_id) == (trace.id, lab.steps(trace)[0]["id"])
    assert (mine.value, mine.origin, mine.trusted, mine.reason) == ("mine", "person:ann", True, "it was wrong")
    assert mine.version == 2


def test_a_revert_is_a_next_version_that_says_and_is_trusted_as_the_old_one(memory):
    memory.store("k", BIG, trusted=True)
    memory.store("k", "poison")
    assert memory.revert("k", 1, by="person:ann", reason="a tool said so") == 3
    newest, poison, first = memory.history("k")
    assert newest.value == first.value == BIG
    assert (newest.origin, newest.reason, newest.trusted) == ("person:ann", "a tool said so", True)
    assert poison.value == "poison"
    assert memory.revert("k", 2, by="person:ann") == 4
    assert memory.history("k")[0].trusted is False


def test_a_write_on_top_of_what_somebody_else_wrote_is_refused(memory):
    assert memory.store("k", 1, newest=0) == 1
    assert memory.store("k", 2) == 2
    for late in (lambda: memory.store("k", 3, newest=1), lambda: memory.revert("k", 1, by="ann", newest=1)):
        with pytest.raises(MemoryChanged, match="somebody else"):
            late()
    assert [one.version for one in memory.history("k")] == [2, 1]


def test_of_two_writes_on_top_of_one_version_the_second_is_refused(lab, memory):
    memory.store("k", 0)
    with psycopg.connect(lab.url) as held:
        held.execute("SELECT 1 FROM mesh.contexts FOR NO KEY UPDATE")

        def one(value):
            try:
                return memory.store("k", value, newest=1)
            except MemoryChanged:
                return None

        with ThreadPoolExecutor(2) as pool:
            writes = [pool.submit(one, value) for value in (1, 2)]
            lab.until_blocked(2)
            held.rollback()
            assert sorted(str(write.result(10)) for write in writes) == ["2", "None"]
    assert len(memory.history("k")) == 2


def test_a_short_term_write_from_outside_waits_for_the_holder_of_the_trace(lab):
    trace = lab.start({"answer": 1})
    theirs = MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1", trace_id=trace.id)
    [written] = lab.at_lock("traces", trace.id, lambda: theirs.store("k", 1, "short_term"))
    assert written == 1


def test_what_never_was_cannot_be_looked_up_or_brought_back(memory):
    memory.store("k", 1)
    with pytest.raises(UnknownMemory):
        memory.history("other")
    with pytest.raises(UnknownMemory, match="no such version"):
        memory.revert("k", 2, by="ann")


def test_several_entries_are_written_at_once_and_a_result_as_the_callback_keeps_it(memory):
    memory.write({"a": 1, "b": BIG})
    memory.store_result("reason", 7)
    assert memory.snapshot() == {"long_term:a": 1, "long_term:b": BIG, "short_term:result:reason": 7}
