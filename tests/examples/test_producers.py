"""The example projects of a web application that dispatches, and of agents that delegate, as they stand on real rows."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh import ACPClient, testing
from agentmesh.execution.tools import TOOLS
from tests.conftest import Lab

EXAMPLES = Path(__file__).parents[2] / "examples"
Open = Callable[[str], Lab]


@pytest.fixture
def open_example(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """open_example(name) -> Lab: the project as its worker runs it."""
    made, known = [], {one.name for one in TOOLS.list()}

    def open_(name: str) -> Lab:
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        mesh, bells = testing.hand_mesh(database_url, root=EXAMPLES / name, flags={"mesh.home": tmp_path})
        made.append(mesh)
        return Lab(database_url, mesh, bells)

    yield open_
    for mesh in made:
        mesh.close()
    for name in {one.name for one in TOOLS.list()} - known:
        TOOLS.unregister(name)
    for name in ("shop", "warehouse", "dictionary"):
        sys.modules.pop(name, None)


@pytest.fixture
def shop(open_example: Open) -> Iterator[tuple[Any, Lab]]:
    """The web application, and the warehouse beside it."""
    lab = open_example("flask_shop")
    client = ACPClient(lab.mesh.settings)
    client.__dict__["mesh"] = lab.mesh  # its doorbells wait for the test
    app = importlib.import_module("shop").create_app(client)
    yield app.test_client(), lab
    app.extensions["engine"].dispose()
    lab.rows("DROP TABLE shop_orders, shop_stock")


def test_an_order_and_its_intent_are_committed_together_and_shipped_once(shop: tuple[Any, Lab]) -> None:
    web, lab = shop
    placed = web.post("/orders", json={"number": 1, "item": "lamp", "count": 2})
    assert placed.status_code == 201
    assert [str(one.trace_id) for one in lab.bells.waiting] == [placed.json["trace"]]
    assert web.get("/orders/1").json["parcel"] is None
    lab.drain()
    assert web.get("/orders/1").json == {"number": 1, "parcel": "P-1", "trace": placed.json["trace"]}
    assert lab.rows("SELECT id::text, status FROM mesh.traces") == [{"id": placed.json["trace"], "status": "done"}]


def test_an_order_that_is_rolled_back_leaves_no_intent_and_rings_nobody(shop: tuple[Any, Lab]) -> None:
    web, lab = shop
    assert web.post("/orders", json={"number": 2, "item": "lamp", "count": 9}).status_code == 409
    assert web.get("/orders/2").status_code == 404
    assert lab.rows("SELECT id FROM mesh.traces UNION ALL SELECT id FROM mesh.envelopes") == []
    assert not lab.bells.waiting


def test_the_desk_asks_the_translator_and_decides_by_the_answer(open_example: Open) -> None:
    lab = open_example("two_agents")

    def ask(text: str) -> Any:
        trace = lab.mesh.router.dispatch("answer_letter", "post", "desk", "c-1", {"text": text})
        lab.drain()
        return trace

    trace = ask("Meine Rechnung ist falsch.")
    assert trace.result(0) == {"to": "accounting", "letter": "my invoice is wrong"}
    [errand] = lab.rows("SELECT agent, status, permissions FROM mesh.traces WHERE parent_id = %(id)s", id=trace.id)
    assert errand == {"agent": "translator", "status": "done", "permissions": ["dictionary:read"]}
    assert ask("merci").result(0) == {"to": "reception", "letter": "thanks"}
    assert ask("xyzzy").result(0) == {"to": "reception", "letter": "xyzzy"}


def test_the_clerk_asks_the_translator_as_a_tool(open_example: Open) -> None:
    lab = open_example("two_agents")
    trace = lab.mesh.router.dispatch("read_letter", "post", "clerk", "c-1", {"text": "Ma facture est fausse"})
    lab.drain()
    assert trace.result(0) == "French: my invoice is wrong"
    [asked] = lab.rows("SELECT agent, permissions FROM mesh.traces WHERE parent_id = %(id)s", id=trace.id)
    assert asked == {"agent": "translator", "permissions": ["dictionary:read"]}
