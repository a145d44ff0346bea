"""A webhook's delivery is a row in the commit that it tells of, whoever makes that commit."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.infrastructure import faults
from agentmesh.records import new_id
from agentmesh.state import rescue, steering, traces

HOOK = {"url": "https://hooks.example/in", "secret": "hooks"}


def deliveries(lab: Any) -> list[dict[str, Any]]:
    return lab.rows("SELECT * FROM mesh.deliveries ORDER BY id")


def done(lab: Any) -> Any:
    trace = lab.start({"answer": {"n": 1}}, policy={"webhook": HOOK})
    lab.drain()
    return trace


def failed(lab: Any) -> Any:
    trace = lab.start({"tools": ["boom"]}, policy={"webhook": HOOK})
    lab.drain()
    return trace


def cancelled(lab: Any) -> Any:
    trace = lab.open("work", policy={"webhook": HOOK})
    steering.cancel(lab.mesh.db, tenant="default", trace_id=trace.id, by="me")
    return trace


def parked(lab: Any) -> Any:
    trace = lab.start({"answer": 1}, policy={"webhook": HOOK})
    held = lab.mesh.runtime("puppet").prepare_context(lab.bells.waiting.pop()).trace
    while True:
        row = {"kind": "trace", "id": held.id, "tenant_id": held.tenant_id, "epoch": held.epoch,
               "worker_id": held.holder.worker_id}  # fmt: skip
        rescue.give_back(lab.mesh.db, row, "lost")
        step = lab.step(trace)
        taken = traces.take(
            lab.mesh.db, step["id"], step["epoch"], agent="puppet", holder=lab.hand, claim_id=new_id(), alone=True
        )
        if taken is None:
            return trace
        held = taken.trace


@pytest.mark.parametrize(("end", "status", "code"), [
    (done, "done", None), (failed, "failed", "E_TOOL"), (cancelled, "cancelled", None), (parked, "failed", "E_POISON"),
])  # fmt: skip
def test_every_end_of_a_trace_leaves_one_delivery(lab: Any, end: Any, status: str, code: str | None) -> None:
    trace = end(lab)
    [row] = deliveries(lab)
    assert (row["trace_id"], row["tenant_id"], row["target"], row["status"]) == (
        trace.id, "default", HOOK["url"], "ready",
    )  # fmt: skip
    body = row["body"]
    assert (body["secret"], body["type"], (body["data"]["error"] or {}).get("code")) == (
        "hooks", f"trace.{status}", code,
    )  # fmt: skip
    result = {"n": 1} if status == "done" else None
    assert {name: body["data"][name] for name in ("trace", "agent", "intent", "context", "status", "result")} == {
        "trace": str(trace.id), "agent": "puppet", "intent": "work", "context": "c-1", "status": status, "result": result,
    }  # fmt: skip


def test_a_callback_is_told_of_where_the_policy_says_so(lab: Any) -> None:
    lab.start({"tools": [{"tool": "work", "args": {"n": 1}}]}, policy={"webhook": HOOK | {"on": ["callback"]}})
    lab.drain()
    [row] = deliveries(lab)
    assert (row["body"]["type"], row["body"]["data"]["output"]["results"]) == ("callback.result", {"work": 2})
    assert row["step_id"] is not None


def test_without_a_webhook_there_is_no_delivery(lab: Any) -> None:
    lab.start({"answer": 1})
    lab.drain()
    assert deliveries(lab) == []


def test_an_end_whose_commit_was_not_heard_is_told_of_once(lab: Any) -> None:
    trace = lab.start({"answer": 1}, policy={"webhook": HOOK})
    faults.arm("finish.before_commit", faults.ACTIONS["commit_unknown"])
    lab.drain()
    assert trace.status() == "done"
    assert len(deliveries(lab)) == 1


@pytest.mark.parametrize("url", [
    "https://hooks.example/\r\nX-Evil: 1", "https://hooks.example/ x", "ftp://hooks.example/", "javascript:x", "https://",
    "https://me:canary@hooks.example/", "https://hooks.example@evil.example/", "https://hooks.example#@evil.example/",
])  # fmt: skip
def test_s40_a_url_that_is_none_is_refused_at_dispatch(lab: Any, url: str) -> None:
    with pytest.raises(Exception, match="E_POLICY"):
        lab.start({"answer": 1}, policy={"webhook": HOOK | {"url": url}})
