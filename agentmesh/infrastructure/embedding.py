"""What turns texts into vectors: what an embedder is, one behind an OpenAI-compatible endpoint, and a small local one.

Vectors of different models mean nothing to one another, so each is kept with the name of its model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentmesh.errors import BadEmbedding, BadSettings

if TYPE_CHECKING:
    from agentmesh.infrastructure.models import Endpoint

MOST_DIMS = 16_000  # what pgvector can hold


class Embedder(Protocol):
    """Safe to use from several threads."""

    def embed(self, texts: Sequence[str], *, within_s: float) -> Sequence[Sequence[float]]:
        """A vector for each text, in order, all of one length. Raises where it cannot."""
        ...


class EndpointEmbedder:
    """A model behind `/embeddings` of an OpenAI-compatible endpoint."""

    def __init__(self, endpoint: Endpoint, model: str, *, dimensions: int | None = None) -> None:
        self._endpoint, self._model, self._dimensions = endpoint, model, dimensions

    def embed(self, texts: Sequence[str], *, within_s: float) -> Sequence[Sequence[float]]:
        """Raises what asking a model raises."""
        return self._endpoint.embed(self._model, texts, dimensions=self._dimensions, within_s=within_s)


class LocalEmbedder:
    """WordLlama's smallest model (256 numbers, English), whose weights its wheel brings: nothing is ever downloaded.

    It averages the meanings of words and knows no order of them: quick and small, and weaker than a model behind an endpoint.
    """

    MODEL = "wordllama-l2-supercat-256"

    def embed(self, texts: Sequence[str], *, within_s: float) -> Sequence[Sequence[float]]:  # noqa: ARG002 - microseconds
        """Raises BadSettings where the extra embeddings is not installed."""
        vectors: list[list[float]] = self._model.embed(list(texts)).tolist()
        return vectors

    @cached_property
    def _model(self) -> Any:
        try:
            import wordllama  # noqa: PLC0415 - half a second, which only who embeds pays
        except ImportError as exc:
            raise BadSettings(f"the local embedder needs the extra embeddings: {exc}",
                              expected="pip install 'agentmesh[embeddings]'") from None  # fmt: skip
        wheel = Path(wordllama.__file__).parent
        return wordllama.WordLlama.load(cache_dir=wheel, disable_download=True)


def unit_vectors(embedder: Embedder, texts: Sequence[str], *, within_s: float) -> list[list[float]]:
    """The vectors of these texts with length 1 (0 for one that says nothing), so that their product is their cosine.

    Raises what the embedder raises, and BadEmbedding for what are no vectors of these texts.
    """
    found = [[float(part) for part in one] for one in embedder.embed(texts, within_s=within_s)]
    lengths = {len(one) for one in found}
    if len(found) != len(texts) or len(lengths) > 1 or not lengths <= set(range(1, MOST_DIMS + 1)):
        raise BadEmbedding("the embedder gave no vectors of one length for its texts",
                           value=f"{len(found)} for {len(texts)}, of {sorted(lengths)} numbers")  # fmt: skip
    return [_unit(one) for one in found]


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(part * part for part in vector))
    if not math.isfinite(length):
        raise BadEmbedding("a vector holds what is no number", value=length)
    return [part / length for part in vector] if length else vector
