"""The example projects whose tools are files, or answer later, as they stand and against real servers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from agentmesh import testing
from agentmesh.execution.tools import TOOLS
from tests.conftest import Lab
from tests.sites import Site, saying

EXAMPLES = Path(__file__).parents[2] / "examples"
PRICES = {"atlas": 4200, "globe": 9900}


@pytest.fixture
def open_example(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Lab]]:
    """open_example(name, site) -> Lab: the project, with 127.0.0.1:8080 in its tools read as this site."""
    made, known = [], {one.name for one in TOOLS.list()}

    def open_(name: str, site: Site | None = None) -> Lab:
        root = tmp_path / name
        shutil.copytree(EXAMPLES / name, root)
        for file in root.glob("tools/*.yaml"):
            file.write_text(file.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{site.port if site else 1}"))
        monkeypatch.syspath_prepend(str(root))
        mesh, bells = testing.hand_mesh(database_url, root=root, flags={"mesh.home": tmp_path})
        made.append(mesh)
        return Lab(database_url, mesh, bells)

    yield open_
    for mesh in made:
        mesh.close()
    for name in {one.name for one in TOOLS.list()} - known:
        TOOLS.unregister(name)


def shop(to: BaseHTTPRequestHandler, body: bytes) -> None:
    if to.path == "/customers/7":
        saying('{"name": "Ada"}', kind="application/json")(to)
    else:
        prices = [
            {"jsonrpc": "2.0", "id": one["id"], "result": PRICES[one["params"]["article"]]} for one in json.loads(body)
        ]
        saying(json.dumps(prices), kind="application/json")(to)


def test_the_clerk_asks_two_systems_and_books_once(
    open_example: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTMESH_SECRET_CRM_TOKEN", "canary")
    site = Site()
    site.answer = lambda to: shop(to, site.seen[-1].body)
    lab = open_example("http_tools", site)
    [table] = re.findall(r"CREATE TABLE[^;]+", (EXAMPLES / "http_tools/README.md").read_text())
    lab.rows(table)
    trace = lab.mesh.router.dispatch("renew", "reader", "clerk", "c-1", {"customer": 7, "articles": [
        {"article": "atlas"}, {"article": "globe"},
    ]})  # fmt: skip
    lab.drain()
    site.close()
    assert trace.result(0) == 1
    rows = lab.rows("SELECT customer, cents FROM renewals")
    lab.rows("DROP TABLE renewals")
    assert rows == [{"customer": "Ada", "cents": 14_100}]
    asked = {one.path: one for one in site.seen}
    assert asked["/customers/7"].headers["authorization"] == "Bearer canary"
    assert len(site.seen) == 2


def test_the_publisher_waits_for_its_printing_house(open_example: Callable[..., Lab]) -> None:
    lab = open_example("late_answer")
    trace = lab.mesh.router.dispatch("publish", "reader", "publisher", "c-1", {"title": "Atlas", "copies": 3})
    lab.drain()
    [call] = lab.calls(trace)
    assert (trace.status(), call["worker_id"]) == ("running", None)
    lab.mesh.answers.finish(call["id"], {"parcel": "P-1"})
    lab.drain()
    assert trace.result(0) == {"parcel": "P-1"}
    [row] = lab.rows("SELECT target, body FROM mesh.deliveries")
    assert (row["target"], row["body"]["data"]["result"]) == ("https://shop.example/hooks/agentmesh", {"parcel": "P-1"})
