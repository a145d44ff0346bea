"""Strict JSON: what is refused either way, and that what is written is read back the same."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from agentmesh.errors import BadJson
from agentmesh.infrastructure import jsontext

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20) + 1, 10**20 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def read(text: str | bytes) -> object:
    return jsontext.loads(text, what="the payload")


def write(value: object) -> str:
    return jsontext.dumps(value, what="the result")


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


# --- reading -------------------------------------------------------------------------------------

REFUSED: dict[str, str | bytes] = {
    "100 000 deep": nested(100_000),
    "100 000 deep in objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "100 000 deep and never closed": "[" * 100_000,
    "65 deep": nested(65),
    "nan": "[NaN]",
    "infinity": "Infinity",
    "minus infinity": '{"a":-Infinity}',
    "1e999": "1e999",
    "-1e999": "[-1e999]",
    "400 digits and a fraction": "1" * 400 + ".5",
    "the same key twice": '{"a":1,"a":1}',
    "the same key twice, once escaped": '{"a":1,"\\u0061":2}',
    "the same key twice below": '[{"b":{"a":1,"c":2,"a":3}}]',
    "5 000 digits": "1" * 5_000,
    "21 digits": "1" * 21,
    "minus 21 digits": "-" + "1" * 21,
    "a high surrogate alone": '"\\ud800"',
    "a low surrogate alone": '["\\uDC00"]',
    "surrogates the wrong way round": '"\\ude00\\ud83d"',
    "a surrogate in a key": '{"\\ud800":1}',
    "a raw surrogate": '"\ud800"',
    "NUL escaped": '"a\\u0000"',
    "NUL escaped behind a backslash": '"\\\\\\u0000"',
    "NUL escaped in a key": '{"\\u0000":1}',
    "NUL raw": '"\0"',
    "NUL behind": "1\0",
    "a byte order mark": "\ufeff1",
    "a byte order mark as bytes": b"\xef\xbb\xbf1",
    "UTF-16": '"a"'.encode("utf-16"),
    "not UTF-8": b'"\xff"',
    "an overlong slash": b'"\xc0\xaf"',
    "a surrogate as UTF-8": b'"\xed\xa0\x80"',
    "trailing bytes": '{"a":1}x',
    "two values": "1 2",
    "nothing": "",
    "only space": " \n",
    "half a string": '"abc',
    "half an escape": '"abc\\',
    "single quotes": "{'a':1}",
    "a trailing comma": "[1,]",
    "a comment": "[1] // one",
    "hexadecimal": "0x10",
    "a leading zero": "01",
    "a plus sign": "+1",
    "a raw newline in a string": '"a\nb"',
    "10 001 keys": json.dumps(dict.fromkeys(map(str, range(10_001)))),
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_s27_what_is_not_strict_is_refused(text: str | bytes) -> None:
    with pytest.raises(BadJson) as refused:
        read(text)
    assert refused.value.what.startswith("the payload is not strict JSON: ")


def test_s27_a_byte_order_mark_is_named_and_not_skipped() -> None:
    for text in ("\ufeff1", b"\xef\xbb\xbf1"):
        with pytest.raises(BadJson, match="byte order mark"):
            read(text)


def test_s27_64_mib_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(BadJson, match="the payload is too large"):
        read(b"[" * (64 * 1024 * 1024))


def test_s27_size_counts_bytes_not_characters() -> None:
    with pytest.raises(BadJson, match="too large"):
        jsontext.loads('"äöü"', what="the payload", max_bytes=7)
    assert jsontext.loads('"äöü"', what="the payload", max_bytes=8) == "äöü"


def test_s27_many_quotes_cost_one_pass() -> None:
    with pytest.raises(BadJson):  # were it quadratic, the time limit of the suite would say so
        read('"' + '\\"' * 2_000_000 + "[" * 100)


@pytest.mark.parametrize("text", [None, 1, ["1"], bytearray(b"1"), {"a": 1}])
def test_s27_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(BadJson):
        jsontext.loads(text, what="the payload")  # type: ignore[arg-type]


def test_the_limits_themselves_are_allowed() -> None:
    assert read("9" * 20) == 10**20 - 1
    assert read("-" + "9" * 20) == 1 - 10**20
    assert read(nested(64)) == json.loads(nested(64))
    assert len(read(json.dumps(dict.fromkeys(map(str, range(10_000)))))) == 10_000  # type: ignore[arg-type]


def test_brackets_in_strings_are_not_depth() -> None:
    assert read(json.dumps(["[{" * 200, '\\"[' * 100])) == ["[{" * 200, '\\"[' * 100]


def test_what_only_looks_like_a_refused_escape_is_read() -> None:
    assert read('"\\\\u0000"') == "\\u0000"
    assert read('"\\\\ud800"') == "\\ud800"
    assert read('"\\ud83d\\ude00"') == "😀"


def test_space_around_a_value_is_allowed() -> None:
    assert read(b' {"a": 1}\r\n') == {"a": 1}


def test_a_fault_names_what_and_where() -> None:
    with pytest.raises(BadJson, match=r"the payload .* line 2, column 1"):
        read('{"a":\n}')
    with pytest.raises(BadJson, match="a key stands twice") as refused:
        read('{"b":1,"a":1,"a":2}')
    assert refused.value.value == "a"


@given(st.text() | st.binary())
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    try:
        value = read(text)
    except BadJson:
        return
    assert read(write(value)) == value


@given(VALUES)
def test_python_s_own_json_reads_the_same(value: object) -> None:
    assert read(json.dumps(value)) == json.loads(json.dumps(value))


# --- writing -------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Size(BaseModel):
    from_: int = Field(alias="from")


@dataclass
class Pair:
    left: object
    right: object


UNWRITABLE: dict[str, tuple[object, str]] = {
    "nan": ({"a": [1, 2, 3, math.nan]}, r"\$\.a\[3\] is not a finite number"),
    "infinity": ([math.inf], r"\$\[0\] is not"),
    "number as key": ({"a": {1: 2}}, r"a key of \$\.a is not a string"),
    "None as key": ({None: 2}, r"a key of \$ is not a string"),
    "truth as key": ([{True: 2}], r"a key of \$\[0\] is not a string"),
    "tuple as key": ({(1,): 2}, r"a key of \$ is not a string"),
    "id as key": ({UUID(int=1): 2}, r"a key of \$ is not a string"),
    "NUL": ({"a b": "x\0"}, r'\$\["a b"\] contains NUL'),
    "NUL in a key": ({"a": {"\0": 1}}, r"a key of \$\.a contains NUL"),
    "surrogate": (["ok", "\ud800"], r"\$\[1\] contains half of a surrogate"),
    "surrogate in a key": ({"\udfff": 1}, "a key of . contains half of a surrogate"),
    "set": ({"a": {1}}, r"\$\.a is of a type"),
    "bytes": ([b"a"], r"\$\[0\] is of a type"),
    "an object": ({"a": {"b": object()}}, r"\$\.a\.b is of a type"),
    "a class": (Pair, r"\$ is of a type"),
    "Decimal NaN": ([Decimal("NaN")], r"\$\[0\] is of a type"),
    "21 digits": ({"a": 10**20}, r"\$\.a has more than 20 digits"),
    "5 000 digits": ({"a": 10**5_000}, r"\$\.a has more than 20 digits"),
    "10 001 keys": ([dict.fromkeys(map(str, range(10_001)))], r"\$\[0\] has more than"),
    "inside a dataclass": (Pair(1, Pair(2, math.nan)), r"\$\.right\.right is not a finite"),
    "inside a dataclass's key": ([Pair({1: 1}, ())], r"a key of \$\[0\]\.left"),
}


@pytest.mark.parametrize(("value", "message"), UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_s27_what_cannot_be_written_is_named_by_its_path(value: object, message: str) -> None:
    with pytest.raises(BadJson, match=message):
        write(value)


def test_s27_a_value_too_deep_is_refused() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadJson, match="more than 64 levels"):
        write(deep)


def test_s27_a_value_that_contains_itself_is_refused() -> None:
    round_: list[object] = []
    round_.append({"a": round_})
    with pytest.raises(BadJson, match="more than 64 levels"):
        write(round_)


def test_s27_too_large_a_value_is_refused() -> None:
    with pytest.raises(BadJson, match="the result is too large"):
        jsontext.dumps("x" * 100, what="the result", max_bytes=100)


def test_what_has_an_obvious_form_is_converted() -> None:
    value = {
        "id": UUID(int=1),
        "at": datetime(2025, 4, 25, 12, tzinfo=UTC),
        "day": date(2025, 4, 25),
        "sum": Decimal("1.10"),
        "colour": Colour.RED,
        "size": Size(**{"from": 1}),
        "pair": Pair((1, 2), [None]),
    }
    assert read(write(value)) == {
        "id": "00000000-0000-0000-0000-000000000001",
        "at": "2025-04-25T12:00:00+00:00",
        "day": "2025-04-25",
        "sum": "1.10",
        "colour": "red",
        "size": {"from": 1},
        "pair": {"left": [1, 2], "right": [None]},
    }


def test_text_is_compact_and_not_escaped() -> None:
    assert write({"a": ["ü", 1.5, None]}) == '{"a":["ü",1.5,null]}'


@given(VALUES)
def test_what_is_written_is_read_back(value: object) -> None:
    assert read(write(value)) == value


# --- digests -------------------------------------------------------------------------------------


def small(value: object) -> bool:
    """Whether every integer in `value` is one that RFC 8785 allows."""
    if isinstance(value, dict):
        return all(map(small, value.values()))
    if isinstance(value, list):
        return all(map(small, value))
    return not isinstance(value, int) or abs(value) < 2**53


@given(VALUES.filter(small))
def test_canonical_bytes_are_those_of_rfc_8785(value: object) -> None:
    assert jsontext.canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(VALUES)
def test_canonical_bytes_are_canonical_already(value: object) -> None:
    once = jsontext.canonical(value)
    assert jsontext.canonical(json.loads(once)) == once  # 1e20 is written with 21 digits


@settings(max_examples=25)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_written_as_ecmascript_does(number: float) -> None:
    value = {"a": number, "b": [number], "c": "1.5e3 [1.0,2.0"}
    assert jsontext.canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


def test_keys_sort_by_utf_16() -> None:
    assert jsontext.canonical({"\ufb33": 1, "😀": 2}).decode() == '{"😀":2,"\ufb33":1}'


def test_integers_too_large_for_a_double_keep_their_digits() -> None:
    assert jsontext.canonical([2**53, 2**53 + 1, 1.0]) == b"[9007199254740992,9007199254740993,1]"


def test_order_does_not_change_a_digest_and_content_does() -> None:
    assert jsontext.digest({"a": 1, "b": 2}) == jsontext.digest({"b": 2, "a": 1})
    assert jsontext.digest({"a": 1}) != jsontext.digest({"a": "1"})
    assert jsontext.digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_a_value_without_canonical_bytes_is_refused() -> None:
    for value in (math.nan, "\ud800", {1}, {"a": 1, 2: 3}):
        with pytest.raises(BadJson):
            jsontext.digest(value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"a": NaN}', "E_JSON_NUMBER"),
        ("[1e999]", "E_JSON_NUMBER"),
        ('{"a": 1, "a": 2}', "E_JSON_DUPLICATE_KEY"),
        ("{", "E_JSON"),
    ],
)
def test_each_kind_of_bad_json_has_a_code_of_its_own(text: str, code: str) -> None:
    with pytest.raises(BadJson) as refused:
        jsontext.loads(text, what="the payload")
    assert refused.value.code == code


def test_writing_a_number_that_is_none_says_so_by_its_code() -> None:
    with pytest.raises(BadJson) as refused:
        jsontext.dumps({"a": [float("nan")]}, what="the payload")
    assert refused.value.code == "E_JSON_NUMBER"
