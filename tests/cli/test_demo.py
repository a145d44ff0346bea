"""The demo's progress: what it says of rate and time left."""

from __future__ import annotations

import pytest

from agentmesh.cli.demo import _Bar


def told(capsys: pytest.CaptureFixture[str], *shown: tuple[int, float]) -> list[str]:
    bar = _Bar(200)
    for done, seconds in shown:
        bar.show(done, seconds)
    return capsys.readouterr().err.splitlines()


def test_what_had_ended_before_counts_for_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, (1, 0.0), (1, 5.1)) == ["1 of 200 messages"]


def test_no_time_left_is_guessed_from_less_than_a_twentieth(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, (1, 0.0), (10, 5.0), (11, 10.0)) == [
        "10 of 200 messages, 1.8/s", "11 of 200 messages, 1.0/s, about 3 min 9 s left",
    ]  # fmt: skip


def test_nothing_is_left_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, (1, 0.0), (200, 10.0)) == ["200 of 200 messages, 19.9/s"]
