"""Strict JSON, both ways: what this reads, PostgreSQL's jsonb and every other parser read the same.

Refused: duplicate keys, NaN and infinities (also 1e999), NUL, lone surrogates, a BOM, invalid
UTF-8, trailing bytes, depth over 64, over 10 000 keys in one object, integers over 20 digits, and
whatever is over its size. What `dumps` writes, `loads` reads. Which shape a value must have is the
business of whoever reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time
from decimal import Decimal
from enum import Enum
from itertools import accumulate
from typing import NoReturn
from uuid import UUID

import orjson
import rfc8785
from pydantic import BaseModel

from agentmesh.errors import BadJson, DuplicateKey, NotFinite, PayloadTooLarge
from agentmesh.records import Json

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64
MAX_KEYS = 10_000
MAX_DIGITS = 20

# A string that is never closed matches to the end of the text: one pass, whatever is written.
_AS_IT_IS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKET = re.compile(r"[^\[\]{}]+")
_NUL = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_FLOAT = re.compile(r"(?:\A|[:\[,])-?\d+[.e]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|-?\d[\d.e+-]*')
_HIGH = re.compile("[\ue000-\U0010ffff]")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def loads(text: str | bytes, *, what: str, max_bytes: int = MAX_BYTES) -> Json:
    """The value that `text` (UTF-8) says. Raises BadJson, naming `what` it was, if not strict."""
    text = _decoded(text, what, max_bytes)
    if _too_deep(text):
        raise _bad(what, f"it is more than {MAX_DEPTH} levels deep")
    try:
        value = _decoder.decode(text)
    except BadJson as bad:
        raise type(bad)(f"{what} is not strict JSON: {bad.what}", value=bad.value) from None
    except json.JSONDecodeError as bad:
        where = f"line {bad.lineno}, column {bad.colno}"
        raise _bad(what, f"{bad.msg[:1].lower()}{bad.msg[1:]} at {where}") from None
    if "\\u" in text:
        _check_escapes(text, value, what)
    return value


def dumps(value: object, *, what: str, max_bytes: int = MAX_BYTES) -> str:
    """`value` as compact JSON that `loads` reads. Raises BadJson naming the path of the fault.

    Written besides what JSON has: tuples as arrays; pydantic models, dataclasses and enums as what
    they hold; UUID, date, datetime, time and finite Decimals as strings. Everything else is
    refused: sets have no order, bytes no text.
    """
    simple = _simple(value, max_bytes)
    if simple is not None:
        return simple
    try:
        text = _encoder.encode(value)
        same = loads(text, what=what, max_bytes=max_bytes) == value
    except (TypeError, ValueError, RecursionError) as bad:
        _explain(value, what, "$", 0)
        raise _bad(what, "it cannot be written", type(bad).__name__) from None
    except BadJson:
        _explain(value, what, "$", 0)
        raise
    if not same:  # something was converted; keys must not have been: 1 and "1" would meet in one
        _explain(value, what, "$", 0)
    return text


def _simple(value: object, max_bytes: int) -> str | None:
    """The JSON of a small value that is nothing but JSON, as most are; None: look closer."""
    try:
        text = orjson.dumps(value, option=_AS_IT_IS)
    except TypeError:
        return None
    if len(text) > min(max_bytes, MAX_KEYS) or b"\\u0000" in text or text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        return None
    return text.decode() if orjson.loads(text) == value else None


def canonical(value: object) -> bytes:
    """The RFC 8785 bytes of a value that `dumps` accepts: equal values have equal bytes.

    One thing goes beyond the RFC: integers outside ±(2^53 - 1) keep all their digits instead of
    being refused. Raises BadJson.
    """
    try:
        text = _sorting_encoder.encode(value)
        if _HIGH.search(text):  # UTF-16 may sort otherwise than code points
            text = _encoder.encode(_sorted_as_utf16(json.loads(text)))
        if _FLOAT.search(text):
            text = _TOKEN.sub(_canonical_token, text)
        return text.encode()
    except (TypeError, ValueError, RecursionError):
        _explain(value, "the value", "$", 0)
        raise _bad("the value", "it cannot be written", type(value).__name__) from None


def digest(value: object) -> str:
    """The sha256 of `canonical(value)`, in hex: 64 characters. Raises BadJson."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _bad(what: str, why: str, value: object = None) -> BadJson:
    return BadJson(f"{what} is not strict JSON: {why}", value=value)


def _decoded(text: str | bytes, what: str, max_bytes: int) -> str:
    if not isinstance(text, str | bytes):
        raise _bad(what, "it is neither text nor bytes", type(text).__name__)
    try:
        size = len(text)
        if size <= max_bytes and isinstance(text, bytes):
            text = text.decode("utf-8")
        elif isinstance(text, str) and size <= max_bytes and not text.isascii():
            size = len(text.encode("utf-8"))
    except UnicodeError:
        raise _bad(what, "it is not UTF-8, or contains half of a surrogate pair") from None
    if size > max_bytes or isinstance(text, bytes):
        raise PayloadTooLarge(f"{what} is too large", value=f"{size} bytes", expected=f"at most {max_bytes} bytes")
    if text.startswith("\ufeff"):
        raise _bad(what, "it begins with a byte order mark")
    return text


def _too_deep(text: str) -> bool:
    """Whether the parser would go deeper than it may. Exact while the text is valid; linear."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    brackets = _NO_BRACKET.sub("", _STRING.sub("", text))
    return max(accumulate(1 if one in "[{" else -1 for one in brackets), default=0) > MAX_DEPTH


def _check_escapes(text: str, value: Json, what: str) -> None:
    if _NUL.search(text):
        raise _bad(what, "it contains \\u0000, which PostgreSQL cannot hold")
    if _SURROGATE.search(text):
        try:
            _encoder.encode(value).encode("utf-8")
        except UnicodeEncodeError:
            raise _bad(what, "it contains half of a surrogate pair") from None


# The parser calls these for each object and number; `loads` adds what was being read.


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(pairs) > MAX_KEYS:
        raise BadJson(f"an object has more than {MAX_KEYS} keys", value=len(pairs))
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateKey("a key stands twice in an object", value=twice)
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS and len(digits.lstrip("-")) > MAX_DIGITS:
        raise BadJson(f"an integer has more than {MAX_DIGITS} digits", value=digits[:40])
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NotFinite("a number is too large", value=digits[:40])
    return number


def _constant(name: str) -> NoReturn:
    raise NotFinite("it says what is no number", value=name)


def _plain(value: object) -> Json:  # noqa: PLR0911 - one a type
    """What the encoder writes for a value that is not JSON's own. Raises TypeError."""
    match value:
        case BaseModel():
            return value.model_dump(mode="json", by_alias=True)
        case Mapping():
            return dict(value)
        case UUID():
            return str(value)
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case Enum():
            return value.value
        case Decimal() if value.is_finite():
            return str(value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {one.name: getattr(value, one.name) for one in fields(value)}
        case _:
            raise TypeError(type(value).__name__)


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
_encoder = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=_plain
)
_sorting_encoder = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,
    check_circular=False,
    separators=(",", ":"),
    default=_plain,
    sort_keys=True,
)


def _explain(value: object, what: str, path: str, depth: int) -> None:
    """Raises BadJson for the first thing in `value` that strict JSON cannot say; or returns."""
    if not isinstance(value, dict | list | tuple | str | int | float | None):
        try:
            value = _plain(value)
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise _bad(what, f"{path} is of a type that has no JSON", kind) from None
    fault = _fault(value, depth)
    if fault is not None:
        if isinstance(value, float):
            raise NotFinite(f"{what} is not strict JSON: {path} {fault}", value=value)
        raise _bad(what, f"{path} {fault}")
    if isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise _bad(what, f"a key of {path} is not a string", key)
            if (fault := _text_fault(key)) is not None:
                raise _bad(what, f"a key of {path} {fault}")
            _explain(one, what, _below(path, key), depth + 1)
    elif isinstance(value, list | tuple):
        for at, one in enumerate(value):
            _explain(one, what, f"{path}[{at}]", depth + 1)


def _fault(value: Json, depth: int) -> str | None:
    """What is wrong with this one value, whatever it contains; None when nothing is."""
    fault = None
    if isinstance(value, str):
        fault = _text_fault(value)
    elif isinstance(value, dict | list | tuple) and depth >= MAX_DEPTH:
        fault = f"is more than {MAX_DEPTH} levels deep"
    elif isinstance(value, dict) and len(value) > MAX_KEYS:
        fault = f"has more than {MAX_KEYS} keys"
    elif isinstance(value, float) and not math.isfinite(value):
        fault = "is not a finite number"
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        fault = f"has more than {MAX_DIGITS} digits"
    return fault


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "contains NUL, which PostgreSQL cannot hold"
    if not text.isascii() and any("\ud800" <= one <= "\udfff" for one in text):
        return "contains half of a surrogate pair"
    return None


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if _WORD.match(key) else f"{path}[{json.dumps(key[:40])}]"


def _sorted_as_utf16(value: Json) -> Json:
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: str(key).encode("utf-16be"))
        return {key: _sorted_as_utf16(value[key]) for key in keys}
    return [_sorted_as_utf16(one) for one in value] if isinstance(value, list) else value


def _canonical_token(match: re.Match[str]) -> str:
    token: str = match[0]
    if token[0] == '"' or ("." not in token and "e" not in token):
        return token
    return rfc8785.dumps(float(token)).decode()
