"""Expressions: what they say, what they may cost (S29), and what their errors say."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import cel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.behavior import expressions
from agentmesh.errors import BadRule
from agentmesh.records import Json

ROOT = Path(__file__).parents[2]
VALUES: dict[str, Json] = {
    "payload": {
        "kind": "refund",
        "amount": 12,
        "rows": [{"a": 1}, {"a": 2}],
        "none": None,
        "a-b": 5,
    },
    "xs": list(range(1000)),
    "text": "z" * 200_000,
    "rows": [{"id": n, "text": "x" * 50} for n in range(1000)],
}


def value(text: str) -> Json:
    return expressions.compile(text, source="a.yaml:1:1").evaluate(VALUES)


def refusal(text: str, **given: object) -> BadRule:
    with pytest.raises(BadRule) as caught:
        expressions.compile(text, source="a.yaml:1:1", **given).evaluate(VALUES)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3 - 4 / 2 % 3", 5),
        ("payload.kind == 'refund' && payload.amount > 10", True),
        ("payload['a-b'] + 1", 6),
        ("payload.none == null", True),
        ("has(payload.nope) || !has(payload.kind)", False),
        ("payload.amount > 10 ? 'much' : 'little'", "much"),
        ("payload.rows.map(row, row.a)", [1, 2]),
        ("payload.rows.filter(row, row.a > 1)", [{"a": 2}]),
        ("payload.rows.exists(row, row.a == 2) && payload.rows.all(row, row.a > 0)", True),
        ("payload.rows.filter(r, r.a > 1).map(r, r.a * 2)", [4]),
        ("xs.filter(x, x > 995).map(x, x + 1)", [997, 998, 999, 1000]),
        ("size(xs) + xs.size()", 2000),
        ("'refund'.startsWith('re') && 'a1'.matches('^a[0-9]$')", True),
        ("'kind' in payload && 3 in xs", True),
        ("[1, 'a', {'b': [true, null]}]", [1, "a", {"b": [True, None]}]),
        ("-(-5)", 5),
        ("!!true", True),
        (r"'a\n\u00e9\x41' + r'\n' + '''q'q'''", "a\né" + "A\\n" + "q'q"),
        ("double(1) + 0.5", 1.5),
        ("string(3) + 'x'", "3x"),
        ("0x10 + 1 // a comment", 17),
        ("duration('1h') > duration('59m')", True),
    ],
)
def test_an_expression_has_the_value_cel_gives_it(text: str, expected: Json) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "place", "seen"),
    [
        ("1 +", "1:4", "the end"),
        ("1 +\n * 3", "2:2", "*"),
        ("(1", "1:3", "the end"),
        ("'abc", "1:1", "'abc"),
        (r"'\q'", "1:2", r"\q"),
        ("1 2", "1:3", "2"),
        ("a b", "1:3", "b"),
        ("while", "1:1", "while"),
        ("a.in", "1:3", "in"),
        ("§", "1:1", "§"),
        ("12abc", "1:1", "12a"),
        ("payload.", "1:9", "the end"),
        ("", "1:1", "the end"),
        ("{a}", "1:3", "}"),
        ("Msg{a: 1}", "1:4", "{"),
        ("has(payload)", "1:1", "has"),
        ("size(1, 2)", "1:1", "size"),
        ("xs.map(1, 2)", "1:8", "1"),
        ("xs.all(x)", "1:9", ")"),
    ],
)
def test_a_text_that_is_no_expression_says_where(text: str, place: str, seen: str) -> None:
    error = refusal(text)
    assert error.what.startswith("a.yaml:1:1: ")
    assert error.what.endswith(f" at {place}")
    assert error.value == seen


def test_an_unknown_function_is_refused_with_what_may_be_meant() -> None:
    assert "did you mean startsWith?" in refusal("'a'.startWith('b')").expected


def test_an_unknown_variable_is_refused_before_any_run() -> None:
    with pytest.raises(BadRule) as caught:
        expressions.compile("paylod.x > 1", source="a", variables=["payload", "results"])
    assert "did you mean payload?" in caught.value.expected


def test_a_macro_may_not_hide_a_variable() -> None:
    assert "not a variable" in refusal("xs.all(xs, true)", variables=["xs"]).expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("payload.nope == 1", "not there"),
        ("payload.kind + 1", "no value"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "no value"),
        ("99999999999999999999", "not CEL"),
        ("missing", "names something unknown"),
        ("timestamp('2020-01-01T00:00:00Z')", "JSON cannot say"),
        ("1.0 / 0.0", "JSON cannot say"),
        ("{1: 2}", "JSON cannot say"),
    ],
)
def test_an_expression_without_a_value_says_why(text: str, says: str) -> None:
    assert says in refusal(text).what


def test_a_number_beyond_64_bits_is_refused_not_rounded() -> None:
    made = expressions.compile("n == 1", source="a")
    with pytest.raises(BadRule, match="too large"):
        made.evaluate({"n": 10**19})


def test_only_the_named_parts_of_a_value_are_looked_at() -> None:
    made = expressions.compile("payload.kind == 'a' && payload['n'] == 1", source="a")
    heavy = [0] * (expressions.LIMIT_UNITS + 1)
    assert made.evaluate({"payload": {"kind": "a", "n": 1, "heavy": heavy}, "other": heavy}) is True


def test_evaluating_changes_nothing_it_was_given() -> None:
    before = {"payload": {"rows": [{"a": 1}]}}
    expressions.compile("payload.rows.map(r, r.a)", source="a").evaluate(before)
    assert before == {"payload": {"rows": [{"a": 1}]}}


def test_one_expression_serves_several_threads() -> None:
    made = expressions.compile("n * 2", source="a")
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(number for _ in range(200) if made.evaluate({"n": number}) != number * 2)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "xs.map(a, xs.map(b, xs.map(c, a * b * c)))",
        "xs.all(a, xs.exists(b, a == b))",
        "xs.map(x, [1].map(y, y))",
        "xs.filter(x, has(x.a) && x.a.exists(y, y))",
    ],
)
def test_s29_nested_macros_are_refused(text: str) -> None:
    assert "nests macros" in refusal(text).what


@pytest.mark.parametrize(
    "text",
    ["(" * 3000 + "1" + ")" * 3000, "1" + "+1" * 2000, "'" + "é" * 1025 + "'", " " * 2049 + "1"],
)
def test_s29_an_expression_over_2_kib_is_refused(text: str) -> None:
    assert "too long" in refusal(text).what


@pytest.mark.parametrize(
    "text",
    [
        "(" * 33 + "1" + ")" * 33,
        "[" * 33 + "]" * 33,
        "!" * 40 + "true",
        "-" * 40 + "1",
        "true ? 1 : " * 40 + "2",
        "xs" + "[0]" * 40,
        "payload" + ".a" * 40,
        "{'a': " * 33 + "1" + "}" * 33,
    ],
)
def test_s29_an_expression_over_32_levels_is_refused(text: str) -> None:
    assert "too deep" in refusal(text).what


@pytest.mark.parametrize(
    "text",
    [
        "(" * 31 + "1" + ")" * 31,
        "!" * 30 + "true",
        "[" * 30 + "]" * 30,
        "false ? 1 : " * 30 + "2",
        "1" + " + 1" * 400,
    ],
)
def test_an_expression_within_the_bound_is_read(text: str) -> None:
    assert value(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "xs.map(x, xs)",  # 40 s without the bound: each turn copies the list so far
        "xs.map(x, text + text)",
        "xs.map(x, rows)",
        "rows.filter(r, true).map(r, rows)",
        "rows.map(r, [r, r, r, r, r, r])",
        "+".join(["text"] * 300),
        "xs.all(x, (text + string(x)).matches('(a*)*b'))",
        "xs.map(x, [x, xs, {'a': xs}])",
        "xs.all(x, (xs + xs + xs + xs + xs + xs).size() > 0)",
    ],
)
def test_s29_what_could_hold_the_interpreter_is_refused(text: str) -> None:
    assert "too long on these values" in refusal(text).what


def test_s29_a_list_over_1000_items_is_not_walked() -> None:
    made = expressions.compile("xs.all(x, x >= 0)", source="a")
    assert made.evaluate({"xs": [1] * 1000}) is True
    with pytest.raises(BadRule, match="too long a list"):
        made.evaluate({"xs": [1] * 1001})


def test_s29_two_lists_added_count_together() -> None:
    assert "too long a list" in refusal("(xs + xs).all(x, true)").what


@pytest.mark.parametrize(
    "text",
    [
        r"'a'.matches('(\\pL{1,40}){1,30}')",
        "'a'.matches('a' + 'b')",
        "'a'.matches(text)",
        f"'a'.matches('{'a' * 201}')",
    ],
)
def test_s29_a_pattern_is_short_written_out_and_counts_nothing(text: str) -> None:
    assert "a pattern in quotes" in refusal(text).expected


@pytest.mark.parametrize(
    "text", ["payload.rows.map(r, rows.size())", "rows.filter(r, r.id > 990)", "rows.map(r, r.id)"]
)
def test_s29_what_the_bound_lets_through_ends_soon(text: str) -> None:
    started = time.thread_time()
    value(text)
    assert time.thread_time() - started < 2


def test_s29_a_wide_payload_is_refused_before_it_is_copied() -> None:
    made = expressions.compile("payload == 1", source="a")
    with pytest.raises(BadRule, match="too large a value"):
        made.evaluate({"payload": [0] * (expressions.LIMIT_UNITS + 1)})


ATOMS = st.sampled_from(["1", "2.5", "'a'", "true", "null", "x", "x.y", "[1, 2]", "{'k': 1}", "'a\\n'"])


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    signs = st.sampled_from(["+", "-", "*", "/", "%", "==", "!=", "<", ">=", "in", "&&", "||"])
    return st.one_of(
        st.tuples(inner, signs, inner).map(lambda t: f"{t[0]} {t[1]} {t[2]}"),
        inner.map(lambda one: f"({one})"),
        inner.map(lambda one: f"!{one}"),
        inner.map(lambda one: f"-{one}"),
        st.tuples(inner, inner, inner).map(lambda t: f"{t[0]} ? {t[1]} : {t[2]}"),
        inner.map(lambda one: f"[{one}, {one}].map(i, i)"),
        inner.map(lambda one: f"size({one})"),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(ATOMS, larger, max_leaves=12))
def test_what_we_read_is_what_the_evaluator_reads(text: str) -> None:
    variables: dict[str, Json] = {"x": {"y": 3}}
    try:
        ours = expressions.compile(text, source="a").evaluate(variables)
    except BadRule:
        return
    assert ours == cel.compile(text).execute(variables)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ax1.+-*()[]{}'\"\\!?:,&|<=> \nrin", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        expressions.compile(text, source="a").evaluate({"a": 1, "x": [1]})
    except BadRule:
        return


def test_the_evaluator_comes_without_its_terminal_toolkit() -> None:
    code = (
        "import sys; from agentmesh.behavior import expressions;"
        "assert expressions.compile('1 + 1', source='a').evaluate({}) == 2; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"prompt_toolkit", "typer", "rich"} & set(done.stdout.split())
