"""The report is one file that needs nothing else, and what customers wrote stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from agentmesh.demo.report import render_html
from agentmesh.demo.summary import Timing, summarise
from tests.demo.test_summary import case

TIMING = Timing(intents=1, done=1, failed=0, seconds=1.0)
EVIL = "<script>alert(1)</script> & \"quotes\" 'too' <img src=x onerror=y>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(*cases: dict[str, object], **options: bool) -> str:
    return render_html(summarise(cases, {}, TIMING), **options)


def test_what_a_customer_wrote_is_never_markup() -> None:
    everywhere = {"text": EVIL, "category": EVIL, "reason": EVIL, "action": EVIL, "method": EVIL}
    html = page(case("test-1", **everywhere))
    tags = Tags()
    tags.feed(html)
    assert not {"script", "img"} & set(tags.seen)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quotes&quot;" in html


def test_every_tag_is_closed() -> None:
    tags = Tags()
    tags.feed(page(case("test-1", reason="the similar cases disagree", overdue=True)))
    assert tags.open == []


def test_nothing_is_fetched_from_elsewhere() -> None:
    html = page(case("test-1", reason="r"))
    assert not re.search(r"https?://|url\(|@import|src=|href=", html)
    assert "default-src 'none'" in html


def test_it_says_what_is_derived_and_whose_data_it_is() -> None:
    html = page(case("test-1"))
    assert "derived from the row" in html
    assert "CC BY 4.0" in html
    assert "The past cases are BANKING77" in page(case("input-1"), own_data=True)


def test_it_can_be_read_on_a_phone_and_in_the_dark() -> None:
    html = page(case("test-1"))
    assert 'name="viewport" content="width=device-width' in html
    assert "prefers-color-scheme: dark" in html
    assert "overflow-wrap: anywhere" in html


def test_those_that_need_a_person_are_listed_with_the_reason() -> None:
    html = page(
        case("test-1", reason="the similar cases disagree", open_cases=2, overdue=True),
        case("test-2"),
    )
    assert "These need a person (1)" in html
    assert "The similar cases disagree. Send it." in html
    assert "2 open cases" in html
    assert "case test-2" not in html


def test_a_run_without_such_cases_says_so() -> None:
    assert "every case was solved" in page(case("test-1"))
    assert "0</strong> of 0 cases" in page()


def test_a_long_text_is_cut_and_many_categories_are_summed(tmp_path: Path) -> None:
    cases = [case(f"test-{n}", category=f"category_{n}") for n in range(20)]
    html = page(*cases, case("test-99", reason="r", text="x" * 5000))
    assert "x" * 401 not in html
    assert "6 other categories" in html
