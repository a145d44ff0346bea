"""What the demo works on: complete, repeatable, without labels for the agents, strict on input."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from agentmesh.demo import data
from agentmesh.demo.keywords import categories
from agentmesh.errors import Mistake


def test_the_packed_data_is_whole() -> None:
    cases = data.load_cases()
    assert len(cases) == 10_003
    assert len({case.category for case in cases}) == 77
    assert cases[0].text == "I am still waiting on my card?"


def test_the_test_messages_are_spread_over_all_categories() -> None:
    counted = Counter(one.category for one in data.load_test_messages(200))
    assert len(counted) == 77
    assert set(counted.values()) == {2, 3}


def test_the_same_seed_gives_the_same_messages_and_another_gives_others() -> None:
    assert data.load_test_messages(20, seed=1) == data.load_test_messages(20, seed=1)
    assert data.load_test_messages(20, seed=1) != data.load_test_messages(20, seed=2)


def test_all_messages_can_be_asked_for_and_none_comes_twice() -> None:
    assert len({one.case for one in data.load_test_messages(3080)}) == 3080


@pytest.mark.parametrize("n", [0, -1, 3081])
def test_a_number_of_messages_that_is_not_there_is_refused(n: int) -> None:
    with pytest.raises(Mistake, match="1 to 3080"):
        data.load_test_messages(n)


def test_past_cases_and_test_messages_do_not_overlap_in_name() -> None:
    assert not {one.case for one in data.load_cases()} & {one.case for one in data.load_test_messages(50)}


def test_customers_and_ages_follow_from_the_row_alone() -> None:
    first, again = data.load_cases()[:50], data.load_cases()[:50]
    assert [(one.customer, one.age_days) for one in first] == [
        (data.customer_of(row), data.age_of(row)) for row in range(50)
    ]
    assert first == again
    assert {data.age_of(row) for row in range(1000)} == set(range(data.MAX_AGE_DAYS))


def test_no_agent_gets_to_see_a_label() -> None:
    messages = data.load_test_messages(5)
    for intent in data.intents(messages, run="r1"):
        assert set(intent["payload"]) == {"run", "case", "text", "customer", "age_days"}
    assert set(data.labels(messages)) == {one.case for one in messages}


def test_every_intent_goes_to_the_context_of_its_customer() -> None:
    (intent,) = data.intents(data.load_test_messages(1), run="r1")
    assert intent["context_id"] == f"customer-{intent['payload']['customer']}"
    assert (intent["to_id"], intent["intent"]) == (
        "complaint_analysis_agent",
        "analyze_complaint_and_solve",
    )


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text('\ufefftext,customer,category\n"Lost, my\ncard",7,x\nHelp,,\n', encoding="utf-8")
    first, second = data.read_input(file)
    assert (first.text, first.customer, first.category) == ("Lost, my\ncard", 7, "x")
    assert (second.customer, second.category) == (data.customer_of(1), None)
    assert data.labels([first, second]) == {"input-1": "x"}
    assert len(data.read_input(file, n=1)) == 1


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (b"message\nhello\n", 1, "no usable header"),
        (b"", 1, "no usable header"),
        (b"text,text\na,b\n", 1, "no usable header"),
        (b'text\nfine\n"  "\n', 3, "empty or too long"),
        (b"text\n" + b"x" * 10_001 + b"\n", 2, "empty or too long"),
        (b"text,customer\nfine,abc\n", 2, "customer that is no number"),
        (b"text,customer\nfine," + b"9" * 5000 + b"\n", 2, "customer that is no number"),
        (b"text,customer\nfine\n", 2, "another number of cells"),
        (b"text\nfine,extra\n", 2, "another number of cells"),
        (b'text\n"never closed\n', 2, "is not CSV"),
        (b"text\nnul\0here\n", 2, "NUL"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, content: bytes, line: int, said: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    with pytest.raises(Mistake, match=said) as caught:
        data.read_input(file)
    assert re.search(rf"bad\.csv:{line}\b", caught.value.what)


@pytest.mark.parametrize(("content", "said"), [(b"text\n\xff\n", "UTF-8"), (b"text\n", "no messages")])
def test_a_file_that_is_no_text_or_has_no_rows_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    with pytest.raises(Mistake, match=said):
        data.read_input(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="cannot be read"):
        data.read_input(tmp_path / "none.csv")


def test_rules_and_labels_speak_of_the_same_categories() -> None:
    assert set(categories()) == {case.category for case in data.load_cases()}
