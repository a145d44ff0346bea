"""What an agent declares of its memory holds wherever it is written: by a handler, by the callback, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentmesh.errors import BadMemory
from agentmesh.execution.callbacks import HANDLERS, register_callback
from agentmesh.state.memory import MemoryEngine

CUSTOMER = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
MEMORY = {"customer": {"schema": CUSTOMER}, "result:reason": {"type": "short_term", "schema": {"type": "integer"}}}


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = dict(HANDLERS)

    @register_callback("learn")
    def learn(result: Any, session: Any) -> Any:
        return {"memory": session.payload.get("learn", []), "verdict": "finish"}

    yield
    HANDLERS.clear()
    HANDLERS.update(before)


def run(lab: Any, answer: Any, *learn: dict[str, Any]) -> dict[str, Any]:
    trace = lab.start({"answer": answer}, payload={"learn": list(learn)})
    lab.drain()
    return dict(lab.trace(trace))


def make(make_lab: Any, **memory: Any) -> Any:
    return make_lab(memory=MEMORY | memory, policy={"callbacks": ["learn"]})


GOOD, BAD = {"name": "Ann"}, {"name": 7}


def test_what_fits_is_written_and_other_keys_are_free(make_lab: Any) -> None:
    lab = make(make_lab)
    row = run(lab, 1, {"key": "customer", "value": GOOD}, {"key": "other", "value": BAD})
    assert row["status"] == "done"
    assert [one["value"] for one in lab.rows("SELECT value FROM mesh.memory ORDER BY key")] == [GOOD, BAD, 1]


def test_a_handler_that_writes_what_does_not_fit_fails_and_nothing_of_it_is_written(make_lab: Any) -> None:
    lab = make(make_lab)
    row = run(lab, 1, {"key": "other", "value": 1}, {"key": "customer", "value": BAD})
    assert (row["status"], row["error"]["code"]) == ("failed", "E_MEMORY")
    assert "customer does not fit what puppet declared: name: 7 is not of type" in row["error"]["message"]
    assert lab.rows("SELECT * FROM mesh.memory") == []


def test_a_result_that_does_not_fit_is_not_kept_either(make_lab: Any) -> None:
    row = run(make(make_lab), "many")
    assert (row["status"], row["error"]["code"]) == ("failed", "E_MEMORY")


def test_a_strict_agent_writes_declared_entries_alone(make_lab: Any) -> None:
    lab = make(make_lab, strict=True)
    assert run(lab, 1, {"key": "customer", "value": GOOD})["status"] == "done"
    row = run(lab, 1, {"key": "custmer", "value": GOOD})
    assert (row["error"]["code"], row["error"]["value"]) == ("E_MEMORY", "long_term:custmer")


def test_by_hand_holds_what_the_agents_of_the_context_declared(make_lab: Any) -> None:
    lab = make(make_lab, strict=True)
    lab.mesh.registry.announce(lab.mesh.db)
    elsewhere = MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-2")
    assert elsewhere.store("custmer", BAD) == 1  # none of them has been there
    run(lab, 1, {"key": "customer", "value": GOOD})
    memory = MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1")
    for write in (
        lambda: memory.store("customer", BAD),
        lambda: memory.store("custmer", GOOD),
        lambda: memory.write({"customer": GOOD, "other": 1}),
    ):
        with pytest.raises(BadMemory):
            write()
    assert [one.version for one in memory.history("customer")] == [1]


def test_a_version_from_before_the_type_cannot_be_brought_back(make_lab: Any) -> None:
    lab = make(make_lab)
    memory = MemoryEngine(lab.mesh.db, tenant_id="default", context_id="c-1")
    memory.store("customer", BAD)
    run(lab, 1, {"key": "customer", "value": GOOD})
    lab.mesh.registry.announce(lab.mesh.db)
    with pytest.raises(BadMemory):
        memory.revert("customer", 1, by="person:ann")
    assert memory.retrieve("customer") == GOOD
