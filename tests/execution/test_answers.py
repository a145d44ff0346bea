"""Calls whose answer comes later: they hold nothing while they wait, and end once, by the answer or by their deadline."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.errors import BadResult, CallEnded, SecretMissing, UnknownCall
from agentmesh.execution.answers import Answers
from agentmesh.execution.tools import ToolContext, ToolRegistry, register_tool
from agentmesh.infrastructure import faults
from agentmesh.records import Backoff, Later, new_id
from agentmesh.state import rescue, steering
from agentmesh.testing import race


@pytest.fixture
def lab(make_lab: Any, tools: ToolRegistry, monkeypatch: pytest.MonkeyPatch) -> Any:
    """order: waits 100 s for a number · once: the same, effect once · hasty: is answered before it returns."""
    monkeypatch.setenv("AGENTMESH_SECRET_CALLBACKS", "a-secret-of-the-mesh")
    at_once = Backoff(base_s=0, cap_s=0)

    @register_tool("order", registry=tools, attempts=2, backoff=at_once)
    def order(ctx: ToolContext, n: int = 0) -> int | Later:
        return Later(within_s=100)

    @register_tool("single", registry=tools, effect="once")
    def single() -> int | Later:
        return Later(within_s=100)

    @register_tool("hasty", registry=tools)
    def hasty(ctx: ToolContext) -> int | Later:
        made.mesh.answers.finish(ctx.call_id, 9)
        return Later()

    @register_tool("here", registry=tools, inline=True, attempts=1)
    def here() -> Later:
        return Later()

    @register_tool("linked", registry=tools)
    def linked(ctx: ToolContext) -> Later:
        made.rows("CREATE TABLE IF NOT EXISTS links (url text)")
        made.rows("INSERT INTO links VALUES (%(url)s)", url=ctx.callback_url)
        return Later()

    made = make_lab()
    return made


def waiting(lab: Any, tool: str = "order") -> tuple[Any, dict[str, Any]]:
    """A trace with one call of this tool that waits for its answer."""
    trace = lab.start({"tools": [tool]})
    lab.drain()
    [call] = lab.calls(trace)
    return trace, call


def overdue(lab: Any) -> list[dict[str, Any]]:
    return rescue.overdue(lab.mesh.db, batch=10)


def test_a_call_that_waits_is_held_by_nobody_and_ends_with_its_answer(lab: Any) -> None:
    trace, call = waiting(lab)
    assert (call["status"], call["worker_id"], trace.status()) == ("running", None, "running")
    lab.mesh.answers.finish(call["id"], 5)
    lab.drain()
    assert trace.result(1) == 5
    assert lab.outcomes(trace) == ["won"]


def test_the_death_of_the_worker_that_asked_changes_nothing(lab: Any) -> None:
    trace, call = waiting(lab)
    lab.kill(lab.hand)
    assert [one for one in rescue.orphans(lab.mesh.db, batch=10) if one["kind"] == "call"] == []
    assert lab.calls(trace)[0]["epoch"] == call["epoch"]


def test_a_second_answer_is_told_that_the_call_has_ended(lab: Any) -> None:
    trace, call = waiting(lab)
    answers = [lambda n=n: lab.mesh.answers.finish(call["id"], n) for n in range(4)]
    said = race(*answers)
    assert sum(one is None for one in said) == 1
    assert sum(isinstance(one, CallEnded) for one in said) == 3
    lab.drain()
    assert trace.result(1) == [one is None for one in said].index(True)


def test_an_answer_that_breaks_the_schema_is_refused_and_the_call_waits_on(lab: Any) -> None:
    trace, call = waiting(lab)
    with pytest.raises(BadResult):
        lab.mesh.answers.finish(call["id"], "five")
    lab.mesh.answers.finish(call["id"], 5)
    lab.drain()
    assert trace.result(1) == 5


def test_a_call_may_be_answered_as_failed_for_good(lab: Any) -> None:
    trace, call = waiting(lab)
    lab.mesh.answers.fail(call["id"], "out of stock, password=canary")
    lab.drain()
    [row] = lab.calls(trace)
    assert (row["status"], row["error"]["message"], trace.status()) == (
        "failed", "out of stock, password=***", "failed",
    )  # fmt: skip


def test_an_answer_may_come_before_the_tool_has_returned(lab: Any) -> None:
    trace, _ = waiting(lab, "hasty")
    lab.drain()
    assert trace.result(1) == 9
    assert lab.outcomes(trace) == ["won"]


def test_no_answer_within_its_time_is_a_time_out_and_tried_again(lab: Any) -> None:
    trace, call = waiting(lab)
    assert overdue(lab) == []
    lab.shift(101)
    [row] = overdue(lab)
    rescue.give_back(lab.mesh.db, row, "timeout")
    [again] = lab.calls(trace)
    assert (again["status"], again["epoch"], lab.outcomes(trace)) == ("ready", call["epoch"] + 1, ["timeout"])
    with pytest.raises(CallEnded):
        lab.mesh.answers.finish(call["id"], 5)


def test_a_once_call_without_an_answer_is_unknown(lab: Any) -> None:
    trace, _ = waiting(lab, "single")
    lab.shift(101)
    rescue.give_back(lab.mesh.db, overdue(lab)[0], "timeout")
    assert lab.calls(trace)[0]["error"]["code"] == "E_OUTCOME_UNKNOWN"


def test_a_cancelled_trace_takes_no_answer(lab: Any) -> None:
    trace, call = waiting(lab)
    steering.cancel(lab.mesh.db, tenant="default", trace_id=trace.id, by="me")
    with pytest.raises(CallEnded):
        lab.mesh.answers.finish(call["id"], 5)
    assert overdue(lab) == []


def test_a_wait_whose_commit_was_not_heard_is_a_wait(lab: Any) -> None:
    faults.arm("call.after_effect", faults.ACTIONS["commit_unknown"])
    trace, call = waiting(lab)
    faults.disarm()
    assert (call["status"], call["worker_id"]) == ("running", None)
    lab.mesh.answers.finish(call["id"], 5)
    lab.drain()
    assert trace.result(1) == 5


def test_an_inline_call_must_answer_at_once(lab: Any) -> None:
    _, call = waiting(lab, "here")
    assert (call["status"], call["error"]["code"]) == ("failed", "E_RESULT")


# --- the URL


def test_a_callback_url_names_its_call(lab: Any) -> None:
    _, call = waiting(lab, "linked")
    [row] = lab.rows("SELECT url FROM links")
    lab.rows("DROP TABLE links")
    base, _, token = row["url"].rpartition("/")
    assert base == "http://127.0.0.1:8700/v1/callbacks"
    assert lab.mesh.answers.named(token) == call["id"]


def test_s40_a_forged_callback_is_refused(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Answers = lab.mesh.answers
    token = answers.url(new_id()).rpartition("/")[2]
    name, _, signature = token.partition(".")
    other = new_id().hex
    for forged in (
        "",
        ".",
        name,
        f"{name}.",
        f"{other}.{signature}",
        f"{name}.{signature[:-1]}",
        f"{token}.x",
        f"{name}.é",
    ):
        with pytest.raises(UnknownCall):
            answers.named(forged)
    monkeypatch.setenv("AGENTMESH_SECRET_CALLBACKS", "another")
    with pytest.raises(UnknownCall):
        answers.named(token)
    monkeypatch.delenv("AGENTMESH_SECRET_CALLBACKS")
    with pytest.raises(SecretMissing):
        answers.url(new_id())


def test_s20_a_call_of_another_tenant_is_unknown(lab: Any) -> None:
    _, call = waiting(lab)
    with pytest.raises(UnknownCall):
        lab.mesh.answers.finish(call["id"], 5, tenant="acme")
    with pytest.raises(UnknownCall):
        lab.mesh.answers.finish(new_id(), 5)
