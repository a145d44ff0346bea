"""Memory templates in an agent's file: what is no schema, and what means nothing, is refused where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from agentmesh.behavior.agents import define_agent, load_agent_file
from agentmesh.errors import BadAgentFile

FILE = """agent: clerk
reasoner: {rules: [{then: {answer: 1}}]}
memory:
  strict: true
  keep: 30d
  customer:
    description: who asks
    keep: 1h
    schema: {type: object, required: [name], properties: {name: {type: string}}}
  result:reason: {type: short_term, schema: {type: integer}}
"""


class Customer(BaseModel):
    name: str
    orders: list[int] = []


def test_a_file_declares_entries_by_their_keys(tmp_path: Path) -> None:
    (tmp_path / "clerk.yaml").write_text(FILE.replace("result:reason", '"result:reason"'))
    said = load_agent_file(tmp_path / "clerk.yaml").memory.announced()
    assert said["strict"] is True
    assert said["entries"].keys() == {"customer", "result:reason"}
    assert said["entries"]["result:reason"] == {"type": "short_term", "schema": {"type": "integer"}, "keep_s": None}
    assert (said["keep_s"], said["entries"]["customer"]["keep_s"]) == (30 * 86_400, 3600)


def test_a_pydantic_model_stands_for_its_schema() -> None:
    both = define_agent(
        "a", reasoner=lambda session: None, memory={"one": Customer, "two": {"schema": Customer}}
    ).memory
    schema = Customer.model_json_schema()
    assert [one.json_schema for one in both.entries.values()] == [schema, schema]


@pytest.mark.parametrize(
    ("found", "put", "place", "told"),
    [
        ("description:", "desciption:", "clerk.yaml:7:", "did you mean description?"),
        ("type: string", "type: strin", "clerk.yaml:9", "a JSON Schema"),
        ("strict: true", "strict: 1", "clerk.yaml:4", "valid boolean"),
    ],
)
def test_what_means_nothing_is_refused_with_its_place(
    tmp_path: Path, found: str, put: str, place: str, told: str
) -> None:
    (tmp_path / "clerk.yaml").write_text(FILE.replace("result:reason", '"result:reason"').replace(found, put))
    with pytest.raises(BadAgentFile) as caught:
        load_agent_file(tmp_path / "clerk.yaml")
    assert place in caught.value.what
    assert told in caught.value.expected
