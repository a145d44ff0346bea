"""YAML: what is refused, what scalars mean, and where things stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.errors import BadAgentFile, BadYaml
from agentmesh.infrastructure import yamltext


def read(text: str | bytes) -> object:
    return yamltext.load(text, source="a.yaml").data


def refusal(text: str | bytes) -> BadYaml:
    with pytest.raises(BadYaml) as caught:
        read(text)
    return caught.value


def test_plain_yaml_is_plain_data() -> None:
    text = "a: 1\nb: [x, 1.5, true, ~]\nc: {d: 'e'}\nf:\n  - - 1\n"
    assert read(text) == {"a": 1, "b": ["x", 1.5, True, None], "c": {"d": "e"}, "f": [[1]]}


def test_every_value_has_a_place() -> None:
    found = yamltext.load("a:\n  - x: 1\n  - y\n", source="f.yaml")
    assert found.where("a", 0, "x") == "f.yaml:2:8"
    assert found.where("a", 1) == "f.yaml:3:5"
    assert found.where("a", 1, "nothing", "there") == "f.yaml:3:5"


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("0o7", 7),
        ("0x1F", 31),
        ("012", 12),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("+1", 1),
        ("-0", 0),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("NULL", None),
        ("nULL", "nULL"),
        ("TRUE", True),
        ("false", False),
        ("'1'", "1"),
        ('"true"', "true"),
        ("", None),
        ("1.2.3", "1.2.3"),
    ],
)
def test_s28_scalars_are_those_of_yaml_1_2(scalar: str, value: object) -> None:
    found = read(f"a: {scalar}\n")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: &x 1\n", "an anchor"),
        ("a: &x [1]\nb: *x\n", "an anchor"),
        ("a: *x\n", "an alias"),
        ("a: {<<: {b: 1}}\n", "a merge key"),
        ("a: !!python/object/apply:os.system ['true']\n", "the tag"),
        ("a: !!str 1\n", "the tag"),
        ("a: !mine 1\n", "the tag"),
        ("a: !!binary aGVsbG8=\n", "the tag"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' twice"),
        ("a: 1\n---\nb: 2\n", "a second document"),
        ("%YAML 1.1\n---\na: no\n", "a directive"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", "a directive"),
        ("1: a\n", "the key 1"),
        ("[a, b]: c\n", "the key"),
        ("? {a: 1}\n: c\n", "the key"),
        ("a: .inf\n", ".inf"),
        ("a: .nan\n", ".nan"),
        ("a: 1e999\n", "1e999"),
        (f"a: {'9' * 21}\n", "too long a number"),
        (f"a: 0x{'f' * 40}\n", "too long a number"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
    ],
)
def test_s28_what_surprises_or_expands_is_refused(text: str, what: str) -> None:
    assert what in refusal(text).what


def test_s28_an_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "an anchor" in refusal("\n".join(lines)).what


def test_s28_a_deep_text_is_refused() -> None:
    assert "too deep" in refusal("[" * 70 + "]" * 70).what


def test_s28_a_very_deep_text_ends_no_process() -> None:
    assert refusal("[" * 100_000).what


def test_s28_a_large_text_is_refused_unread() -> None:
    assert "too large" in refusal(b"a: " + b"x" * yamltext.LIMIT_BYTES).what


@pytest.mark.parametrize(
    "text",
    [b"a: \xff\n", "a: \ud800\n", "a: \x00\n", "a: [1\n", "a: 'b\n", "\ta: 1\n", "a: b: c\n"],
)
def test_what_is_not_yaml_is_refused(text: str | bytes) -> None:
    assert "a.yaml" in refusal(text).what


def test_a_refusal_says_line_and_column() -> None:
    assert refusal("a: 1\nb:\n  - &x 2\n").what.startswith("a.yaml:3:5 ")


def test_a_syntax_error_says_line_and_column() -> None:
    assert refusal("a: 1\nb: [1, 2\n").what.startswith("a.yaml:3:1 ")


def test_the_caller_names_the_error() -> None:
    with pytest.raises(BadAgentFile):
        yamltext.load("a: *b\n", source="a.yaml", error=BadAgentFile)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%#?,\n \t01.~<", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        yamltext.load(text, source="a.yaml")
    except BadYaml:
        return
