"""Which embedder memory is found by: as files, settings and Python say, and refused where there is none."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.behavior.agents import define_agent, load_agent_file
from agentmesh.behavior.declared import Models
from agentmesh.behavior.embedders import EMBEDDERS, Embedders, EmbedderSpec, register_embedder
from agentmesh.errors import BadAgentFile
from agentmesh.infrastructure.embedding import unit_vectors
from agentmesh.testing import missing
from tests.meanings import Meanings, embeds
from tests.model_server import model_server


@pytest.fixture(autouse=True)
def _own_embedders() -> Iterator[None]:
    before = dict(EMBEDDERS)
    yield
    EMBEDDERS.clear()
    EMBEDDERS.update(before)


def test_a_file_names_one_or_says_where_a_model_is(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("agent: a\nreasoner: {rules: [{then: {answer: 1}}]}\nmemory: {embedder: local, name: {}}\n")
    assert load_agent_file(file).memory.embedder == EmbedderSpec(name="local")
    file.write_text(file.read_text().replace("local", "{model: m, base_url: 'http://h/v1'}"))
    spec = load_agent_file(file).memory
    assert spec.embedder == EmbedderSpec(model="m", base_url="http://h/v1")
    assert list(spec.entries) == ["name"]


@pytest.mark.parametrize("embedder", ["lokal", {"name": "local", "dimensions": 3}, {"model": "m"}])
def test_what_makes_no_vectors_is_refused_when_the_agent_is_hosted(make_mesh: Any, embedder: Any) -> None:
    with pytest.raises(BadAgentFile):
        make_mesh(define_agent("a", reasoner=lambda session: 1, memory={"embedder": embedder}))


def test_the_nearest_entries_need_an_embedder(make_mesh: Any) -> None:
    spec = define_agent("a", reasoner=lambda session: 1, session={"nearest": 3})
    with pytest.raises(BadAgentFile, match="nothing makes vectors"):
        make_mesh(spec)
    assert make_mesh(spec, embeddings__embedder="local")


def test_the_settings_say_what_a_file_leaves_out_and_their_key_goes_nowhere_else() -> None:
    models = Models("http://chat/v1", "chat", "chat", lambda name: f"secret of {name}")
    told = Embedders(EmbedderSpec(model="m", key="mine"), models)
    assert told.default == EmbedderSpec(model="m", base_url="http://chat/v1", key="mine")
    assert told.settled(EmbedderSpec(model="n"), "a").key == "mine"
    assert told.settled(EmbedderSpec(model="n", base_url="http://else/v1"), "a").key is None
    assert Embedders(EmbedderSpec(model="m"), models).default == EmbedderSpec(
        model="m", base_url="http://chat/v1", key="chat"
    )
    elsewhere = Embedders(EmbedderSpec(model="m", base_url="http://else/v1"), models).default
    assert elsewhere is not None
    assert elsewhere.key is None


def test_an_endpoint_is_asked_as_openai_is() -> None:
    with model_server(embeds) as server:
        embedders = Embedders(None, Models(secret=lambda name: f"key of {name}"))
        spec = EmbedderSpec(model="toy", base_url=server.url, key="shop", dimensions=3)
        made = embedders.get(embedders.settled(spec, "a"))
        assert unit_vectors(made, ["nuts", "card gold", ""], within_s=5) == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
        [asked] = server.asked
    assert asked.path == "/v1/embeddings"
    assert asked.headers["authorization"] == "Bearer key of shop"
    assert asked.body == {
        "model": "toy", "input": ["nuts", "card gold", ""], "encoding_format": "float", "dimensions": 3,
    }  # fmt: skip
    assert spec.vectors == "toy/3"


def test_one_of_the_users_is_named_by_agents_and_its_vectors_by_their_model() -> None:
    register_embedder("mine", model="mine-2")(Meanings)
    spec = Embedders().settled(EmbedderSpec(name="mine"), "a")
    assert spec.vectors == "mine-2"
    assert isinstance(Embedders().get(spec), Meanings)


def test_the_local_one_finds_what_other_words_mean_and_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wordllama") is None:
        missing("the extra embeddings")

    def no(*args: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no)
    embedder = Embedders().get(Embedders().settled(EmbedderSpec(name="local"), "a"))
    texts = ["diet: she is allergic to nuts", "billing: payment by credit card", "stay: a quiet room"]
    *known, food, pay = unit_vectors(
        embedder, [*texts, "Does the customer have any food intolerances?", "how does the client pay"], within_s=5
    )

    def best(question: list[float]) -> int:
        scores = [sum(a * b for a, b in zip(one, question, strict=True)) for one in known]
        return scores.index(max(scores))

    assert (best(food), best(pay)) == (0, 1)
