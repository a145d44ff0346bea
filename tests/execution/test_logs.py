"""Log lines: each says whose it is, and what a call has said stands with its attempt, bounded and without secrets."""

import io
import json
import threading

import pytest
import structlog

from agentmesh.execution.tools import register_tool
from agentmesh.infrastructure import logging


@pytest.fixture
def lines():
    """lines() -> what was logged so far, each as its values."""
    out = io.StringIO()
    logging.configure(level="info", format="json", stream=out)
    logging.name_process(worker="w-1")
    yield lambda: [json.loads(one) for one in out.getvalue().splitlines()]
    logging._process.clear()
    structlog.reset_defaults()


def test_every_line_of_a_call_says_trace_step_call_attempt_and_worker(make_lab, tools, lines):
    @register_tool("talks", registry=tools)
    def talks(ctx):
        ctx.log.info("half way", n=1)
        structlog.get_logger("shop").warning("by myself", password="canary")

    @register_tool("quick", registry=tools, inline=True)
    def quick():
        structlog.get_logger("shop").info("inline")

    @register_tool("silent", registry=tools)
    def silent(): ...

    lab = make_lab()
    trace = lab.start({"tools": ["talks", "quick", "silent"], "strategy": "parallel"})
    lab.drain()
    calls = {one["tool"]: one for one in lab.calls(trace)}
    said = {one["event"]: one for one in lines()}
    for event, tool in (("half way", "talks"), ("by myself", "talks"), ("inline", "quick")):
        assert {key: said[event][key] for key in ("trace_id", "step_id", "call_id", "attempt", "worker")} == {
            "trace_id": str(trace.id), "step_id": str(calls[tool]["step_id"]), "call_id": str(calls[tool]["id"]),
            "attempt": said[event]["attempt"], "worker": "w-1",
        }  # fmt: skip
        assert int(said[event]["attempt"]) == 1
    ended = [one for one in lines() if one["event"] == "TOOL_EXEC" and one["call_id"] == str(calls["silent"]["id"])]
    assert ended[0]["trace_id"] == str(trace.id)
    kept = {one["call_id"]: one["log"] for one in lab.attempts(trace)}
    assert [one["event"] for one in kept[calls["talks"]["id"]]["lines"]] == ["half way", "by myself"]
    assert [one["event"] for one in kept[calls["quick"]["id"]]["lines"]] == ["inline"]
    assert kept[calls["silent"]["id"]] is None
    assert "canary" not in str(kept) + str(lines())


def test_a_line_of_a_reasoner_says_its_step_and_one_after_it_does_not(make_lab, lines):
    def mind(session):
        structlog.get_logger("mind").info("thinking")
        return {"answer": 1}

    lab = make_lab(reasoner=mind)
    trace = lab.start()
    lab.drain()
    structlog.get_logger("mind").info("outside")
    said = {one["event"]: one for one in lines()}
    assert (said["thinking"]["trace_id"], said["thinking"]["step_id"]) == (
        str(trace.id),
        str(lab.steps(trace)[0]["id"]),
    )
    assert not {"trace_id", "step_id", "call_id", "attempt"} & said["outside"].keys()


def test_inline_calls_at_once_and_reasoners_keep_their_own_lines(make_lab, tools, lines):
    over = threading.Event()

    def talker(name, fails):
        def talk():
            structlog.get_logger("shop").info(name)
            if fails:
                raise ValueError("at the end")

        register_tool(name, registry=tools, inline=True, attempts=1)(talk)

    def hang():
        structlog.get_logger("shop").info("last words")
        over.wait(20)

    def mind(session):
        structlog.get_logger("mind").info("thinking")
        return {"tools": ["one", "two", "hangs"], "strategy": "parallel", "require": "any"}

    talker("one", fails=False)
    talker("two", fails=True)
    register_tool("hangs", registry=tools, inline=True, attempts=1, timeout=0.3)(hang)
    lab = make_lab(reasoner=mind)
    trace = lab.start()
    lab.drain()
    over.set()
    names = {one["id"]: one["tool"] for one in lab.calls(trace)}
    kept = [(names.get(one["call_id"], one["kind"]), one["outcome"], [said["event"] for said in one["log"]["lines"]])
            for one in (*lab.attempts(trace), *lab.attempts(trace, "reason"))]  # fmt: skip
    assert sorted(kept) == [
        ("hangs", "timeout", ["last words"]), ("one", "won", ["one"]), ("reason", "won", ["thinking"]),
        ("two", "failed", ["two"]),
    ]  # fmt: skip


def test_what_is_kept_is_bounded_and_says_how_much_is_missing(make_lab, tools, lines):
    @register_tool("chatty", registry=tools, attempts=1)
    def chatty(ctx, size: int, count: int):
        for n in range(count):
            ctx.log.info("x" * size, n=n)
        raise ValueError("at the end")

    lab = make_lab()
    for size, count in ((1, 150), (9000, 3)):
        trace = lab.start({"tools": [{"tool": "chatty", "args": {"size": size, "count": count}}]})
        lab.drain()
        [attempt] = lab.attempts(trace)
        assert attempt["outcome"] == "failed"
        assert len(attempt["log"]["lines"]) + attempt["log"]["dropped"] == count
        assert len(json.dumps(attempt["log"])) < 20_000
