"""The history checker on histories made by hand: a clean one, and one for each way in which a promise can be broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.simulation.history import Attempt, Event, History, Ran, Submitted, violations

Spoil = Callable[[History], object]


def clean() -> History:
    """Trace t works two tools at once, one of which is lost once; its callback delegates to trace u, which answers.

    Trace t: step r (reason), step s (tools: call a won at its second attempt, call b at its first).
    """
    slots = [[{"tool": "work", "as": "a"}, {"tool": "work", "as": "b"}]]
    return History(
        events=[
            Event("t", 1, "BIR_DISPATCH", body={"from": "job-0"}),
            Event("t", 2, "ACP_RECEIVE"),
            Event("t", 3, "EXEC_START", "r"),
            Event("t", 4, "REASONER_ACTION", "r", body={"action": {"slots": slots}}),
            Event("t", 5, "TOOL_DISPATCH", "s", body={"strategy": "parallel", "require": "all", "tools": ["a", "b"]}),
            Event("t", 6, "TOOL_EXEC", "s", "a", {"label": "a"}, at=30),
            Event("t", 7, "TOOL_EXEC", "s", "b", {"label": "b"}, at=30),
            Event("t", 8, "CALLBACK_RESULT", "s", body={"ok": True}, at=31),
            Event("t", 9, "CALLBACK_NEXT_ACTION", "s", at=31),
            Event("t", 10, "EXEC_DELEGATE", "s", body={"trace": "u"}, at=31),
            Event("t", 11, "EXEC_DONE", "s", at=31),
            Event("u", 1, "BIR_DISPATCH", body={"from": "alpha"}),
            Event("u", 2, "EXEC_START", "v"),
            Event("u", 3, "REASONER_ACTION", "v"),
            Event("u", 4, "CALLBACK_RESULT", "v", body={"ok": True}),
            Event("u", 5, "CALLBACK_NEXT_ACTION", "v"),
            Event("u", 6, "EXEC_DONE", "v"),
        ],
        attempts=[
            Attempt("1", "t", "r", "reason", 1, 1, outcome="won", started=1, ended=2),
            Attempt("2", "t", "s", "tool", 1, 1, "a", "w1", "key-a", "lost", 3, 14),
            Attempt("3", "t", "s", "tool", 2, 2, "a", "w2", "key-a", "won", 15, 16),
            Attempt("4", "t", "s", "tool", 1, 1, "b", "w2", "key-b", "won", 3, 4),
            Attempt("5", "t", "s", "callback", 1, 2, outcome="won", started=30, ended=31),
            Attempt("6", "u", "v", "reason", 1, 1, outcome="won", started=32, ended=33),
        ],
        ran=[
            Ran(3, "entered", "t", "work", "key-a", 1, 1),
            Ran(15, "entered", "t", "work", "key-a", 2, 2),
            Ran(16, "left", "t", "work", "key-a", 2, 2),
            Ran(3, "entered", "t", "work", "key-b", 1, 1),
            Ran(4, "left", "t", "work", "key-b", 1, 1),
        ],
        submitted=[Submitted(0, "job-0", "k", "accepted", "t"), Submitted(0, "job-0", "k", "accepted", "t")],
    )  # fmt: skip


def event(known: History, trace: str, name: str) -> int:
    return next(at for at, one in enumerate(known.events) if (one.trace_id, one.name) == (trace, name))


def drop(known: History, trace: str, name: str) -> None:
    """The event is missing, and the others are numbered as if it had never been."""
    del known.events[event(known, trace, name)]
    renumber(known)


def add(known: History, after: tuple[str, str], new: Event) -> None:
    known.events.insert(event(known, *after) + 1, new)
    renumber(known)


def renumber(known: History) -> None:
    seen: dict[str, int] = {}
    for at, one in enumerate(known.events):
        seen[one.trace_id] = seen.get(one.trace_id, 0) + 1
        known.events[at] = replace(one, seq=seen[one.trace_id])


def alter(some: list, place: int, /, **values: object) -> None:
    some[place] = replace(some[place], **values)


BAD: dict[str, tuple[str, Spoil]] = {
    "an accepted intent left no trace": ("P1", lambda h: h.submitted.append(Submitted(0, "job-0", "k", "accepted", "gone"))),
    "a trace came to no end": ("P1", lambda h: drop(h, "u", "EXEC_DONE")),
    "a trace ended twice": ("P1", lambda h: add(h, ("u", "EXEC_DONE"), Event("u", 0, "EXEC_FAIL"))),
    "a trace went on after its end": ("P1", lambda h: add(h, ("u", "EXEC_DONE"), Event("u", 0, "EXEC_RESCUE"))),
    "an attempt was left open": ("P1", lambda h: alter(h.attempts, 5, outcome=None)),
    "a trace came from nowhere": ("P2", lambda h: h.events.append(Event("x", 1, "EXEC_DONE"))),
    "a tool ran for nothing": ("P2", lambda h: h.ran.append(Ran(1, "entered", "x", "work", "key-b", 1, 1))),
    "a failed dispatch was accepted": ("P2", lambda h: [setattr(one, "told", "raised") for one in h.submitted]),
    "one key gave two traces": ("P3", lambda h: h.submitted.append(Submitted(0, "job-0", "k", "accepted", "u"))),
    "one intent was accepted twice": ("P3", lambda h: h.events.extend([
        Event("x", 1, "BIR_DISPATCH", body={"from": "job-0"}), Event("x", 2, "EXEC_DONE")])),
    "a call was won twice": ("P4", lambda h: alter(h.attempts, 1, outcome="won")),
    "a call was won by a former holder": ("P4", lambda h: h.attempts.append(
        Attempt("7", "t", "s", "tool", 2, 2, "b", "w1", "key-b", "lost", 5, 6))),
    "a call was won with the result of another run": ("P4", lambda h: alter(h.ran, 2, at=17)),
    "a result was told twice": ("P4", lambda h: add(h, ("t", "TOOL_EXEC"), Event("t", 0, "TOOL_EXEC", "s", "a"))),
    "a result that nobody won was told": ("P4", lambda h: alter(h.attempts, 3, outcome="failed")),
    "a step was decided twice": ("P4", lambda h: h.attempts.append(
        Attempt("7", "u", "v", "reason", 2, 2, outcome="won", started=34, ended=35))),
    "a reasoner was asked again after its answer": ("P4", lambda h: h.attempts.append(
        Attempt("7", "u", "v", "reason", 2, 2, outcome="failed", started=34, ended=35))),
    "a first attempt is missing": ("P5", lambda h: alter(h.attempts, 3, n=2)),
    "a call started while its attempt was not lost": ("P5", lambda h: alter(h.attempts, 1, ended=15.5)),
    "a call started again under its epoch": ("P5", lambda h: alter(h.attempts, 2, epoch=1)),
    "a call changed its key": ("P5", lambda h: alter(h.attempts, 2, idem_key="key-c")),
    "two calls share a key": ("P5", lambda h: alter(h.attempts, 3, idem_key="key-a")),
    "a tool ran unrecorded": ("P5", lambda h: h.ran.append(Ran(9, "entered", "t", "work", "key-b", 2, 2))),
    "a tool was entered twice in an attempt": ("P5", lambda h: h.ran.append(Ran(9, "entered", "t", "work", "key-b", 1, 1))),
    "a once tool was started twice": ("P5", lambda h: [alter(h.ran, at, effect="once") for at in (0, 1)]),
    "a transaction was applied twice": ("P5", lambda h: h.ran.extend(
        [Ran(0, "applied", "t", "work", "key-b", 1, 1, effect="tx")] * 2)),
    "a transaction was applied and lost": ("P5", lambda h: (
        h.ran.append(Ran(0, "applied", "t", "work", "key-c", 1, 1, effect="tx")),
        h.attempts.append(Attempt("7", "t", "s", "tool", 1, 1, "c", "w1", "key-c", "failed", 5, 6)))),
    "a transaction was won and not applied": ("P5", lambda h: alter(h.ran, 3, effect="tx")),
    "a callback ruled twice": ("P6", lambda h: add(h, ("t", "CALLBACK_RESULT"), Event("t", 0, "CALLBACK_RESULT", "s"))),
    "a callback gave no verdict": ("P6", lambda h: drop(h, "u", "CALLBACK_NEXT_ACTION")),
    "a delegated trace is missing": ("P6", lambda h: alter(h.events, 9, body={"trace": "x"})),
    "a trace was delegated twice": ("P6", lambda h: add(
        h, ("u", "CALLBACK_NEXT_ACTION"), Event("u", 0, "EXEC_DELEGATE", "v", body={"trace": "u"}))),
    "a join fired too early": ("P7", lambda h: drop(h, "t", "TOOL_EXEC")),
    "a join gave up too early": ("P7", lambda h: alter(h.events, 7, body={"ok": False})),
    "a tool started after a cancel": ("P12", lambda h: alter(h.events, 10, name="EXEC_CANCEL", at=14)),
    "a step started while its trace was paused": ("P12", lambda h: (
        add(h, ("t", "TOOL_EXEC"), Event("t", 0, "EXEC_PAUSE", at=20)),
        add(h, ("t", "CALLBACK_NEXT_ACTION"), Event("t", 0, "EXEC_RESUME", at=31)))),
    "a step started after a pause without an end": ("P12", lambda h: add(
        h, ("t", "TOOL_EXEC"), Event("t", 0, "EXEC_PAUSE", at=20))),
    "a trace was bound to a plan twice": ("P13", lambda h: add(h, ("t", "EXEC_START"), Event("t", 0, "EXEC_START", "r"))),
    "an event is missing": ("P14", lambda h: h.events.pop(event(h, "t", "ACP_RECEIVE"))),
    "a number was given twice": ("P14", lambda h: alter(h.events, 1, seq=1)),
}  # fmt: skip


def test_a_clean_history_breaks_nothing() -> None:
    assert violations(clean()) == []


@pytest.mark.parametrize("what", BAD)
def test_a_broken_promise_is_seen_and_explained(what: str) -> None:
    promise, spoil = BAD[what]
    known = clean()
    spoil(known)
    found = [one for one in violations(known) if one.promise == promise]
    assert found
    assert all(one.lines for one in found)
    assert len(str(found[0]).splitlines()) <= 8


def test_every_rule_has_a_history_that_breaks_it() -> None:
    from tests.simulation import history

    def caught(rule: history.Rule, spoil: Spoil) -> bool:
        known = copy.deepcopy(clean())
        spoil(known)
        return bool(list(rule(history.Indexed(known))))

    for rule in history.RULES:
        assert any(caught(rule, spoil) for _, spoil in BAD.values()), rule.__name__


@pytest.mark.parametrize(("require", "ok", "done", "failed", "promise"), [
    ("any", True, "a", "", None), ("any", True, "", "", "P7"), ("any", False, "", "a", "P7"), ("any", False, "", "ab", None),
    ("all", False, "b", "a", None), ("all", True, "b", "a", "P7"), ("2", True, "ab", "", None), ("2", False, "a", "", "P7"),
])  # fmt: skip
def test_a_join_is_judged_by_what_its_step_requires(require, ok, done, failed, promise) -> None:
    known = clean()
    alter(known.events, 4, body={"strategy": "parallel", "require": require, "tools": ["a", "b"]})
    alter(known.events, 7, body={"ok": ok})
    for at, label in ((5, "a"), (6, "b")):
        name = "TOOL_EXEC" if label in done else "TOOL_FAIL" if label in failed else "NOTHING"
        alter(known.events, at, name=name)
    assert [one.promise for one in violations(known)] == ([] if promise is None else [promise])


@pytest.mark.parametrize(("strategy", "done", "failed", "ok"), [
    ("serial", "ab", "", True), ("serial", "a", "b", False), ("fallback", "b", "a", True), ("fallback", "", "ab", False),
    ("mixed", "b", "a", True),
])  # fmt: skip
def test_a_join_is_judged_by_its_slots(strategy, done, failed, ok) -> None:
    known = clean()
    alter(known.events, 4, body={"strategy": strategy, "require": "all", "tools": ["a", "b"]})
    for at, label in ((5, "a"), (6, "b")):
        alter(known.events, at, name="TOOL_EXEC" if label in done else "TOOL_FAIL" if label in failed else "NOTHING")
    for said, promises in ((ok, []), (not ok, ["P7"])):
        alter(known.events, 7, body={"ok": said})
        assert [one.promise for one in violations(known)] == promises


def test_a_once_call_of_unknown_outcome_stops_its_slot() -> None:
    known = clean()
    alter(known.events, 4, body={"strategy": "fallback", "require": "all", "tools": ["a", "b"]})
    alter(known.events, 5, name="TOOL_FAIL", body={"label": "a", "error": {"code": "E_OUTCOME_UNKNOWN"}})
    alter(known.events, 6, name="NOTHING")
    alter(known.events, 7, body={"ok": False})
    assert violations(known) == []
    alter(known.events, 5, body={"label": "a", "error": {"code": "E_TOOL"}})
    assert [one.promise for one in violations(known)] == ["P7"]
