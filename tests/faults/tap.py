"""W: a tap on the broker. What goes through it is small, is JSON, and says on a tool's queue which row to look at, no more."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

TOOL_BYTES, AGENT_BYTES = 2 << 10, 128 << 10
CLASS_BASIC, PUBLISH = 60, 40
TRIGGER = """
CREATE TABLE IF NOT EXISTS tapped (queue text, body text);
CREATE OR REPLACE FUNCTION tapped() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO tapped VALUES (NEW.queue, NEW.body); RETURN NEW; END $$;
CREATE OR REPLACE TRIGGER tapped AFTER INSERT ON mq.message FOR EACH ROW EXECUTE FUNCTION tapped();
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """One message: where it was put, its body, and all of it as it went over the wire."""

    queue: str
    body: bytes
    kind: str
    whole: bytes


def wrong(seen: Sequence[Seen], tag: str, secrets: Sequence[str]) -> list[str]:
    """What W forbids; `secrets` are tenants and parts of payloads."""
    found = []
    for one in seen:
        if one.queue == f"tools.{tag}":
            args, kwargs, _ = json.loads(one.body)
            leaked = [word for word in secrets if word.encode() in one.whole]
            if len(one.body) > TOOL_BYTES or leaked or kwargs or [type(part) for part in args] != [str, str, int]:
                found.append(f"on a tool's queue: {len(one.body)} bytes, {leaked}, {one.body[:200]!r}")
        elif one.queue.startswith("agent.") and len(one.body) > AGENT_BYTES:
            found.append(f"on an agent's queue: {len(one.body)} bytes")
        if one.kind != "application/json":
            found.append(f"{one.queue}: {one.kind}")
    return found


def virtual(queue: str, text: bytes) -> Seen:
    """A message of Redis or of our table, which kombu has put into JSON."""
    made = json.loads(text)
    body: bytes = made["body"].encode()
    if made["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body)
    return Seen(queue, body, made["content-type"], text + body)


class Stream:
    """What clients say to a broker, byte by byte through a proxy; `seen` are the messages in it."""

    def __init__(self, kind: str, tag: str) -> None:
        self._kind, self._tag = kind, tag
        self._lock = threading.Lock()
        self._streams: dict[int, bytearray] = {}

    def __call__(self, stream: int, data: bytes) -> None:
        with self._lock:
            self._streams.setdefault(stream, bytearray()).extend(data)

    def seen(self) -> list[Seen]:
        read = _amqp if self._kind == "amqp" else _redis
        with self._lock:
            return [one for data in self._streams.values() for one in read(bytes(data)) if self._tag in one.queue]


def _redis(data: bytes) -> Iterator[Seen]:
    """RESP: every command is an array of strings, each led by its length."""
    at, words = 0, []
    while (end := data.find(b"\r\n", at)) >= 0:
        line, at = data[at:end], end + 2
        if line.startswith(b"*"):
            words = []
        elif line.startswith(b"$"):
            words.append(data[at : at + int(line[1:])])
            at += int(line[1:]) + 2
            if len(words) == 3 and words[0].upper() in {b"LPUSH", b"RPUSH"} and words[2].startswith(b'{"body"'):
                queue = words[1].decode().partition(":")[2].partition("\x06")[0]
                yield virtual(queue, words[2])


def _amqp(data: bytes) -> Iterator[Seen]:
    """AMQP 0-9-1: a publish is a method frame, a header and as many frames of body as it takes."""
    at, queue, want, body, head = 8, "", 0, b"", b""  # behind "AMQP" and its version
    while at + 7 <= len(data):
        kind, size = data[at], int.from_bytes(data[at + 3 : at + 7], "big")
        frame, at = data[at + 7 : at + 7 + size], at + 8 + size
        if kind == 1 and frame[:4] == bytes([0, CLASS_BASIC, 0, PUBLISH]):
            key = 7 + frame[6]  # behind the ticket and the exchange's name
            queue = frame[key + 1 : key + 1 + frame[key]].decode()
        elif kind == 2:
            want, head, body = int.from_bytes(frame[4:12], "big"), frame, b""
        elif kind == 3:
            body += frame
            if len(body) == want:
                yield Seen(queue, body, _content_type(head), head + body)


def _content_type(head: bytes) -> str:
    """The first of a message's properties, where its flag says that there is one."""
    has = int.from_bytes(head[12:14], "big") & 0x8000
    return head[15 : 15 + head[14]].decode() if has else ""


def of_table(rows: Sequence[dict[str, Any]]) -> list[Seen]:
    return [virtual(row["queue"], row["body"].encode()) for row in rows]


class Statements:
    """Counts what clients ask PostgreSQL to execute, through a proxy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[int, bytearray] = {}
        self._begun: set[int] = set()
        self.count = 0

    def __call__(self, stream: int, data: bytes) -> None:
        with self._lock:
            left = self._streams.setdefault(stream, bytearray())
            left += data
            while (size := self._size(stream, left)) is not None and len(left) >= size:
                self.count += stream in self._begun and left[0] in b"QE"
                if stream not in self._begun and left[4:8] == b"\x00\x03\x00\x00":
                    self._begun.add(stream)
                del left[:size]

    def _size(self, stream: int, left: bytearray) -> int | None:
        """Of the message at the front: until its session has begun it has no letter before its length."""
        letter = stream in self._begun
        return int.from_bytes(left[letter : letter + 4], "big") + letter if len(left) >= letter + 4 else None
