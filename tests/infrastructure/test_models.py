"""One question to a model: what is heard, and what every fault of an endpoint becomes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from agentmesh.errors import (
    AnswerRefused,
    MeshError,
    ModelBusy,
    ModelOverLimit,
    ModelRefused,
    ModelUnreachable,
    TimedOut,
)
from agentmesh.infrastructure.models import Bounds, Endpoint, Reply, ToolCall
from tests.model_server import (
    ModelServer,
    Step,
    answers,
    calls,
    delta,
    dripping,
    endless,
    flood,
    model_server,
    says,
    silent,
    slow_headers,
    stalling,
    streams,
    torn,
)  # fmt: skip
from tests.servers import free_port

KEY = "sk-canary-0123456789"
BODY = {"model": "small", "messages": [{"role": "user", "content": "hello"}]}


def ask(
    server: ModelServer, *, key: str | None = None, seconds: float = 5, tokens: int = 100, size: int = 200_000
) -> Reply:
    return Endpoint(server.url, key).ask(BODY, Bounds(seconds, tokens, size))


def refusal(step: Step, **bounds: Any) -> MeshError:
    with model_server(step) as server, pytest.raises(MeshError) as caught:
        ask(server, **bounds)
    return caught.value


def test_an_answer_is_read_as_a_stream_with_its_usage() -> None:
    with model_server(says("All is well.")) as server:
        reply = ask(server)
    assert (reply.text, reply.calls, reply.finish) == ("All is well.", (), "stop")
    assert (reply.model, reply.version, reply.input_tokens, reply.output_tokens) == ("small-1.5", "fp_7", 11, 7)
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == BODY | {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("indexes", [True, False])
def test_calls_come_in_pieces_and_are_told_apart(indexes: bool) -> None:
    with model_server(calls(("look", '{"n": 1}'), ("look", '{"n": 2}'), indexes=indexes)) as server:
        assert ask(server).calls == (ToolCall("look", '{"n": 1}'), ToolCall("look", '{"n": 2}'))


def test_only_the_headers_of_the_protocol_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with model_server(says("x")) as server:
        ask(server)
        ask(server, key=KEY)
    needed = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}
    assert [set(one.headers) for one in server.asked] == [needed, needed | {"authorization"}]
    assert server.asked[1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("step", [silent, dripping, slow_headers], ids=lambda one: one.__name__)
def test_s54_a_slow_endpoint_takes_no_longer_than_its_time(step: Step) -> None:
    began = time.monotonic()
    error = refusal(step, seconds=0.4)
    assert isinstance(error, TimedOut)
    assert time.monotonic() - began < 2


def test_a_wait_takes_what_is_left_of_the_time_and_no_more() -> None:
    began = time.monotonic()
    assert isinstance(refusal(stalling, seconds=1.5), TimedOut)
    assert time.monotonic() - began < 2.7


@pytest.mark.parametrize(
    ("step", "bounds", "says"),
    [(endless, {"tokens": 50}, "no end"), (endless, {"tokens": 10**9}, "too large"), (flood, {}, "too large")],
)
def test_s54_an_endless_answer_is_cut(step: Step, bounds: dict[str, int], says: str) -> None:
    error = refusal(step, **bounds)
    assert isinstance(error, ModelOverLimit | AnswerRefused)
    assert says in error.what


def test_s54_a_redirect_is_not_followed() -> None:
    with model_server(says("stolen")) as other:
        for status in (301, 302, 307, 308):
            error = refusal(answers(status, Location=f"{other.url}/chat/completions"), key=KEY)
            assert isinstance(error, ModelRefused)
            assert "redirects are not followed" in error.expected
        assert other.asked == []


def test_s54_a_key_that_the_endpoint_echoes_is_not_shown() -> None:
    echo = json.dumps({"error": {"message": f"wrong key {KEY}"}})
    for step in (answers(401, echo), answers(500, echo), answers(429, echo), streams({"error": {"message": KEY}})):
        parts = str(refusal(step, key=KEY))
        assert KEY not in parts
    with model_server(says(f"your key is {KEY}")) as server:
        assert ask(server, key=KEY).text == "your key is ***"


@pytest.mark.parametrize("status", [500, 502, 504, 408])
def test_a_failing_endpoint_may_be_asked_again(status: int) -> None:
    assert isinstance(refusal(answers(status)), ModelUnreachable)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_asked_again(status: int) -> None:
    assert isinstance(refusal(answers(status, "no")), ModelRefused)


NOON = datetime(2026, 4, 25, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "headers", "after"),
    [
        (429, {"Retry_After": "2"}, 2.0), (503, {"Retry_After": "0.5"}, 0.5), (429, {}, None), (503, {}, None),
        (500, {"Retry_After": "7"}, 7.0), (429, {"Retry_After": "soon"}, None), (429, {"Retry_After": "99999999"}, 3600.0),
        (429, {"Retry_After": "-5"}, None),
    ],
)  # fmt: skip
def test_a_busy_endpoint_says_when_to_come_again(status: int, headers: dict[str, str], after: float | None) -> None:
    error = refusal(answers(status, **headers))
    assert isinstance(error, ModelBusy)
    assert error.after == after


def test_a_date_to_come_again_at_counts_from_the_answers_own() -> None:
    def step(to: Any) -> None:
        to.send_response_only(429)
        to.send_header("Date", format_datetime(NOON, usegmt=True))
        to.send_header("Retry-After", format_datetime(NOON + timedelta(seconds=90), usegmt=True))
        to.send_header("Content-Length", "0")
        to.end_headers()

    error = refusal(step)
    assert isinstance(error, ModelBusy)
    assert error.after == 90.0


@pytest.mark.parametrize("step", [torn, streams(delta(content="half")), streams(delta(content="half"), done=False)])
def test_an_answer_that_is_cut_off_is_no_answer(step: Step) -> None:
    assert isinstance(refusal(step), ModelUnreachable)


def test_nobody_listening_is_unreachable() -> None:
    with pytest.raises(ModelUnreachable):
        Endpoint(f"http://127.0.0.1:{free_port()}/v1").ask(BODY, Bounds(5, 100, 1000))


@pytest.mark.parametrize(
    "step",
    [
        answers(200, "<html>", "text/html"), answers(200, json.dumps({"choices": []})),
        answers(200, "", "text/event-stream", Content_Encoding="gzip"),
    ],
)  # fmt: skip
def test_an_answer_of_another_kind_is_refused(step: Step) -> None:
    assert isinstance(refusal(step), ModelRefused | AnswerRefused)


@pytest.mark.parametrize("chunk", ['{"choices": [', "[1]", '"x"', {"choices": "x"}, {"choices": [1]}, "[" * 100_000])
def test_a_stream_of_something_else_is_an_error_of_the_endpoint(chunk: Any) -> None:
    assert isinstance(refusal(streams(chunk)), ModelRefused | ModelUnreachable)


def test_arguments_that_come_as_an_object_are_read_as_their_text() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": {"n": 1}}}
    with model_server(streams(delta(tool_calls=[call], finish="tool_calls"))) as server:
        assert ask(server).calls == (ToolCall("look", '{"n": 1}'),)


def test_odd_types_in_a_chunk_are_passed_over() -> None:
    odd = {"choices": [{"delta": {"content": 5, "tool_calls": [1, {"function": 3}]}, "finish_reason": 7}], "usage": []}
    with model_server(streams(odd, {"choices": None}, delta(content="x", finish="stop"))) as server:
        reply = ask(server)
    assert (reply.text, reply.finish, reply.input_tokens) == ("x", "stop", None)


@pytest.mark.parametrize("body", [
    "{}", "[]", '{"data": []}', '{"data": [{"embedding": "x"}]}', '{"data": [{"embedding": [1, "x"]}]}',
    '{"data": [{"embedding": [true]}]}', '{"data": [{"index": 1, "embedding": [1]}]}', '{"data": [{"embedding": [1]}, {}]}',
])  # fmt: skip
def test_an_answer_without_the_vectors_is_refused(body: str) -> None:
    with model_server(answers(200, body)) as server, pytest.raises(ModelRefused):
        Endpoint(server.url).embed("m", ["a text"], within_s=5)


def test_an_endpoint_for_embeddings_takes_no_longer_than_its_time() -> None:
    with model_server(silent) as server, pytest.raises(TimedOut):
        Endpoint(server.url).embed("m", ["a text"], within_s=0.3)
