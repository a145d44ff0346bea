"""The JSON Schema of chain files, for editors: made from the keys and records that chains are read by.

It knows the shape of a chain; what names and expressions mean only `chains lint` can tell.
"""

from __future__ import annotations

from typing import Any

from agentmesh.execution.chainparts import KINDS
from agentmesh.execution.plan import MAX_COUNT, TARGETS
from agentmesh.records import NAME, Json, PolicyPatch

Schema = dict[str, Any]

NAMED: Schema = {"type": "string", "pattern": f"^{NAME.pattern.removesuffix(chr(92) + 'Z')}$"}
TEXT: Schema = {"type": "string"}
YES_OR_NO: Schema = {"type": "boolean"}
DURATION: Schema = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": r"^\d"}],
                    "description": "30s, 5min, 2h, 3d, or a number of seconds"}  # fmt: skip
CEL: Schema = {"type": "string", "description": "CEL"}
VALUE: Schema = {"description": 'any value; {"=": "CEL"} within it stands for what the expression comes to'}
EXPRESSION: Schema = {"type": "object", "properties": {"=": CEL}, "required": ["="], "additionalProperties": False}
TARGET: Schema = {
    "type": "string",
    "description": f"the id of a step, or {', '.join((*TARGETS, 'skip', 'retry_reasoner'))}",
}
COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 10_000}
REQUIRE: Schema = {"anyOf": [{"enum": ["all", "any", "each"]}, COUNT]}
NAMES: Schema = {"type": "array", "items": NAMED}


def _one_or_many(one: Schema) -> Schema:
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False
    }  # fmt: skip


TOOL: Schema = {
    "anyOf": [NAMED, _object({"tool": NAMED, "args": {"type": "object"}, "as": NAMED, "for": VALUE}, "tool")]
}
ERRAND: Schema = {"intent": TEXT, "payload": VALUE, "permissions": {"type": "array", "items": TEXT}}
STEPS: Schema = {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 1}

HEADS: dict[str, Schema] = {
    "reasoner": {"anyOf": [NAMED, {"type": "null"}]},
    "tools": {"anyOf": [{"const": "chosen"}, {"type": "array", "items": _one_or_many(TOOL), "minItems": 1}]},
    "callback": _one_or_many(NAMED),
    "set": {"type": "object", "minProperties": 1, "propertyNames": NAMED},
    "for_each": CEL,
    "jump_if": CEL,
    "jump": TARGET,
    "switch": {"type": "array", "items": _object({"when": CEL, "then": TARGET}, "when", "then"), "minItems": 1},
    "wait": {"anyOf": [DURATION, EXPRESSION,
                       _object({"seconds": {"anyOf": [DURATION, EXPRESSION]}, "until": VALUE, "cron": TEXT, "timezone": TEXT})]},
    "signal": NAMED,
    "approval": VALUE,
    "delegate": _one_or_many({"anyOf": [
        NAMED, _object({"to": NAMED, "as": NAMED, **ERRAND}, "to"),
        _object({"capability": NAMED, "as": NAMED, **ERRAND}, "capability"),
        _object({"capability": NAMED, "count": {"anyOf": [{"const": "all"}, COUNT | {"maximum": MAX_COUNT}]}, **ERRAND},
                "capability", "count"),
    ]}),
    "chain": NAMED,
    "parallel": {"type": "object", "minProperties": 1, "propertyNames": NAMED, "additionalProperties": STEPS},
    "finish": VALUE,
    "fail": VALUE,
}  # fmt: skip
"""What stands behind the key that names a step's kind."""

KEYS: dict[str, Schema] = {
    "id": NAMED, "when": CEL, "on_fail": TARGET, "on_timeout": TARGET, "timeout": DURATION, "write_memory": YES_OR_NO,
    "record_trace": YES_OR_NO, "trigger_next_action": YES_OR_NO, "policy": {"$ref": "#/$defs/policy"},
    "retry": {"anyOf": [COUNT, _object({"attempts": COUNT, "backoff": {"$ref": "#/$defs/Backoff"}})]},
    "strategy": {"enum": ["serial", "parallel", "fallback", "mixed"]}, "require": REQUIRE, "race": YES_OR_NO,
    "tool": NAMED, "args": {"type": "object"}, "limit": COUNT, "then": TARGET, "else": TARGET,
    "schema": {"type": "object", "description": "a JSON Schema of the payload"}, "within": DURATION,
    "who": {"type": "array", "items": TEXT}, "options": NAMES | {"minItems": 2},
    "escalate": _object({"after": DURATION, "who": {"type": "array", "items": TEXT}}, "after", "who"),
    "needs": _one_or_many(NAMED), "reason": {"enum": ["required", "optional"]}, **ERRAND, "wait": YES_OR_NO, "code": TEXT,
    "for_each": CEL, "vote": CEL, "accept": CEL, "quorum": {"anyOf": [{"const": "majority"}, COUNT]},
}  # fmt: skip
"""What every other key of a step takes."""

NEEDED = {"jump_if": ("then",), "for_each": ("tool",)}


def chain_schema() -> dict[str, Json]:
    """JSON Schema 2020-12 of a chain file."""
    policy = PolicyPatch.model_json_schema(ref_template="#/$defs/{model}")
    records = policy.pop("$defs")
    kinds = [
        _object({head: HEADS[head]} | {key: KEYS[key] for key in keys}, head, *NEEDED.get(head, ()))
        for head, keys in KINDS.items()
    ]
    whole = _object(
        {"chain": NAMED, "description": TEXT, "input": KEYS["schema"], "policy": {"$ref": "#/$defs/policy"}, "on_fail": TARGET,
         "steps": STEPS},
        "chain", "steps",
    )  # fmt: skip
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A behaviour chain of agentmesh", **whole,
        "$defs": {"step": {"anyOf": kinds}, "policy": policy, **records},
    }  # fmt: skip
