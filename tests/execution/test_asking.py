"""Another agent as a tool: its call is a child trace that the step joins on, and nobody holds it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentmesh import define_agent
from agentmesh.errors import BadArguments, BadTool, BadToolFile, Permanent, TraceFailed, UnknownCall
from agentmesh.execution.toolfiles import load_tools
from agentmesh.execution.tools import TOOLS, ToolRegistry, register_tool
from agentmesh.infrastructure import faults
from agentmesh.records import AgentCall
from agentmesh.state import children as between
from agentmesh.state import rescue, retry, steering
from tests.faults.byhand import AWAY, failing, work

CHILDREN = "SELECT agent, intent, status, permissions, payload, waits_for FROM mesh.traces WHERE parent_id = %(id)s ORDER BY id"
ME = {"tenant": "default", "by": "ann"}


@pytest.fixture
def lab(make_lab: Any, tools: ToolRegistry) -> Any:
    """desk: a tool that asks the agent clerk, who answers what `lab.says` returns; hop: asks who has the tool; plain: 1."""

    @register_tool(
        "desk", registry=tools, needs=["desk:ask"], timeout=60, asks=AgentCall("clerk", "judge", ("desk:read",))
    )
    def desk(order: int) -> dict[str, int]:
        return {"n": order}

    @register_tool("lost", registry=tools, asks=AgentCall("nobody"))
    def lost() -> dict[str, int]:
        return {}

    @register_tool("hop", registry=tools, asks=AgentCall("puppet"))
    def hop() -> dict[str, Any]:
        return {"do": [{"tools": ["hop"]}]}

    @register_tool("plain", registry=tools, needs=["desk:read"])
    def plain() -> int:
        return 1

    clerk = define_agent(
        "clerk", reasoner=lambda session: {"answer": made.says(session)}, grants=["desk:read", "desk:ask"],
        policy={"reasoner_attempts": 1},
    )  # fmt: skip
    made = make_lab(clerk)
    made.says = lambda session: session.payload["n"] + 1
    return made


def asked(lab: Any, *others: str, **action: Any) -> Any:
    """A trace whose open step calls desk for order 7, and these others; nobody has claimed one."""
    return lab.open({"tool": "desk", "args": {"order": 7}}, *others, **action)


def told(lab: Any, trace: Any) -> list[dict[str, Any]]:
    for row in between.unwanted(lab.mesh.db, batch=10):
        between.drop(lab.mesh.db, row)
    return lab.rows(CHILDREN, id=trace.id)


def test_what_the_other_agent_answers_is_the_result_of_the_call(lab: Any) -> None:
    trace = asked(lab)
    lab.drain()
    assert trace.result(1) == 8
    assert lab.outcomes(trace) == ["won"]
    assert told(lab, trace) == [{
        "agent": "clerk", "intent": "judge", "status": "done", "permissions": ["desk:read"], "payload": {"n": 7},
        "waits_for": None,
    }]  # fmt: skip


def test_while_it_is_asked_nobody_holds_the_call_and_a_death_changes_nothing(lab: Any) -> None:
    trace = asked(lab)
    lab.answer()
    [call] = lab.calls(trace)
    assert (call["status"], call["worker_id"]) == ("running", None)
    lab.kill(lab.hand)
    assert [row for row in rescue.orphans(lab.mesh.db, batch=10) if row["kind"] == "call"] == []


@pytest.mark.parametrize(("strategy", "result"), [("serial", 1), ("parallel", {"desk": 8, "plain": 1})])
def test_beside_other_tools_it_is_one_of_them(lab: Any, strategy: str, result: Any) -> None:
    trace = asked(lab, "plain", strategy=strategy)
    lab.drain()
    assert trace.result(1) == result
    assert [call["result"] for call in lab.calls(trace)] == [8, 1]


def test_where_the_other_agent_fails_the_next_of_a_fallback_has_its_turn(lab: Any) -> None:
    lab.says = lambda session: 1 / 0
    trace = asked(lab, "plain", strategy="fallback")
    lab.drain()
    assert (trace.result(1), lab.calls(trace)[0]["error"]["code"]) == (1, "E_REASONER")


@pytest.mark.parametrize("what", ["nobody", "itself for ever"])
def test_who_cannot_be_asked_fails_the_call_for_good(lab: Any, what: str) -> None:
    trace = lab.start({"tools": ["lost" if what == "nobody" else "hop"]})
    lab.drain()
    assert trace.status() == "failed"
    [call, *_] = lab.rows("SELECT error, n FROM mesh.calls WHERE error->>'code' NOT LIKE 'E_TRACE%%' ORDER BY id DESC")
    assert (call["error"]["code"], call["n"]) == ({"nobody": "E_AGENT_UNKNOWN"}.get(what, "E_DEPTH"), 1)


def test_a_call_that_lost_its_race_cancels_whom_it_asked(lab: Any) -> None:
    trace = asked(lab, "plain", strategy="parallel", require="any")
    lab.answer()  # desk asks
    asking = lab.bells.waiting.pop()
    assert (asking.task, asking.kind) == ("agent.clerk", "trace")
    lab.drain()
    assert (trace.result(1), [row["status"] for row in told(lab, trace)]) == ({"plain": 1}, ["cancelled"])


def test_a_cancelled_trace_cancels_whom_it_asked(lab: Any) -> None:
    trace = asked(lab)
    lab.answer()
    steering.cancel(lab.mesh.db, trace_id=trace.id, tree=False, **ME)
    assert [row["status"] for row in told(lab, trace)] == ["cancelled"]


def test_who_does_not_answer_in_time_is_cancelled_and_the_call_has_timed_out(lab: Any) -> None:
    trace = asked(lab)
    lab.answer()
    lab.shift(61)
    [row] = rescue.overdue(lab.mesh.db, batch=10)
    rescue.give_back(lab.mesh.db, row, "timeout")
    assert [row["status"] for row in told(lab, trace)] == ["cancelled"]
    [call] = lab.calls(trace)
    assert call["timeouts"] == 1


def test_whom_a_paused_trace_asks_waits_for_its_resume(lab: Any) -> None:
    trace = asked(lab)
    faults.arm("ask.before_commit", lambda: steering.pause(lab.mesh.db, trace_id=trace.id, **ME))
    lab.answer()
    assert [(row["status"], row["waits_for"]) for row in told(lab, trace)] == [("held", "parent")]


def test_nobody_else_answers_for_the_agent(lab: Any) -> None:
    trace = asked(lab)
    lab.answer()
    with pytest.raises(UnknownCall, match="answered by another agent"):
        lab.mesh.answers.finish(lab.calls(trace)[0]["id"], 5)


def test_a_retry_of_the_caller_retries_the_agent_that_failed(lab: Any) -> None:
    lab.says = lambda session: 1 / 0
    trace = asked(lab)
    lab.drain()
    assert trace.status() == "failed"
    lab.says = lambda session: session.payload["n"]
    lab.bells.ring(retry.retry(lab.mesh.db, trace_id=trace.id, **ME))
    lab.drain()
    assert trace.result(1) == 7
    assert [row["status"] for row in told(lab, trace)] == ["done"]
    assert lab.outcomes(trace) == ["failed", "won"]


def test_a_retry_takes_what_the_agent_came_to_when_it_was_retried_itself(lab: Any) -> None:
    lab.says = lambda session: 1 / 0
    trace = asked(lab)
    lab.drain()
    lab.says = lambda session: session.payload["n"]
    [child] = lab.rows("SELECT id FROM mesh.traces WHERE parent_id = %(id)s", id=trace.id)
    lab.bells.ring(retry.retry(lab.mesh.db, trace_id=child["id"], **ME))
    lab.drain()
    lab.says = lambda session: 1 / 0
    lab.bells.ring(retry.retry(lab.mesh.db, trace_id=trace.id, **ME))
    lab.drain()
    assert trace.result(1) == 7


def test_what_the_agent_must_not_do_twice_no_retry_of_the_caller_repeats(make_lab: Any, tools: ToolRegistry) -> None:
    ran = []

    @register_tool("pay", registry=tools, effect="once")
    def pay() -> None:
        ran.append(1)
        raise Permanent("it may have gone out")

    @register_tool("desk", registry=tools, asks=AgentCall("clerk"))
    def desk() -> dict[str, int]:
        return {}

    lab = make_lab(define_agent("clerk", reasoner=lambda _: {"tools": ["pay"]}, grants=["*"], tools=["pay"]))
    trace = lab.start({"tools": ["desk"]})
    lab.drain()
    lab.bells.ring(retry.retry(lab.mesh.db, trace_id=trace.id, **ME))
    lab.drain()
    [call] = lab.calls(trace)
    assert (trace.status(), call["error"]["code"], len(ran)) == ("failed", "E_NOT_RETRYABLE", 1)


def test_a_retry_before_a_cancel_was_given_cancels_the_first_child_and_asks_another(lab: Any) -> None:
    trace = asked(lab)
    lab.answer()
    lab.bells.waiting.clear()
    lab.shift(61)
    [row] = rescue.overdue(lab.mesh.db, batch=10)
    lab.bells.ring(rescue.give_back(lab.mesh.db, row, "timeout"))
    lab.drain()
    old = between.unwanted(lab.mesh.db, batch=10)
    assert (trace.status(), len(old)) == ("failed", 1)
    lab.bells.ring(retry.retry(lab.mesh.db, trace_id=trace.id, **ME))
    lab.answer()
    for late in old:  # a rescuer that was frozen between its look and its deed
        between.drop(lab.mesh.db, late)
    lab.drain()
    assert trace.result(1) == 8
    assert [row["status"] for row in told(lab, trace)] == ["cancelled", "done"]


def test_where_an_answer_to_a_commit_and_the_next_try_are_lost_it_has_asked(lab: Any) -> None:
    trace = asked(lab)
    real, lost = lab.mesh.db.once, iter([True, False])

    def once(sql: str, params: Any = None) -> Any:
        if sql is between.ASK and (landed := next(lost, None)) is not None:
            if landed:
                real(sql, params)
            raise psycopg.OperationalError("the answer was lost")
        return real(sql, params)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lab.mesh.db, "once", once)
        lab.answer()
    lab.drain()
    assert (trace.result(1), lab.outcomes(trace)) == (8, ["won"])


def test_a_tool_that_only_tool_workers_have_is_refused_to_the_agent_that_cannot_ask(
    lab: Any, tools: ToolRegistry
) -> None:
    lab.mesh.registry.announce(lab.mesh.db, [lab.mesh.tenant])
    tools.unregister("plain")
    lab.rows("UPDATE mesh.tools SET spec = spec || jsonb_build_object('asks', 'clerk') WHERE id = 'plain'")
    trace = lab.start({"tools": ["plain"]})
    lab.drain()
    with pytest.raises(TraceFailed, match="not declared where agent puppet runs"):
        trace.result(1)


@pytest.mark.parametrize("fate", ["drop", "commit_unknown"])
def test_f08_a_lost_round_trip_asks_once(lab: Any, fate: str) -> None:
    for nth in range(1, 20):
        trace = asked(lab)
        with failing(nth, faults.ACTIONS[fate]) as fault, suppress(*AWAY):
            lab.answer()
        assert work(lab, trace) == "done"
        assert [(row["status"], row["payload"]) for row in told(lab, trace)] == [("done", {"n": 7})]
        assert "stale" not in lab.outcomes(trace)
        if not fault.hits:
            return
    pytest.fail("the fault never stopped firing")


def test_many_inputs_are_refused(lab: Any) -> None:
    with pytest.raises(BadArguments, match="given one input"):
        lab.mesh.tools.get("desk").check({"for": [{"order": 1}]})


def test_a_tool_that_asks_runs_nowhere_itself(tools: ToolRegistry) -> None:
    declare: Callable[..., Any] = register_tool("bad", registry=tools, inline=True, asks=AgentCall("clerk"))
    with pytest.raises(BadTool, match="runs nowhere"):
        declare(dict)


FILE = """
tool: ask_clerk
description: What the clerk thinks of an order.
arguments: {n: {type: integer}}
timeout: 1h
agent: {to: clerk, intent: judge}
"""


def test_a_file_declares_one(tmp_path: Path) -> None:
    (tmp_path / "ask.yaml").write_text(FILE)
    [tool] = load_tools([tmp_path], lambda name: name)
    assert tool.asks == AgentCall("clerk", "judge", None)
    assert tool.check({"n": 4}) == {"n": 4}
    assert (tool.spec()["asks"], tool.timeout_s, tool.attempts) == ("clerk", 3600, 1)


def test_a_file_cannot_say_what_the_agent_will_answer(tmp_path: Path) -> None:
    (tmp_path / "ask.yaml").write_text(FILE + "result: {type: integer}\n")
    with pytest.raises(BadToolFile, match=r"ask.yaml:6:8: .*has no schema here"):
        load_tools([tmp_path], lambda name: name)
    assert "ask_clerk" not in TOOLS
