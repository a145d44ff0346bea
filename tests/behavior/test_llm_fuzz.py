"""Whatever an endpoint says, a reasoner gives an action that may run, or an error of ours; nothing else gets out."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentmesh.behavior.declared import Models
from agentmesh.behavior.llm import REPAIRABLE, LLMReasoner
from agentmesh.behavior.session import Session
from agentmesh.errors import ModelRefused
from agentmesh.execution.router import ToolRouter
from agentmesh.execution.tools import ToolRegistry, register_tool
from agentmesh.infrastructure.models import Reply, ToolCall, _Said
from agentmesh.records import Action

TOOLS = ToolRegistry()


@register_tool("look", registry=TOOLS)
def look(order: int) -> int:
    return order


@register_tool("pay", needs=["pay:send"], registry=TOOLS)
def pay(cents: int) -> int:
    return cents


SEEN = Session(trace_id="t", context_id="c", tenant="default", agent="a", intent="i", from_="u", tools=("look", "pay"))
KEYS = [
    "answer",
    "tools",
    "strategy",
    "require",
    "tool",
    "args",
    "as",
    "order",
    "cents",
    "policy",
    "candidates",
    "goto",
]
WORDS = ["look", "pay", "answer", "lok", "serial", "parallel", "fallback", "mixed", "all", "any", "", "\x00", "\ud800"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
SAID = VALUES.map(json.dumps) | st.text(max_size=30)
REPLIES = st.builds(
    Reply, text=SAID, calls=st.lists(st.builds(ToolCall, st.sampled_from(WORDS), SAID), max_size=3).map(tuple),
    finish=st.sampled_from(["stop", "tool_calls", "length", "content_filter", ""]), model=st.none(), version=st.none(),
    input_tokens=st.none() | st.integers(0, 99), output_tokens=st.none(), seconds=st.just(0.1),
)  # fmt: skip
CHUNK_KEYS = ["choices", "delta", "content", "tool_calls", "index", "id", "function", "name", "arguments", "finish_reason",
              "usage", "prompt_tokens", "completion_tokens", "model", "system_fingerprint"]  # fmt: skip
CHUNKS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(CHUNK_KEYS), inner, max_size=6),
    max_leaves=20,
)


class Saying:
    """An endpoint that says the same to every question."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def ask(self, *_: Any) -> Reply:
        return self.reply


@settings(deadline=None)
@given(REPLIES, st.sampled_from(["tools", "json"]))
@example(Reply("", (ToolCall("pay", '{"cents": 5}'),), "tool_calls", None, None, None, None, 0.1), "tools")
@example(Reply('{"answer": {"x": "\\ud800"}}', (), "stop", None, None, None, None, 0.1), "json")
def test_s15_what_a_model_says_is_an_action_that_may_run_or_an_error_of_ours(reply: Reply, output: str) -> None:
    made = LLMReasoner(prompt="P", model="m", base_url="http://127.0.0.1:9/v1", output=output)
    made.bind(ToolRouter(TOOLS, lambda _tenant: {}), Models())
    made.__dict__["_endpoint"] = Saying(reply)
    try:
        action = made.select_action(SEEN)
    except REPAIRABLE:
        return
    assert isinstance(action, Action)
    json.dumps(action.model_dump(mode="json"), allow_nan=False).encode()
    uses = [use for slot in action.slots for use in slot]
    assert {use.tool for use in uses} <= {"look"}  # its permissions cover no other
    for use in uses:
        assert set(use.args) == {"order"}
        assert type(use.args["order"]) is int


@settings(deadline=None)
@given(st.lists(CHUNKS, max_size=5))
def test_s54_what_a_stream_holds_is_read_or_refused(chunks: list[Any]) -> None:
    said = _Said()
    try:
        for chunk in chunks:
            said.add(chunk)
    except ModelRefused:
        return
    assert all(isinstance(one, str) for one in said.text)
    assert all(isinstance(part, str) for one in said.calls for part in (*one.name, *one.arguments))
    assert all(one is None or (isinstance(one, int) and one >= 0) for one in (said.input_tokens, said.output_tokens))
