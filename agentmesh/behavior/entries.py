"""What an agent declares of its memory: entries that have a type.

A key that is declared takes only what fits its JSON Schema; other keys are free, unless the agent says `strict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from agentmesh.behavior.embedders import Chosen
from agentmesh.infrastructure.fit import flaw
from agentmesh.infrastructure.settings import Seconds
from agentmesh.records import Json, Record

Keep = Annotated[Seconds, Field(strict=False)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class EntrySpec(Record):
    """One entry: what its values look like (`{}`: anything), and what it is for. Short-term ones are the trace's.

    `keep`: how long a version is kept; None: as long as the agent says.
    """

    json_schema: dict[str, Json] = Field(default_factory=dict, alias="schema")
    description: Annotated[str, StringConstraints(max_length=500)] = ""
    type: Literal["long_term", "short_term"] = "long_term"
    keep: Keep | None = None

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Json]) -> dict[str, Json]:
        if (why := flaw(schema)) is not None:
            raise ValueError(f"a JSON Schema: {why}")
        return schema


class MemorySpec(BaseModel):
    """The entries by their keys, beside `strict`: no others are written; `keep`: how long those are kept that do not say so
    themselves (None: for ever); and `embedder`: what makes long-term ones found by meaning (None: the settings')."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")
    __pydantic_extra__: dict[Key, EntrySpec] = Field(init=False)
    each: ClassVar[type[EntrySpec]] = EntrySpec  # for who says which keys there are

    strict: bool = False
    keep: Keep | None = None
    embedder: Chosen | None = None

    @property
    def entries(self) -> Mapping[str, EntrySpec]:
        return self.__pydantic_extra__

    def announced(self) -> dict[str, Json]:
        """As others are told, who write the memory of its contexts; empty where nothing is declared."""
        said = {
            key: {"schema": one.json_schema, "type": one.type, "keep_s": one.keep} for key, one in self.entries.items()
        }
        declares = said or self.strict or self.keep is not None or self.embedder is not None
        if not declares:
            return {}
        found = {} if self.embedder is None else {"embedder": self.embedder.announced()}
        return {"strict": self.strict, "keep_s": self.keep, "entries": said} | found


def as_values(memory: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an agent file from Python, where a pydantic model may stand for an entry or for its schema."""
    said: dict[str, Any] = {}
    for key, given in memory.items():
        one: Any = {"schema": given} if isinstance(given, type) else given
        model = one.get("schema") if isinstance(one, Mapping) else None
        if isinstance(model, type) and issubclass(model, BaseModel):
            one = {**one, "schema": model.model_json_schema()}
        said[key] = one
    return said
