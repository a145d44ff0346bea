"""The Python that EXPERIENCE shows, as written: tools, an adopted task, dispatch in a transaction, the handle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.story
HERE = Path(__file__).parent

AGENT = """
agent: complaints
tools: [query_db, charge_card, send_invoice]
grants: ["db:read", "pay:charge", "mail:send"]
reasoner: {python: "shop:complaints"}
policy: {backoff: {base_s: 0.05, cap_s: 0.1}}
"""


def test_a_shop_uses_its_tools_its_task_and_its_own_transaction(make_story: Any) -> None:
    story = make_story("embedded")
    (story.home / "shop-agents").mkdir()
    (story.home / "shop-agents" / "complaints.yaml").write_text(AGENT)
    story.env |= {"AGENTMESH_AGENTS_PATHS": str(story.home / "shop-agents"), "AGENTMESH_TOOLS_IMPORTS": "shop"}
    story.worker("all")
    front = story.run([str(HERE / "run_shop.py")], "front")
    assert front.wait(60) == 0, front.text()
    said = json.loads(front.text().splitlines()[-1])

    assert said["status"] == "done"
    assert said["result"]["query_db"] == [{"number": 70, "placed": "2025-04-25"}]
    assert said["result"]["charge_card"] | {"key": ""} == {"order": "7", "cents": 500, "key": ""}
    assert said["result"]["send_invoice"] == "7 sent on try 2 as 7"  # our retry, which its task asked for
    assert said["followed"] == story.events(said["id"])
    assert said["followed"][-1] == "EXEC_DONE"
    assert said["again"] == said["id"]
    assert (said["orders"], said["unwanted"]) == ([7], 0)
    assert "customer ids start at 1" in said["failure"]
    tries = (
        "SELECT a.n, a.outcome FROM mesh.attempts a JOIN mesh.calls c ON c.id = a.call_id WHERE c.tool = %s ORDER BY n"
    )
    assert [(row["n"], row["outcome"]) for row in story.rows(tries, "send_invoice")] == [(1, "failed"), (2, "won")]
    lost = "SELECT count(*) FROM mesh.attempts a JOIN mesh.calls c ON c.id = a.call_id WHERE c.args->>'customer' = '-1'"
    assert story.value(lost) == 1  # Permanent: not tried again
