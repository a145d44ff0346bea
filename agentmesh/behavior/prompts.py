"""Prompts as templates: what an author tells a model, and the places where a trace's data goes.

Above a line `---` stands what the model is told, and nothing of a trace ever gets in there: whatever a tool, a document
or a memory says, it is data. Below it each {{ CEL }} becomes the value it comes to, as one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agentmesh.behavior.expressions import Expression
from agentmesh.behavior.templates import compiled
from agentmesh.errors import BadPrompt
from agentmesh.records import Json

PLACE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
CUT = re.compile(r"^---[ \t]*\n", re.MULTILINE)
DATA = "intent: {{ intent }}\npayload: {{ payload }}\nmemory: {{ memory }}\nresults: {{ results }}\n"
"""The data of a prompt that names none; and its turns, where its session shows some."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template as it was read. `version` is the beginning of its text's sha256."""

    name: str
    version: str
    system: str
    parts: tuple[str | Expression, ...]
    by_default: bool = False

    @property
    def names(self) -> frozenset[str]:
        """The variables its places read."""
        named = (one.names for one in self.parts if isinstance(one, Expression))
        return frozenset({"turns"} if self.by_default else ()).union(*named)

    def data(self, variables: Mapping[str, Json]) -> str:
        """The part with the data, filled in. Raises BadRule where a value cannot be worked out."""
        said = "".join(one if isinstance(one, str) else _line(one.evaluate(variables)) for one in self.parts)
        return said + (f"turns: {_line(variables['turns'])}\n" if self.by_default and variables.get("turns") else "")


def read_prompt(text: str, name: str) -> Prompt:
    """The template that `text` is; `name` says where it stands. Raises BadPrompt or BadRule."""
    system, *rest = CUT.split(text, maxsplit=1)
    if not system.strip():
        raise BadPrompt(f"{name} tells the model nothing")
    if found := PLACE.search(system):
        raise BadPrompt(f"{name} puts data of a trace into what the model is told", value=found[0])
    parts: list[str | Expression] = []
    for number, part in enumerate(PLACE.split(rest[0] if rest else DATA)):
        source = f"{name}: place {(number + 1) // 2}"
        parts.append(compiled(part.strip(), source) if number % 2 else part)
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Prompt(name, version, system.strip(), tuple(parts), by_default=not rest)


def _line(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
