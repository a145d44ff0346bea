"""Which embedder an agent's memory is found by: the small local one, an endpoint, or one of the user's by name.

An agent file (`memory: {embedder: …}`) or the settings ([embeddings]) choose; without either there are no vectors.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from agentmesh.behavior.declared import Models
from agentmesh.behavior.llm import open_endpoint
from agentmesh.errors import BadAgentFile, Mistake
from agentmesh.infrastructure.embedding import Embedder, EndpointEmbedder, LocalEmbedder
from agentmesh.records import Json, Name, Record, check_name

Model = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class EmbedderSpec(Record):
    """One by `name`, or a model behind an endpoint. What is left out of an endpoint, the settings say."""

    name: Name | None = None
    model: Model | None = None
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s@]+$")] | None = None
    key: Name | None = None
    dimensions: Annotated[int, Field(ge=1, le=16_000)] | None = None

    @property
    def vectors(self) -> str:
        """What its vectors are called: those of one name are compared."""
        return f"{self.model}/{self.dimensions}" if self.dimensions else str(self.model)

    def announced(self) -> dict[str, Json]:
        """As other processes are told, that look for what was embedded by it. A key is its name alone."""
        return {"vectors": self.vectors, "spec": self.model_dump(mode="json", exclude_none=True)}


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Chosen = Annotated[EmbedderSpec, BeforeValidator(_named)]
"""In a file: a name, or the keys of an endpoint."""


@dataclass(frozen=True, slots=True)
class Registered:
    """An embedder that can be named; `vectors` is what its vectors are called."""

    vectors: str
    make: Callable[[], Embedder]


EMBEDDERS: dict[str, Registered] = {"local": Registered(LocalEmbedder.MODEL, LocalEmbedder)}
"""The embedders that agents name; `register_embedder` adds to them."""


def register_embedder(name: str, *, model: str | None = None) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Make what `make()` returns (a class will do) the embedder of this name; `model` names its vectors (None: `name`), and
    has to change where they do. A plugin's entry point, or an import that the settings list, runs it."""
    check_name(name, "an embedder")

    def declare(make: Callable[[], Any]) -> Callable[[], Any]:
        EMBEDDERS[name] = Registered(model or name, make)
        return make

    return declare


class Embedders:
    """The embedders of one process, each made when it is first asked. `default` is that of agents which name none."""

    def __init__(self, default: EmbedderSpec | None = None, models: Models | None = None) -> None:
        """`models`: the endpoint of the settings, for whom names none of its own."""
        self._models = models or Models()
        self._made: dict[EmbedderSpec, Embedder] = {}
        self._settings = default
        self.default = None if default is None else self.settled(default, "[embeddings]")

    def settled(self, spec: EmbedderSpec, where: str) -> EmbedderSpec:
        """The same with all that the settings say. Raises BadAgentFile where it names nothing that there is."""
        if spec.name is not None:
            if spec.name not in EMBEDDERS:
                near = difflib.get_close_matches(spec.name, EMBEDDERS, n=1)
                hint = f" · did you mean {near[0]}?" if near else ""
                raise BadAgentFile(f"{where} names an embedder that does not exist", value=spec.name,
                                   expected=f"one of {', '.join(sorted(EMBEDDERS))}{hint}")  # fmt: skip
            if odd := spec.model_dump(exclude_none=True).keys() - {"name", "model"}:
                raise BadAgentFile(f"{where}: an embedder that has a name is no endpoint", value=sorted(odd)[0],
                                   expected="a name alone, or model, base_url, key and dimensions")  # fmt: skip
            return spec.model_copy(update={"model": EMBEDDERS[spec.name].vectors})
        ours = self._settings if self._settings is not None and self._settings.name is None else EmbedderSpec()
        found = {
            "model": spec.model or ours.model,
            "base_url": spec.base_url or ours.base_url or self._models.base_url,
            "key": spec.key or (None if spec.base_url else ours.key or (None if ours.base_url else self._models.key)),
        }
        if not (found["model"] and found["base_url"]):
            raise BadAgentFile(f"{where}: this embedder has no model to ask",
                               expected="model and base_url there, or in [embeddings]")  # fmt: skip
        return spec.model_copy(update=found)

    def announced(self) -> dict[str, Json] | None:
        """The settings' own, as agents announce theirs; None without."""
        return None if self.default is None else self.default.announced()

    def made(self, spec: dict[str, Json]) -> Embedder:
        """The one that an agent announced so. Raises what `get` raises."""
        return self.get(EmbedderSpec.model_validate(spec))

    def get(self, spec: EmbedderSpec) -> Embedder:
        """The embedder itself, of a settled spec. Raises BadSettings where an extra is missing, SecretMissing, Mistake."""
        made = self._made.get(spec)
        if made is None:
            made = self._made[spec] = self._make(spec)
        return made

    def _make(self, spec: EmbedderSpec) -> Embedder:
        if spec.name is None:
            key = None if spec.key is None else self._models.secret(spec.key)
            return EndpointEmbedder(open_endpoint(str(spec.base_url), key), str(spec.model), dimensions=spec.dimensions)
        known = EMBEDDERS.get(spec.name)
        if known is None:
            raise Mistake("no embedder has this name here", value=spec.name,
                          expected=f"one of {', '.join(sorted(EMBEDDERS))}")  # fmt: skip
        return known.make()
