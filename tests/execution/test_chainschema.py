"""The JSON Schema of chain files: it takes what the reader takes, and refuses the shapes it refuses."""

import jsonschema_rs
import pytest

from agentmesh.execution import chain, chainschema
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import PolicyPatch

SCHEMA = jsonschema_rs.validator_for(chainschema.chain_schema())
GOOD = [
    {"reasoner": None}, {"reasoner": "think", "retry": 2, "timeout": "30s"}, {"set": {"n": {"=": "1 + 1"}}},
    {"tools": ["a", {"tool": "b", "args": {"n": 1}, "as": "c"}], "strategy": "parallel", "require": 1, "on_fail": "next"},
    {"tools": [["a", "b"], ["c"]], "retry": {"attempts": 3, "backoff": {"base_s": 0.5}}}, {"tools": ["a", "b"], "race": True},
    {"for_each": "payload.items", "tool": "a", "args": {"n": {"=": "item"}}, "limit": 5}, {"wait": "3d"},
    {"wait": {"cron": "0 9 * * *", "timezone": "Europe/Berlin"}}, {"wait": {"=": "payload.s"}},
    {"signal": "paid", "schema": {"type": "object"}, "within": "2h", "on_timeout": "fail"},
    {"approval": "ship?", "who": ["ann"], "options": ["yes", "no"], "within": 5, "reason": "required",
     "escalate": {"after": "1d", "who": ["boss"]}},
    {"delegate": ["helper", {"to": "other", "as": "o", "payload": {"n": 1}}], "require": "any"},
    {"delegate": {"capability": "sort", "as": "s"}, "within": "1h", "on_timeout": "next"},
    {"delegate": [{"capability": "sort", "count": 3}, "helper"], "vote": "result.kind", "quorum": "majority"},
    {"delegate": [{"capability": "sort", "count": "all"}], "accept": "result.price < payload.most"},
    {"parallel": {"left": [{"tools": ["a"]}], "right": [{"finish": 1}]}}, {"jump_if": "result.low", "then": "a", "else": "end"},
    {"switch": [{"when": "payload.a", "then": "end"}], "else": "next", "limit": 3}, {"fail": "no", "code": "E_NO"},
    {"policy": {"write_memory": False}, "tools": ["a"]}, {"finish": {"n": {"=": "payload.n"}}, "when": "payload.b"},
]  # fmt: skip
BAD = [
    {}, {"tool": "a"}, {"tools": []}, {"tools": ["A"]}, {"tools": [{"name": "a"}]}, {"tools": ["a"], "strategie": "serial"},
    {"tools": ["a"], "require": "most"}, {"jump_if": "x"}, {"switch": [{"when": "x"}]}, {"set": {}}, {"tools": ["a"], "retry": 0},
    {"delegate": [{"intent": "x"}]}, {"delegate": {"to": "a", "capability": "b"}}, {"delegate": {"to": "a", "count": 2}},
    {"delegate": {"capability": "a", "count": 2, "as": "b"}}, {"delegate": {"capability": "a", "count": 101}},
    {"delegate": ["a", "b"], "vote": "result", "quorum": "most"},
    {"parallel": {}}, {"signal": 5}, {"approval": 1, "reason": "maybe"},
    {"tools": ["a"], "policy": {"writes": True}}, {"tools": ["a"], "timeout": "soon"},
]  # fmt: skip


def as_chain(step):
    named = {"id": "a"} if {"finish", "fail", "jump_if", "switch"} & step.keys() else {}
    return {"chain": "c", "steps": [{"tools": ["a"]} | named, step]} if named else {"chain": "c", "steps": [step]}


@pytest.mark.parametrize("step", GOOD, ids=str)
def test_what_a_chain_may_say_fits_the_schema(step):
    assert chain.lint(YamlText(as_chain(step), "c", {}))[1] == []
    assert SCHEMA.is_valid(as_chain(step))


@pytest.mark.parametrize("step", BAD, ids=str)
def test_what_the_reader_refuses_for_its_shape_does_not_fit(step):
    assert chain.lint(YamlText(as_chain(step), "c", {}))[1] != []
    assert not SCHEMA.is_valid(as_chain(step))


def test_every_kind_of_step_and_every_key_is_in_it():
    steps = chainschema.chain_schema()["$defs"]["step"]["anyOf"]
    found = {one["required"][0]: set(one["properties"]) for one in steps}
    assert found == {kind: {kind, *keys} for kind, keys in chain.KINDS.items()}
    assert set(chainschema.chain_schema()["$defs"]["policy"]["properties"]) == set(PolicyPatch.model_fields)
