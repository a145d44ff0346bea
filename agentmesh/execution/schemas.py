"""What goes into a tool and what comes out: checked strictly, by type hints or by a declared JSON Schema.

Unknown arguments are refused. Foreign patterns run in linear time, and no schema is fetched from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jsonschema_rs
from pydantic import BaseModel, TypeAdapter, ValidationError

from agentmesh.errors import BadArguments, BadResult, BadTool
from agentmesh.infrastructure import jsontext
from agentmesh.records import Json


class Arguments(Protocol):
    def check(self, tool: str, args: Mapping[str, Json]) -> dict[str, Any]:
        """`args` as the tool takes them. Raises BadArguments."""

    def schema(self) -> Json: ...


class Result(Protocol):
    def output(self, tool: str, value: Any) -> Json:
        """`value` as JSON. Raises BadResult."""

    def schema(self) -> Json: ...


class Signature(NamedTuple):
    """The JSON Schemas of what a tool takes, and of what it returns (None: anything)."""

    arguments: Json
    returns: Json


@dataclass(frozen=True, slots=True)
class Hinted:
    """Arguments as a function's type hints say."""

    model: type[BaseModel]

    def check(self, tool: str, args: Mapping[str, Json]) -> dict[str, Any]:
        try:
            text = jsontext.dumps(args, what=f"the arguments of {tool}")
            made = self.model.model_validate_json(text, strict=True, extra="forbid")  # in a user's models too
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "arguments"
            raise BadArguments(f"{tool} does not take these arguments: {where}: {first['msg']}",
                               value=first["input"]) from exc  # fmt: skip
        return {name: getattr(made, name) for name in self.model.model_fields}

    def schema(self) -> Json:
        return self.model.model_json_schema()


@dataclass(frozen=True, slots=True)
class Returned:
    """A result as the return annotation says; None: anything that JSON can say."""

    adapter: TypeAdapter[Any] | None

    def output(self, tool: str, value: Any) -> Json:
        try:
            if self.adapter is not None:
                self.adapter.validate_python(value, strict=True)
                value = self.adapter.dump_python(value, mode="json")
            return jsontext.loads(jsontext.dumps(value, what=f"the result of {tool}"), what="a result")
        except (ValidationError, ValueError, TypeError) as exc:
            raise BadResult(f"{tool} returned what its annotation does not allow: {line(exc)}", value=value) from exc

    def schema(self) -> Json:
        return self.adapter.json_schema(mode="serialization") if self.adapter else None


class Declared:
    """Arguments or a result as a JSON Schema says. Raises BadTool for what is no schema."""

    def __init__(self, schema: Json, *, what: str) -> None:
        self._schema = schema
        try:
            self._validator = jsonschema_rs.Draft202012Validator(
                schema, pattern_options=jsonschema_rs.RegexOptions(), offline=True
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as exc:
            raise BadTool(f"{what}: this is no JSON Schema: {line(exc)}", value=schema, expected="JSON Schema") from exc

    def check(self, tool: str, args: Mapping[str, Json]) -> dict[str, Any]:
        made = jsontext.loads(jsontext.dumps(args, what=f"the arguments of {tool}"), what="arguments")
        error = next(self._validator.iter_errors(made), None)
        if error is not None:
            where = ".".join(str(part) for part in error.instance_path) or "arguments"
            raise BadArguments(f"{tool} does not take these arguments: {where}: {error.message}")
        named: Mapping[str, Any] = self._schema.get("properties", {})
        defaults = {name: one["default"] for name, one in named.items() if isinstance(one, dict) and "default" in one}
        return {**defaults, **made}

    def output(self, tool: str, value: Any) -> Json:
        try:
            made = jsontext.loads(jsontext.dumps(value, what=f"the result of {tool}"), what="a result")
        except (ValueError, TypeError) as exc:
            raise BadResult(f"{tool} returned what JSON cannot say: {line(exc)}", value=value) from exc
        error = next(self._validator.iter_errors(made), None)
        if error is not None:
            where = ".".join(str(part) for part in error.instance_path) or "result"
            raise BadResult(f"{tool} returned what its schema does not allow: {where}: {error.message}")
        return made

    def schema(self) -> Json:
        return self._schema


def line(exc: Exception) -> str:
    """What is wrong, in one line."""
    match exc:
        case ValidationError():
            return str(exc).strip().splitlines()[-1].strip()
        case jsonschema_rs.ValidationError():
            return exc.message
        case _:
            return str(exc)
