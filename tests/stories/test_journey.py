"""The journey of one intent, event by event, on every broker and with both pools."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytestmark = pytest.mark.story

GATHER = ["REASONER_PROMPT", "REASONER_ACTION", "TOOL_DISPATCH", "TOOL_EXEC", "TOOL_EXEC", "TOOL_EXEC"]
FALL_BACK = ["REASONER_PROMPT", "REASONER_ACTION", "TOOL_DISPATCH", "TOOL_FAIL", "TOOL_EXEC"]
CALLBACK = ["REASONER_FEEDBACK", "MEMORY_WRITE", "CALLBACK_RESULT", "CALLBACK_NEXT_ACTION"]
START = ["BIR_DISPATCH", "ACP_RECEIVE", "RUN_ONCE_START", "EXEC_START"]
PARENT = [
    *START,
    *GATHER, *CALLBACK, "EXEC_LOOP",
    *FALL_BACK, *CALLBACK, "EXEC_LOOP",  # 0.6 is not sure enough
    *FALL_BACK, *CALLBACK, "EXEC_DELEGATE", "EXEC_DONE",
]  # fmt: skip
CHILD = [
    *START,
    "REASONER_PROMPT", "REASONER_ACTION", "TOOL_DISPATCH", "TOOL_EXEC", *CALLBACK, "EXEC_DONE",
]  # fmt: skip


def travel(story: Any, pool: str) -> None:
    story.workers(("agents", pool), ("tools", pool))
    trace = story.dispatch("analyst", {"customer": 7, "text": "my card!"}, context_id="customer-7")
    assert trace.result(timeout=20)["customer"] == 7
    story.quiet()
    child = story.rows("SELECT * FROM mesh.traces WHERE parent_id = %s", trace.id)[0]

    assert story.events(trace.id) == PARENT
    assert story.events(child["id"]) == CHILD
    assert story.statuses() == {("analyst", "done"): 1, ("archivist", "done"): 1}
    assert (child["context_id"], child["permissions"]) == ("customer-7", ["reports:write"])
    assert child["result"] == {"report": 7}

    ran = Counter(line["tool"] for line in story.ledger())
    assert ran == {"orders": 1, "contract": 1, "rate": 1, "ask_model": 2, "vote": 2, "file_report": 1}
    kept = story.rows("SELECT trace_id, value, version FROM mesh.memory WHERE key = 'case' AND type = 'long_term'")
    assert [(row["version"], row["value"]["confidence"]) for row in kept] == [(1, pytest.approx(0.9))]
    assert story.value("SELECT count(*) FROM mesh.attempts WHERE outcome IS DISTINCT FROM 'won'") == 2  # the model


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("kind", ["redis", "amqp"])
def test_an_intent_travels_over_a_broker(make_story: Any, kind: str, pool: str) -> None:
    travel(make_story(kind), pool)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_an_intent_travels_on_the_embedded_parts(newcomer: Any, pool: str) -> None:
    travel(newcomer, pool)
