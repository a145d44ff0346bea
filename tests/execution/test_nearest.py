"""Of memory a reasoner is shown what is nearest to its payload; that is recorded, and found again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentmesh.behavior.agents import define_agent
from agentmesh.observation import decisions
from tests.meanings import Meanings, known

FACTS = {"diet": "allergic to nuts", "billing": "she pays by card", "stay": "a quiet room", "menu": "no peanut food"}


@pytest.fixture
def toy() -> Iterator[Meanings]:
    made = Meanings()
    with known(toy=made):
        yield made


class Guest:
    """A mesh whose agent answers with the keys of memory that it is shown; everything it knows has its vector."""

    def __init__(self, make_mesh: Any, **session: Any) -> None:
        self.spec = define_agent(
            "guest", reasoner=lambda seen: {"answer": list(seen.memory)}, memory={"embedder": "toy"},
            session={"nearest": 2} | session, policy={"write_memory": False},
        )  # fmt: skip
        self.mesh, self.bells = make_mesh(self.spec)
        self.ask("hello")
        self.mesh.memory("c-1").write(FACTS)
        self.index()

    def index(self) -> None:
        for one in self.mesh.indexers():
            one.catch_up()

    def ask(self, text: str) -> Any:
        trace = self.mesh.router.dispatch("say", "ann", "guest", "c-1", {"text": text})
        self.bells.drain(self.mesh)
        return trace

    def account(self, trace: Any) -> Any:
        [body] = [one["body"] for one in self.mesh.trace_writer.get(trace.id) if one["name"] == "REASONER_ACTION"]
        return body["session"]


def keys(trace: Any) -> list[str]:
    return [key.removeprefix("long_term:") for key in trace.result(0)]


def test_a_reasoner_is_shown_what_is_nearest_and_the_rest_is_named(make_mesh: Any, toy: Meanings) -> None:
    guest = Guest(make_mesh)
    trace = guest.ask("what can she eat?")
    assert sorted(keys(trace)) == ["diet", "menu"]
    said = guest.account(trace)
    assert said["left_out"]["memory"] == {"long_term:billing": 0, "long_term:stay": 0}
    assert said["nearest"]["model"] == "toy"
    assert [score for _, score in said["nearest"]["found"]] == [1.0, 1.0]


@pytest.mark.parametrize("strategy", ["structured", "dialogue", "summary"])
def test_a_budget_is_spent_on_the_nearest_first(make_mesh: Any, toy: Meanings, strategy: str) -> None:
    guest = Guest(make_mesh, strategy=strategy, nearest=4, budget=60)
    guest.mesh.memory("c-1").store("billing", "she pays by card " + "x" * 400)
    guest.index()
    assert keys(guest.ask("a room to sleep"))[0] == "stay"
    assert "billing" not in keys(guest.ask("who pays with money?"))


def test_what_is_named_and_what_is_the_traces_own_is_shown_beside_it(make_mesh: Any, toy: Meanings) -> None:
    guest = Guest(make_mesh, nearest=1, options={"memory_keys": ["long_term:stay"]})
    assert keys(guest.ask("who pays?")) == ["stay", "billing"]


def test_a_decision_goes_on_without_its_embedder_and_says_so(make_mesh: Any, toy: Meanings) -> None:
    guest = Guest(make_mesh)
    guest.mesh.memory("c-1").store("diet", "newest")
    guest.index()
    toy.away = True
    trace = guest.ask("who pays?")
    assert keys(trace)[0] == "diet"
    assert len(keys(trace)) == 2
    assert guest.account(trace)["nearest"]["error"]["code"] == "E_MODEL"


def test_what_a_decision_was_shown_is_found_again_without_asking_the_model(make_mesh: Any, toy: Meanings) -> None:
    guest = Guest(make_mesh)
    trace = guest.ask("who pays?")
    guest.mesh.memory("c-1").store("later", "pays by invoice")
    guest.index()
    toy.asked.clear()
    point = decisions.point(guest.mesh.db, "default", trace.id, step=None, blobs=guest.mesh.blobs, spec=guest.spec)
    [seen] = decisions.shown(guest.mesh.db, "default", trace.id, blobs=guest.mesh.blobs)
    assert list(point.session.memory) == trace.result(0)
    assert sorted(seen["values"]["memory"]) == sorted(trace.result(0))
    assert toy.asked == []
