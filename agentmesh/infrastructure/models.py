"""One question to a model behind an OpenAI-compatible endpoint, bounded by time, bytes and tokens.

Nothing is asked twice here: whoever asks is told whether asking again can help. The way out is that of every call
(`outbound`), and no header is sent but those the protocol needs. Importing this imports the `openai` client (the extra
`llm`), so only what asks a model does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx
import openai

from agentmesh.errors import MeshError, ModelBusy, ModelOverLimit, ModelRefused, ModelUnreachable, TimedOut
from agentmesh.infrastructure.logging import MASK
from agentmesh.infrastructure.outbound import client, configured
from agentmesh.records import Json

HEADERS = frozenset({
    "accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent",
})  # fmt: skip
LONGEST_WAIT_S = 3600.0
"""What an endpoint may ask us to wait."""
SHOWN = 300
MOST_VECTOR_BYTES = 64 * 1024 * 1024
MIN_SECRET = 8  # characters; a shorter key is no secret, and would be found in many a word


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one question may take: seconds from its first byte to its last, tokens of its answer, bytes on the wire."""

    seconds: float
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model wants called; its arguments as the text it wrote."""

    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `finish` is why it ended; the counts are None where the endpoint tells none."""

    text: str
    calls: tuple[ToolCall, ...]
    finish: str
    model: str | None
    version: str | None
    input_tokens: int | None
    output_tokens: int | None
    seconds: float


class Endpoint:
    """Where a model is asked; safe to use from several threads. Its address is configuration, so it may be a private one."""

    def __init__(self, base_url: str, key: str | None = None) -> None:
        self._base_url, self._key = base_url, key or ""
        self._reach = configured(base_url)

    def ask(self, body: Mapping[str, Json], bounds: Bounds) -> Reply:
        """The answer to this chat-completions request, which is read as a stream.

        Raises ModelUnreachable or TimedOut (it may help to ask again), ModelBusy (later), ModelRefused, ModelOverLimit or
        AnswerRefused (it cannot help). No text of theirs shows our key.
        """
        began = time.monotonic()
        asked = {"stream_options": {"include_usage": True}, **body, "stream": True}
        with self._asking(within_s=bounds.seconds, most_bytes=bounds.bytes) as chat:
            said = self._heard(chat, {key: one for key, one in asked.items() if one is not None}, bounds)
        calls = tuple(ToolCall("".join(one.name), self._clean("".join(one.arguments))) for one in said.calls)
        return Reply(
            self._clean("".join(said.text)), calls, str(said.finish), said.model, said.version,
            said.input_tokens, said.output_tokens, time.monotonic() - began,
        )  # fmt: skip

    def embed(
        self, model: str, texts: Sequence[str], *, dimensions: int | None = None, within_s: float
    ) -> list[list[float]]:
        """The vector of each text, in order. Raises what `ask` raises."""
        body: dict[str, Json] = {"model": model, "input": list(texts), "encoding_format": "float"}
        body |= {} if dimensions is None else {"dimensions": dimensions}
        with self._asking(within_s=within_s, most_bytes=MOST_VECTOR_BYTES) as chat:
            said: Any = chat.post("/embeddings", body=body, cast_to=object)
        return _vectors(said, len(texts))

    @contextmanager
    def _asking(self, *, within_s: float, most_bytes: int) -> Iterator[openai.OpenAI]:
        """Their client for one question; what goes wrong is raised as an error of ours."""
        began = time.monotonic()
        try:
            with client(self._reach, within_s=within_s, most_bytes=most_bytes) as http:
                http.event_hooks["request"].append(self._strip)
                yield openai.OpenAI(
                    base_url=self._base_url, api_key=self._key or "none", http_client=http, max_retries=0  # type: ignore[arg-type]
                )  # fmt: skip
        except openai.APIStatusError as exc:
            self._refused(exc.status_code, exc.response.headers, exc.message)
        except (openai.OpenAIError, httpx.HTTPError, httpx.StreamError, ValueError, RecursionError) as exc:
            if isinstance(exc.__cause__, MeshError):
                raise exc.__cause__ from None
            if time.monotonic() - began >= within_s:
                raise TimedOut("the model did not answer in time", value=f"{within_s:g} s") from None
            why = self._clean(f"{self._base_url}: {exc.__cause__ or exc}")[:SHOWN]
            raise ModelUnreachable("the model's endpoint does not answer", value=why) from None

    def _heard(self, chat: openai.OpenAI, body: Mapping[str, Json], bounds: Bounds) -> _Said:
        stream: Any = chat.post(
            "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=openai.Stream[object]
        )
        said = _Said()
        with stream:
            self._check_headers(stream.response.headers)
            for chunk in stream:
                said.add(chunk)
                if said.pieces > 2 * bounds.tokens:  # a piece is a token or more, but for the names of tools
                    raise ModelOverLimit("the model's answer has no end", value=f"over {2 * bounds.tokens} pieces")
        if said.finish is None:
            raise ModelUnreachable("the model's answer was cut off", value=self._base_url)
        return said

    def _strip(self, request: httpx.Request) -> None:
        """Leave only the headers of the protocol: the client's own tell of this machine and its environment."""
        kept = HEADERS if self._key else HEADERS - {"authorization"}
        for name in [one for one in request.headers if one not in kept]:
            del request.headers[name]

    # --- what went wrong

    def _check_headers(self, headers: Mapping[str, str]) -> None:
        kind = headers.get("content-type", "nothing").split(";")[0].strip().lower()
        if kind != "text/event-stream":
            raise ModelRefused(
                "the endpoint did not answer with an event stream", value=self._clean(f"{kind} from {self._base_url}"),
                expected="text/event-stream; most base URLs end in /v1",
            )  # fmt: skip

    def _refused(self, status: int, headers: Mapping[str, str], message: str) -> NoReturn:
        value, after = self._clean(message)[:SHOWN], _retry_after(headers)
        if status in {429, 503} or (status >= 500 and after is not None):
            raise ModelBusy("the model's endpoint is busy", value=value, after=after)
        if status >= 500 or status == 408:
            raise ModelUnreachable(f"the model's endpoint answered {status}", value=value)
        expected = "an endpoint that answers itself: redirects are not followed" if 300 <= status < 400 else None
        raise ModelRefused(f"the model's endpoint answered {status}", value=value, expected=expected)

    def _clean(self, text: str) -> str:
        """`text` without our key, wherever an endpoint echoed it."""
        return text.replace(self._key, MASK) if len(self._key) >= MIN_SECRET else text


# --- the answer, piece by piece -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    id: str | None
    name: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Said:
    """What chunks have said so far. Nothing in a chunk is believed to have the type it should."""

    text: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    finish: str | None = None
    model: str | None = None
    version: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    pieces: int = 0
    _at: dict[int, _Call] = field(default_factory=dict)

    def add(self, chunk: object) -> None:
        """Raises ModelRefused for what is no chunk of a chat completion."""
        if not isinstance(chunk, dict) or not isinstance(choices := chunk.get("choices") or [], list):
            raise ModelRefused("the endpoint's stream holds no chat completion", value=chunk)
        self.model = _text(chunk.get("model")) or self.model
        self.version = _text(chunk.get("system_fingerprint")) or self.version
        if isinstance(usage := chunk.get("usage"), dict):
            self.input_tokens = _count(usage.get("prompt_tokens"), self.input_tokens)
            self.output_tokens = _count(usage.get("completion_tokens"), self.output_tokens)
        for choice in choices[:1]:
            if not isinstance(choice, dict):
                raise ModelRefused("the endpoint's stream holds no chat completion", value=choice)
            self.finish = _text(choice.get("finish_reason")) or self.finish
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._add_delta(delta)

    def _add_delta(self, delta: dict[str, Json]) -> None:
        self.pieces += any(isinstance(one, str) and bool(one) for one in delta.values())
        if text := _text(delta.get("content")):
            self.text.append(text)
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            if isinstance(call, dict):
                self.pieces += 1
                self._add_call(call)

    def _add_call(self, said: dict[str, Json]) -> None:
        """Another piece of a call. Endpoints differ: some give every call index 0 and tell them apart by id alone."""
        index, given = said.get("index"), _text(said.get("id"))
        place = index if isinstance(index, int) else 0
        call = self._at.get(place)
        if call is None or (given and call.id and given != call.id):
            call = self._at[place] = _Call(given)
            self.calls.append(call)
        function = said.get("function")
        if isinstance(function, dict):
            call.name.append(_text(function.get("name")) or "")
            arguments = function.get("arguments")  # some send an object where its text should be
            call.arguments.append(json.dumps(arguments) if isinstance(arguments, dict) else _text(arguments) or "")


def _vectors(said: object, n: int) -> list[list[float]]:
    """Raises ModelRefused for what are not `n` vectors."""
    data = said.get("data") if isinstance(said, dict) else None
    rows = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    found = {one.get("index", place): one.get("embedding") for place, one in enumerate(rows)}
    vectors = [found.get(place) for place in range(n)]
    if len(rows) != n or not all(isinstance(one, list) and all(map(_is_number, one)) for one in vectors):
        raise ModelRefused("the endpoint's answer holds no embeddings", value=str(said)[:SHOWN],
                           expected=f"{n} vectors; most base URLs end in /v1")  # fmt: skip
    return [[float(part) for part in one or ()] for one in vectors]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object, known: int | None) -> int | None:
    return value if isinstance(value, int) and value >= 0 else known


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of Retry-After, at most an hour; a date counts from the date of the answer itself."""
    said = headers.get("retry-after", "")
    try:
        if said.replace(".", "", 1).isdigit():
            seconds = float(said)
        else:
            seconds = (parsedate_to_datetime(said) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(max(0.0, seconds), LONGEST_WAIT_S)
