"""Logging: one line a fact, nothing secret in it, nothing that a terminal obeys."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from agentmesh.infrastructure import logging


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def line(stream: io.StringIO | None = None, **values: object) -> str:
    out = stream or io.StringIO()
    logging.configure(stream=out)
    structlog.get_logger().info("TOOL_EXEC", **values)
    return out.getvalue()


def test_a_line_off_a_terminal_is_json() -> None:
    found = json.loads(line(trace_id="t", left=0, body={"a": [1, None]}))
    assert found.pop("timestamp").endswith("Z")
    assert found == {
        "event": "TOOL_EXEC",
        "level": "info",
        "trace_id": "t",
        "left": 0,
        "body": {"a": [1, None]},
    }


def test_a_line_on_a_terminal_is_words() -> None:
    assert line(Terminal(), trace_id="t", note="two words").endswith(' info TOOL_EXEC trace_id=t note="two words"\n')


def test_what_is_below_the_level_is_not_written() -> None:
    out = io.StringIO()
    logging.configure(stream=out, level="warning")
    structlog.get_logger().info("quiet")
    assert out.getvalue() == ""


def test_an_exception_is_part_of_its_line() -> None:
    out = io.StringIO()
    logging.configure(stream=out)
    structlog.get_logger().error("broken", exc_info=ValueError("one\ntwo"))
    assert len(out.getvalue().splitlines()) == 1
    assert "ValueError" in json.loads(out.getvalue())["exception"]


def test_what_is_bound_to_the_context_is_in_every_line() -> None:
    structlog.contextvars.bind_contextvars(worker="w1")
    assert json.loads(line())["worker"] == "w1"


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "a\rb", "a\u202eb", "\x07", "a\u2028b", "\x9b31m", "a\u200bb"])
def test_s35_no_control_character_is_written(text: str) -> None:
    for stream in (io.StringIO(), Terminal()):
        written = line(stream, value=text, nested={"k": text, text: 1})
        assert written.count("\n") == 1
        assert written.endswith("\n")
        assert written[:-1].isprintable()


def test_s35_control_characters_in_the_event_itself_are_escaped() -> None:
    out = Terminal()
    logging.configure(stream=out)
    structlog.get_logger().info("a\nfake line", **{"k\n": 1})
    assert out.getvalue().count("\n") == 1


def test_s35_a_megabyte_is_cut() -> None:
    assert len(line(value="x" * 1_000_000)) < 2 * logging.MAX_TEXT


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "Password",
        "db_password",
        "passwd",
        "token",
        "auth_token",
        "accessToken",
        "X-Auth-Token",
        "secret",
        "client_secret",
        "secrets",
        "Authorization",
        "api_key",
        "apiKey",
        "API-KEY",
        "private_key",
        "private",
        "jws",
        "cookie",
        "Set-Cookie",
        "credentials",
        "database_dsn",
        "aws_secret_access_key",
        "passphrase",
    ],
)
def test_s57_what_stands_under_a_secret_key_is_masked(key: str) -> None:
    assert logging.redact({"a": [{key: "canary"}]}) == {"a": [{key: "***"}]}
    assert "canary" not in line(**{key: "canary"})


@pytest.mark.parametrize(
    "key",
    [
        "tokens",
        "input_tokens",
        "max_tokens",
        "token_count",
        "tokens_used",
        "author",
        "authority",
        "passenger",
        "secretary",
        "key",
        "idempotency_key",
        "token_type",
        "public_key",
        "bypass",
        "compass",
    ],
)
def test_what_only_sounds_secret_is_kept(key: str) -> None:
    assert logging.redact({key: 5}) == {key: 5}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("cannot reach postgresql://app:canary@db/x", "cannot reach postgresql://app:***@db/x"),
        ("amqp://u:canary@mq and redis://:canary@r", "amqp://u:***@mq and redis://:***@r"),
        ("Authorization: Bearer canary.canary.canary", "Authorization: Bearer ***"),
        ("got eyJjYW5hcnki.eyJjYW5hcnki.canarycanary", "got ***"),
        ("-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY----- after", "*** after"),
        ("-----BEGIN RSA PRIVATE KEY-----\ncanary", "***"),
        ("sk-canarycanarycanarycanary", "***"),
        ("postgresql://u:can@ry@db/x", "postgresql://u:***@db/x"),
        ("GET /x?api_key=canary&n=1", "GET /x?api_key=***&n=1"),
        ("DB_PASSWORD='canary' failed", "DB_PASSWORD='***' failed"),
        ('{"client_secret": "canary", "n": 1}', '{"client_secret": "***", "n": 1}'),
        ("I forgot my password: what now?", "I forgot my password: what now?"),
        ("http://example.org/a:b@c nothing here", "http://example.org/a:b@c nothing here"),
    ],
)
def test_s57_secrets_inside_text_are_masked(text: str, kept: str) -> None:
    assert logging.redact({"error": [text]}) == {"error": [kept]}


def test_s57_a_marker_tells_no_length() -> None:
    assert logging.redact({"token": "a"}) == logging.redact({"token": "a" * 99})


def test_s57_a_secret_key_masks_whatever_it_holds() -> None:
    assert logging.redact({"credentials": {"user": "canary"}, "token": None}) == {
        "credentials": "***",
        "token": None,
    }


def test_redacting_changes_nothing_it_was_given() -> None:
    before = {"password": "x", "list": ["y"]}
    logging.redact(before)
    assert before == {"password": "x", "list": ["y"]}


def test_s30_a_long_text_is_redacted_in_linear_time() -> None:
    for text in (
        "a://" * 50_000,
        "eyJ" * 60_000,
        "Bearer " * 30_000,
        "-----BEGIN " * 20_000,
        "a" * 200_000,
        "a.b-c+" * 40_000,
        "token=" * 40_000,
    ):
        assert isinstance(logging.redact(text), str)
