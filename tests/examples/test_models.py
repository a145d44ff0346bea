"""The example projects that ask models, as they stand, on real rows and against a scripted endpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh import testing
from agentmesh.execution.tools import TOOLS
from tests.model_server import ModelServer, calls, model_server, says

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """example(name, server) -> submit(agent, intent, **payload) -> the trace's result; its files are used as they are."""
    made, known = [], {one.name for one in TOOLS.list()}

    def open_(name: str, server: ModelServer) -> Callable[..., Any]:
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        flags: dict[str, object] = {"mesh.home": tmp_path, "llm.base_url": server.url}
        mesh, bells = testing.hand_mesh(database_url, root=EXAMPLES / name, flags=flags)
        made.append(mesh)

        def submit(agent: str, intent: str, **payload: Any) -> Any:
            trace = mesh.router.dispatch(intent, "reader", agent, "c-1", payload)
            bells.drain(mesh)
            return trace.result(0)

        return submit

    yield open_
    for mesh in made:
        mesh.close()
    for name in {one.name for one in TOOLS.list()} - known:
        TOOLS.unregister(name)
    for name in ("library", "refunds"):
        sys.modules.pop(name, None)


def test_the_librarian_looks_up_and_reserves(example: Callable[..., Any]) -> None:
    script = [
        calls(("search_books", '{"words": "Wells"}')),
        calls(("reserve_book", '{"book": 2}')),
        says("It is yours."),
    ]
    with model_server(*script) as server:
        ask = example("llm_agent", server)
        assert ask("librarian", "ask", member="Ada", question="A book by Wells, please.") == "It is yours."
    last = server.asked[-1]
    assert last.body["model"] == "qwen3:8b"
    assert last.messages[0]["content"].startswith("You are the librarian of a small library")
    found = json.loads(last.messages[1]["content"].split("found so far: ")[1])
    assert [book["id"] for book in found["search_books"]] == [2, 3]
    assert found["reserve_book"].endswith("for Ada")


WANTED = "the model wanted to refund more than 50.00"
ORDER = {"order": 8, "cents": 9900, "reason": "other", "text": "It arrived broken."}


def test_a_clear_refund_asks_no_model(example: Callable[..., Any]) -> None:
    with model_server(says("never")) as server:
        ask = example("hybrid_agent", server)
        paid = ask("refunds", "refund", **ORDER | {"cents": 1200, "reason": "not_delivered"})
        assert (paid["order"], paid["cents"]) == (8, 1200)
        assert "Nothing was paid" in ask("refunds", "refund", **ORDER | {"cents": 0})
    assert server.asked == []


@pytest.mark.parametrize(
    ("cents", "result"),
    [(4000, {"order": 8, "cents": 4000}), (9900, {"order": 8, "asked": WANTED})],
)
def test_the_model_refunds_up_to_fifty_and_a_person_the_rest(
    example: Callable[..., Any], cents: int, result: dict[str, Any]
) -> None:
    with model_server(calls(("refund", json.dumps({"order": 8, "cents": cents})))) as server:
        done = example("hybrid_agent", server)("refunds", "refund", **ORDER)
    assert {key: value for key, value in done.items() if key != "key"} == result


def test_another_order_is_refunded_never(example: Callable[..., Any]) -> None:
    with model_server(
        calls(("refund", '{"order": 9, "cents": 1}')), calls(("refund", '{"order": 8, "cents": 1}'))
    ) as server:
        assert example("hybrid_agent", server)("refunds", "refund", **ORDER)["order"] == 8
    assert "a refund is for this order" in server.asked[1].messages[-1]["content"]
