"""How a process talks: one line a transition, key=value on a terminal, JSON elsewhere.

Nothing is printed raw: control characters are escaped, and what looks like a secret is masked. The
same `redact` is applied to what is recorded, before it is written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Literal, TextIO

from agentmesh.records import Json

MASK = "***"
MAX_TEXT = 10_000
SECRET_KEY = re.compile(
    r"(?:^|_)(?:pass(?:word|wd|phrase)?|pwd|secret|token|authorization|auth|credential|cookie|bearer|jws"
    r"|dsn|api_?key|access_?key|private|private_?key|signing_?key|secret_?key)s?(?:$|_)"
)
# What a key of this kind ends in when it says something about a secret and is none.
ABOUT = re.compile(
    r"_(?:id|ids|count|counts|limit|type|name|names|used|usage|at|url|hash|fingerprint)$|^max_|^(?:input|output|total)_tokens$|^tokens$"
)
# A text with none of these holds no secret we know how to see; most texts are such.
HINTS = (
    "://", "-----begin", "bearer", "basic", "eyj", "sk-", "sk_", "ghp", "gho", "xox", "pass", "pwd",
    "secret", "token", "key",
)  # fmt: skip
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
# Every repetition in these is bounded or runs once over its text: they meet foreign text.
_URL_PASSWORD = re.compile(r"(?P<head>[A-Za-z0-9+.-]{1,32}://[^\s:/@]{0,256}:)[^\s/]{1,512}(?=@)")
_PAIR = re.compile(
    r"(?P<head>(?:passw(?:or)?d|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key)"
    r"(?:=[\"']?|[\"']\s?[:=]\s?[\"']))[^\s\"'&,;]{1,2048}",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(?P<head>[Bb]earer|[Bb]asic)\s+[A-Za-z0-9._~+/=-]{8,}")
_TOKEN = re.compile(
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*|\b(?:sk|ghp|gho|xox[abp])[-_][A-Za-z0-9_-]{16,}"
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


@lru_cache(maxsize=2048)
def is_secret(key: str) -> bool:
    """Whether a value under this key is masked whatever it is: password, apiKey, X-Auth-Token …"""
    name = "_".join(word.lower() for word in _WORDS.split(key) if word)
    return bool(SECRET_KEY.search(name)) and not ABOUT.search(name)


def redact(value: Json) -> Json:
    """`value` with secrets replaced by ***: what stands under a secret key, and in any text the
    passwords of URLs, bearer tokens, signed tokens and private keys. The marker tells no length.
    """
    match value:
        case str():
            return _redact_text(value)
        case Mapping():
            return {
                _redact_text(str(key)): MASK if one is not None and is_secret(str(key)) else redact(one)
                for key, one in value.items()
            }
        case list() | tuple():
            return [redact(one) for one in value]
        case _:
            return value


def _redact_text(text: str) -> str:
    lowered = text.lower()
    if not any(hint in lowered for hint in HINTS):
        return text
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\g<head>{MASK}", text)
    if "-----BEGIN" in text:
        text = _PEM.sub(MASK, text)
    text = _PAIR.sub(rf"\g<head>{MASK}", text)
    text = _BEARER.sub(rf"\g<head> {MASK}", text)
    return _TOKEN.sub(MASK, text)


def escape(text: str) -> str:
    r"""`text` in one printable line: \n, \x1b and what changes direction are spelled out."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


Event = MutableMapping[str, Any]


def redact_event(_logger: object, _method: str, event: Event) -> Event:
    """The one place where a log line loses its secrets."""
    return {key: MASK if value is not None and is_secret(key) else redact(value) for key, value in event.items()}


def _plain(_logger: object, _method: str, event: Event) -> Event:
    """Values as JSON can say them, texts cut at 10 000 characters."""
    return {key: _as_json(value) for key, value in event.items()}


def _as_json(value: object) -> Json:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
        case Mapping():
            return {str(key): _as_json(one) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_as_json(one) for one in value]
        case _:
            return _as_json(str(value))


# --- what every line says, and whose lines are kept ---------------------------------------------------------------------

MOST_LINES, MOST_CHARS = 100, 16_000
_process: dict[str, Json] = {}
_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)


class Kept:
    """The first lines of one call, redacted: at most 100 and 16,000 characters; `dropped` counts the others."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Json]] = []
        self.dropped = 0
        self.open = False
        self._chars = 0

    def add(self, event: Event) -> None:
        line = {key: value for key, value in event.items() if key not in WHERE}
        self._chars += len(json.dumps(line, default=str))
        if len(self.lines) < MOST_LINES and self._chars <= MOST_CHARS:
            self.lines.append(line)
        else:
            self.dropped += 1

    def as_json(self) -> Json:
        """None where nothing was said."""
        if not self.lines and not self.dropped:
            return None
        return {"lines": self.lines.copy()} | ({"dropped": self.dropped} if self.dropped else {})


WHERE = frozenset({"trace_id", "step_id", "call_id", "attempt", "worker", "tool"})
"""What says where a line comes from: on every line, but not again on those that are kept where they belong."""


def name_process(**about: Json) -> None:
    """From now on every line of this process says so."""
    _process.update(about)


@contextmanager
def about(keep: Kept | None = None, **where: object) -> Iterator[Kept]:
    """Within, every line of this thread says where it comes from; what is said while it is `heard` is kept (in `keep`)."""
    import structlog  # noqa: PLC0415 - who logs nothing does not pay for it

    kept = keep or Kept()
    token = _kept.set(kept)
    try:
        with structlog.contextvars.bound_contextvars(
            **{key: str(one) for key, one in where.items() if one is not None}
        ):
            yield kept
    finally:
        _kept.reset(token)


@contextmanager
def heard() -> Iterator[None]:
    """Somebody else's code runs now: what it says is kept, where there is a place for it."""
    kept = _kept.get()
    if kept is None:
        yield
        return
    before, kept.open = kept.open, True
    try:
        yield
    finally:
        kept.open = before


def said_here() -> Json:
    """What was kept so far of what this thread is about; None where nothing was said."""
    kept = _kept.get()
    return None if kept is None else kept.as_json()


def _of_process(_logger: object, _method: str, event: Event) -> Event:
    return {**_process, **event}


def _keep(_logger: object, _method: str, event: Event) -> Event:
    kept = _kept.get()
    if kept is not None and kept.open:
        kept.add(event)
    return event


def as_json_line(_logger: object, _method: str, event: Event) -> str:
    return json.dumps(event, ensure_ascii=True, default=str)


def as_text_line(_logger: object, _method: str, event: Event) -> str:
    """`time level EVENT key=value …`, every part in one printable line."""
    event = dict(event)
    head = [str(event.pop(name, "")) for name in ("timestamp", "level", "event")]
    return " ".join(
        [
            *(escape(one) for one in head if one),
            *(f"{escape(k)}={_text(v)}" for k, v in event.items()),
        ]
    )


def _text(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = escape(text)
    return json.dumps(shown, ensure_ascii=False) if not shown or re.search(r'[\s"=]', shown) else shown


def configure(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["auto", "text", "json"] = "auto",  # noqa: A002 - the setting's name
    stream: TextIO | None = None,
) -> None:
    """From now on structlog's loggers write to `stream` (None: stderr), from `level` upwards."""
    import structlog  # noqa: PLC0415 - who logs nothing does not pay for it

    out = stream or sys.stderr
    text = format == "text" or (format == "auto" and out.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _of_process,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not text),
            structlog.processors.format_exc_info,
            _plain,
            redact_event,
            _keep,
            as_text_line if text else as_json_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
