"""Decides from a history alone which promises of FAULTS.md section 1 were kept.

A history is what `mesh.events` and `mesh.attempts` say afterwards, what the producers were told, and what the tools saw
while they ran: who ran what, when, under which attempt, epoch and key. No state of the engine is read, so an engine
that lies to itself consistently is found out all the same. What breaks a promise is told by the fewest lines that show
it. Rules carry the number of their promise.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

ENDS = frozenset({"EXEC_DONE", "EXEC_FAIL", "EXEC_CANCEL"})
MOMENT_S = 0.001  # what is lost when a time becomes a float
GIVES_WAY = frozenset({"failed", "timeout", "lost", "released", "stale"})
"""How an attempt ended after which another one may start."""


@dataclass(frozen=True, slots=True)
class Event:
    trace_id: str
    seq: int
    name: str
    step_id: str | None = None
    call_id: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    at: float = 0.0

    def __str__(self) -> str:
        about = (
            f" of call {self.call_id[-6:]}" if self.call_id else f" of step {self.step_id[-6:]}" if self.step_id else ""
        )
        return f"{self.at:8.2f} event {self.seq} {self.name}{about}"


@dataclass(frozen=True, slots=True)
class Attempt:
    id: str
    trace_id: str
    step_id: str
    kind: str
    n: int
    epoch: int
    call_id: str | None = None
    worker_id: str | None = None
    idem_key: str | None = None
    outcome: str | None = None
    started: float = 0.0
    ended: float | None = None

    def __str__(self) -> str:
        end = "never ended" if self.ended is None else f"ended {self.ended:.2f}"
        return f"{self.started:8.2f} {self.kind} attempt {self.n} epoch {self.epoch} {self.outcome or 'open'}, {end}"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a tool saw of itself: `entered`, `left`, or `applied` for what it wrote in its transaction."""

    at: float
    what: str
    trace_id: str
    tool: str
    key: str
    attempt: int
    epoch: int
    by: str = ""
    effect: str = "repeatable"

    def __str__(self) -> str:
        return f"{self.at:8.2f} {self.tool} {self.what} attempt {self.attempt} epoch {self.epoch} key {self.key[:6]} {self.by}"


@dataclass(slots=True)
class Submitted:
    """One dispatch of an intent that calls itself `sender`, and what its producer was told: accepted, raised, unknown."""

    at: float
    sender: str
    key: str | None = None
    told: str = "unknown"
    trace_id: str | None = None

    def __str__(self) -> str:
        return f"{self.at:8.2f} {self.sender} submitted, key {self.key}: {self.told} {self.trace_id or ''}"


@dataclass(slots=True)
class History:
    """Everything that is known of a run that has come to rest."""

    events: list[Event] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)
    submitted: list[Submitted] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept, and the lines that show it."""

    promise: str
    says: str
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.promise} {self.says}", *self.lines])


Rule = Callable[["Indexed"], Iterator[Violation]]


class Indexed:
    """A history by trace, step, call and key."""

    def __init__(self, known: History) -> None:
        self.known = known
        self.events: dict[str, list[Event]] = _grouped(known.events, lambda one: one.trace_id)
        self.steps: dict[str, list[Event]] = _grouped(
            (e for e in known.events if e.step_id), lambda one: str(one.step_id)
        )
        tools = [one for one in known.attempts if one.call_id is not None]
        self.calls: dict[str, list[Attempt]] = _grouped(tools, lambda one: str(one.call_id))
        self.keys: dict[str, list[Attempt]] = _grouped(tools, lambda one: str(one.idem_key))
        self.decisions: dict[tuple[str, str], list[Attempt]] = _grouped(
            (one for one in known.attempts if one.call_id is None), lambda one: (one.step_id, one.kind)
        )
        self.ran: dict[str, list[Ran]] = _grouped(known.ran, lambda one: one.key)
        for some in (*self.events.values(), *self.steps.values()):
            some.sort(key=lambda one: one.seq)
        for attempts in (*self.calls.values(), *self.decisions.values()):
            attempts.sort(key=lambda one: one.n)

    def dispatched(self) -> dict[str, Event]:
        return {one.trace_id: one for one in self.known.events if one.name == "BIR_DISPATCH"}


def violations(known: History) -> list[Violation]:
    """Every promise that was broken, by its number; of one promise the smallest explanation first."""
    indexed = Indexed(known)
    found = [one for rule in RULES for one in rule(indexed)]
    return sorted(found, key=lambda one: (int(one.promise[1:]), len(one.lines)))


# --- 1 to 3: what was accepted


def accepted_is_kept(known: Indexed) -> Iterator[Violation]:
    for told in known.known.submitted:
        if told.told == "accepted" and told.trace_id not in known.events:
            yield Violation("P1", "an accepted intent left no trace", (str(told),))
    for trace, events in known.events.items():
        ends = [one for one in events if one.name in ENDS]
        if not ends:
            yield Violation("P1", f"trace {trace} came to no end", (str(events[-1]),))
        if len(ends) > 1:
            yield Violation("P1", f"trace {trace} ended more than once", _lines(ends))
        elif ends and events[-1] is not ends[0]:
            yield Violation("P1", f"trace {trace} went on after its end", (str(ends[0]), str(events[-1])))
        yield from _left_open(known, trace, ends)


def _left_open(known: Indexed, trace: str, ends: Sequence[Event]) -> Iterator[Violation]:
    for one in known.known.attempts if ends else ():
        if one.trace_id == trace and one.outcome is None:
            yield Violation("P1", f"an attempt was left open by its ended trace {trace}", (str(one), str(ends[-1])))


def not_accepted_is_nothing(known: Indexed) -> Iterator[Violation]:
    dispatched = known.dispatched()
    for trace in known.events.keys() - dispatched.keys():
        yield Violation("P2", f"trace {trace} exists and was never dispatched", (str(known.events[trace][0]),))
    for one in known.known.ran:
        if one.trace_id not in dispatched:
            yield Violation("P2", f"a tool ran for {one.trace_id}, which nobody dispatched", (str(one),))
    tries = _grouped(known.known.submitted, lambda one: one.sender)
    children, calls = _children(known), {str(one.call_id) for one in known.known.attempts}
    for trace, event in dispatched.items():
        if trace in children or event.body.get("call") in calls:  # a tool that asks an agent: one of its attempts did
            continue
        asked = tries.get(str(event.body.get("from")), [])
        if all(one.told == "raised" for one in asked):
            yield Violation("P2", f"trace {trace} exists and its dispatch had failed", (*_lines(asked), str(event)))


def same_key_same_trace(known: Indexed) -> Iterator[Violation]:
    for key, asked in _grouped((s for s in known.known.submitted if s.key), lambda one: str(one.key)).items():
        told = [one for one in asked if one.told == "accepted"]
        if len({one.trace_id for one in told}) > 1:
            yield Violation("P3", f"key {key} gave more than one trace", _lines(told))
    made = Counter(
        str(one.body.get("from")) for trace, one in known.dispatched().items() if trace not in _children(known)
    )
    for sender, asked in _grouped(known.known.submitted, lambda one: one.sender).items():
        keys = {one.key for one in asked if one.key}
        most = len(keys) + sum(one.key is None for one in asked)
        if made[sender] > most:
            yield Violation("P3", f"{sender} was accepted {made[sender]} times, at most {most} expected", _lines(asked))


# --- 4 and 5: calls


def one_result_a_call(known: Indexed) -> Iterator[Violation]:
    for call, attempts in known.calls.items():
        won = [one for one in attempts if one.outcome == "won"]
        if len(won) > 1:
            yield Violation("P4", f"call {call} was won more than once", _lines(won))
        later = [one for one in attempts if won and (one.n > won[0].n or one.epoch > won[0].epoch)]
        if later:
            yield Violation("P4", f"call {call} was won by another than its last holder", _lines([won[0], later[-1]]))
    told = _grouped(
        (e for e in known.known.events if e.name == "TOOL_EXEC" and e.call_id), lambda one: str(one.call_id)
    )
    for call, events in told.items():
        if len(events) > 1:
            yield Violation("P4", f"the result of call {call} was told more than once", _lines(events))
        if not any(one.outcome == "won" for one in known.calls.get(call, [])):
            yield Violation("P4", f"call {call} is told as done and no attempt won it", (str(events[0]),))
    for (step, _), attempts in known.decisions.items():
        won = [one for one in attempts if one.outcome == "won"]
        if len(won) > 1:
            yield Violation("P4", f"step {step} was decided more than once", _lines(won))
        elif won and attempts[-1].n > won[0].n:
            yield Violation("P4", f"step {step} was asked again after its answer", _lines([won[0], attempts[-1]]))


def again_only_after_a_loss(known: Indexed) -> Iterator[Violation]:
    for call, attempts in known.calls.items():
        if attempts[0].n != 1:
            yield Violation("P5", f"the first attempt of call {call} is missing", (str(attempts[0]),))
        for one, next_one in pairwise(attempts):
            both = _lines([one, next_one])
            if one.outcome not in GIVES_WAY or one.ended is None or one.ended > next_one.started:
                yield Violation("P5", f"call {call} started again while an attempt had not been lost", both)
            if next_one.epoch <= one.epoch or next_one.n != one.n + 1:
                yield Violation("P5", f"an attempt of call {call} is not numbered above the one before", both)
            if next_one.idem_key != one.idem_key:
                yield Violation("P5", f"call {call} changed its key", both)
    for key, attempts in known.keys.items():
        if len({one.call_id for one in attempts}) > 1:
            yield Violation("P5", f"two calls have the key {key}", _lines(attempts[:2]))


def only_what_is_recorded_runs(known: Indexed) -> Iterator[Violation]:
    for key, ran in known.ran.items():
        recorded = {(one.n, one.epoch): one for one in known.keys.get(key, [])}
        entered = [one for one in ran if one.what == "entered"]
        for place, times in _grouped(entered, lambda one: (one.attempt, one.epoch)).items():
            if place not in recorded:
                yield Violation("P5", "a tool ran and no attempt says so", (str(times[0]),))
            if len(times) > 1:
                yield Violation("P5", "a tool was entered more than once in one attempt", _lines(times))
        if len(entered) > 1 and entered[0].effect == "once":
            yield Violation("P5", "a tool with effect once was started more than once", _lines(entered))
        applied = [one for one in ran if one.what == "applied"]
        won = [one for one in known.keys.get(key, []) if one.outcome == "won"]
        for one in won:
            left = [run for run in ran if run.what == "left" and (run.attempt, run.epoch) == (one.n, one.epoch)]
            if entered and not any(one.ended is not None and run.at <= one.ended + MOMENT_S for run in left):
                yield Violation("P4", "an attempt won with what another one's run had returned", _lines([one, *left]))
        if len(applied) > 1 or (applied and not won):
            yield Violation("P5", "what a transactional tool wrote is not there exactly once",
                            _lines([*applied, *known.keys.get(key, [])]))  # fmt: skip
        if won and not applied and entered and entered[0].effect == "tx":
            yield Violation("P5", "what a transactional tool wrote is missing", _lines([*entered, *won]))


# --- 6 and 7: callbacks and joins


def callbacks_happen_once(known: Indexed) -> Iterator[Violation]:
    for step, events in known.steps.items():
        for name in ("CALLBACK_RESULT", "CALLBACK_NEXT_ACTION", "MEMORY_WRITE", "REASONER_ACTION"):
            some = [one for one in events if one.name == name]
            if len(some) > 1:
                yield Violation("P6", f"step {step} has more than one {name}", _lines(some))
        result = [one for one in events if one.name == "CALLBACK_RESULT"]
        if result and not any(one.name == "CALLBACK_NEXT_ACTION" and one.seq > result[0].seq for one in events):
            yield Violation("P6", f"step {step} has a result and no verdict", _lines(result))
    dispatched = known.dispatched()
    for child, parents in _children(known).items():
        if child not in dispatched:
            yield Violation("P6", f"a delegated trace {child} is missing", (str(parents[0]),))
        if len(parents) > 1:
            yield Violation("P6", f"trace {child} was delegated more than once", _lines(parents))


def joins_fire_when_decided(known: Indexed) -> Iterator[Violation]:
    for trace, events in known.events.items():
        shown: dict[str, tuple[Event, Event]] = {}
        chosen: Event | None = None
        for one in events:
            if one.name == "REASONER_ACTION":
                chosen = one
            elif one.name == "TOOL_DISPATCH" and chosen is not None and one.step_id:
                shown[one.step_id] = (chosen, one)
        for step, (action, dispatch) in shown.items():
            mine = [one for one in events if one.step_id == step]
            yield from _join(trace, action, dispatch, mine)


def _join(trace: str, action: Event, dispatch: Event, events: Sequence[Event]) -> Iterator[Violation]:
    ruled = [one for one in events if one.name == "CALLBACK_RESULT"]
    slots = [[use.get("as") or use["tool"] for use in slot] for slot in action.body.get("action", {}).get("slots", [])]
    if not ruled or not slots:
        return
    strategy, require = dispatch.body["strategy"], dispatch.body["require"]
    flat = [label for slot in slots for label in slot]
    slots = {"parallel": [[label] for label in flat], "mixed": slots}.get(strategy, [flat])
    need = {"all": len(slots), "any": 1}.get(require) or int(require)
    done = {one.body.get("label") for one in events if one.name == "TOOL_EXEC" and one.seq < ruled[0].seq}
    failed = {one.body.get("label") for one in events if one.name in {"TOOL_FAIL", "TOOL_TIMEOUT"}} - done
    some, every = (any, all) if strategy in {"fallback", "mixed"} else (all, any)
    won = sum(some(label in done for label in slot) for slot in slots)
    stops = {
        one.body.get("label") for one in events if (one.body.get("error") or {}).get("code") == "E_OUTCOME_UNKNOWN"
    }
    lost = sum(every(label in failed for label in slot) or any(label in stops for label in slot) for slot in slots)
    shown = (
        str(dispatch),
        *_lines(one for one in events if one.name.startswith("TOOL_") and one.call_id),
        str(ruled[0]),
    )
    if ruled[0].body.get("ok") and won < need:
        yield Violation("P7", f"trace {trace} joined with {won} of {need} wins", shown)
    if not ruled[0].body.get("ok") and len(slots) - lost >= need:
        yield Violation("P7", f"trace {trace} gave up while {len(slots) - lost} of {need} could still win", shown)


# --- 12 to 14: what a person asked for, plans, order


def cancel_and_pause_stop_starts(known: Indexed) -> Iterator[Violation]:
    for trace, events in known.events.items():
        mine = [one for one in known.known.attempts if one.trace_id == trace]
        for cancel in [one for one in events if one.name == "EXEC_CANCEL"]:
            for one in [one for one in mine if one.started > cancel.at]:
                yield Violation("P12", f"trace {trace} started something after its cancel", (str(cancel), str(one)))
        switches = [one for one in events if one.name in {"EXEC_PAUSE", "EXEC_RESUME"}]
        for pause, resume in zip(switches, [*switches[1:], None], strict=False):
            until = resume.at if resume is not None else float("inf")
            within = [one for one in mine if one.call_id is None and pause.at < one.started < until]
            if pause.name == "EXEC_PAUSE" and within:
                yield Violation("P12", f"trace {trace} started a step while it was paused", _lines([pause, within[0]]))


def a_trace_starts_once(known: Indexed) -> Iterator[Violation]:
    for trace, events in known.events.items():
        starts = [one for one in events if one.name == "EXEC_START"]
        if len(starts) > 1:
            yield Violation("P13", f"trace {trace} was bound to a plan more than once", _lines(starts))


def events_are_numbered(known: Indexed) -> Iterator[Violation]:
    for trace, events in known.events.items():
        for expected, one in enumerate(events, 1):
            if one.seq != expected:
                before = events[expected - 2 : expected]
                yield Violation("P14", f"the events of trace {trace} are not numbered without a gap", _lines(before))
                break


RULES: tuple[Rule, ...] = (
    accepted_is_kept, not_accepted_is_nothing, same_key_same_trace, one_result_a_call, again_only_after_a_loss,
    only_what_is_recorded_runs, callbacks_happen_once, joins_fire_when_decided, cancel_and_pause_stop_starts,
    a_trace_starts_once, events_are_numbered,
)  # fmt: skip


def _children(known: Indexed) -> dict[str, list[Event]]:
    """Which EXEC_DELEGATE events made each delegated trace; those of a call tell how it ended."""
    return _grouped(
        (e for e in known.known.events if e.name == "EXEC_DELEGATE" and e.body.get("trace") and e.call_id is None),
        lambda one: one.body["trace"],
    )


def _grouped(some: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    found: defaultdict[Any, list[Any]] = defaultdict(list)
    for one in some:
        found[key(one)].append(one)
    return dict(found)


def _lines(some: Iterable[Any]) -> tuple[str, ...]:
    return tuple(str(one) for one in some)
