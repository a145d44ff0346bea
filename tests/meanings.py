"""An embedder whose meanings are known: a text means the themes whose words it has. It can be away, and refuse texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agentmesh.behavior.embedders import EMBEDDERS, Registered
from agentmesh.errors import ModelRefused, ModelUnreachable
from tests.model_server import Answering

THEMES = (
    {"nuts", "peanut", "allergic", "intolerances", "food", "eat"},
    {"pay", "pays", "card", "gold", "invoice", "money"},
    {"quiet", "room", "noise", "sleep", "loud"},
)


def meaning(text: str) -> list[float]:
    words = re.findall(r"[a-z]+", text.lower())
    return [float(sum(word in theme for word in words)) for theme in THEMES]


class Meanings:
    """`away`: it does not answer. What has a word of `refused` it never takes. `asked` are the texts of each question."""

    def __init__(self, before: Callable[[], Any] = lambda: None) -> None:
        self.asked: list[list[str]] = []
        self.away, self.refused, self.before = False, "", before

    def embed(self, texts: Sequence[str], *, within_s: float) -> list[list[float]]:
        self.before()
        self.asked.append(list(texts))
        if self.away:
            raise ModelUnreachable("the model's endpoint does not answer", value="http://127.0.0.1:1")
        if self.refused and any(self.refused in text for text in texts):
            raise ModelRefused("the model's endpoint answered 400", value="too long")
        return [meaning(text) for text in texts]


@contextmanager
def known(**embedders: Meanings) -> Iterator[None]:
    """Agents may name these while the block runs; their vectors are called as they are."""
    before = dict(EMBEDDERS)
    EMBEDDERS.update({name: Registered(name, lambda one=one: one) for name, one in embedders.items()})  # type: ignore[misc]
    yield
    EMBEDDERS.clear()
    EMBEDDERS.update(before)


def embeds(to: Answering) -> None:
    """An OpenAI-compatible answer to a question for embeddings, the last text first."""
    texts = to.server.asked[-1].body["input"]
    data = [{"index": n, "embedding": meaning(text)} for n, text in enumerate(texts)][::-1]
    to.head(200, "application/json")
    to.wfile.write(json.dumps({"object": "list", "data": data, "model": "toy"}).encode())
