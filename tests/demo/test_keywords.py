"""Keyword rules are words and nothing else: what they say can be read off the rule."""

from __future__ import annotations

import pytest

from agentmesh.demo import data
from agentmesh.demo.keywords import UNKNOWN, match


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("How do I activate my card?", "activate_my_card"),
        ("I think my card was STOLEN", "lost_or_stolen_card"),
        ("The machine swallowed it", "card_swallowed"),
        ("I was charged twice", "transaction_charged_twice"),
        ("I can\N{RIGHT SINGLE QUOTATION MARK}t withdraw", "declined_cash_withdrawal"),
        ("Contactless didn't do it", "contactless_not_working"),
    ],
)
def test_the_words_of_a_rule_decide(text: str, category: str) -> None:
    assert match(text).category == category


def test_a_short_stem_is_a_whole_word() -> None:
    assert match("nothing at all, agent").category == UNKNOWN


def test_no_words_no_category() -> None:
    for text in ("", "???", "Привет", "\0" * 10):
        assert match(text) == match("")
        assert match(text).category == UNKNOWN


def test_the_longer_alternative_wins() -> None:
    assert match("virtual card").category == "getting_virtual_card"
    assert match("my virtual card does not work").category == "virtual_card_not_working"


def test_the_rules_are_right_about_half_of_the_past_cases() -> None:
    cases = data.load_cases()[::10]
    said = [match(case.text).category for case in cases]
    right = sum(one == case.category for one, case in zip(said, cases, strict=True))
    spoke = sum(one != UNKNOWN for one in said)
    assert right / len(cases) > 0.45
    assert right / spoke > 0.6
