"""What a reasoner is shown: one session a decision, values in, values out.

A session holds what was recorded; what a reasoner wants recorded it notes on the session, and
whoever runs it commits the notes with the step. Nothing here reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentmesh.records import Json, Policy

DEFAULT_POLICY = Policy()


@dataclass(frozen=True, slots=True)
class Note:
    """An event a reasoner wants recorded with its step: a name (REASONER_PROMPT …) and a body."""

    event: str
    body: dict[str, Json]


class Lazy(Mapping[str, Json]):
    """A mapping that is read when it is first looked into: most decisions never look into memory."""

    def __init__(self, read: Callable[[], Mapping[str, Json]]) -> None:
        self._read = read
        self._seen: Mapping[str, Json] | None = None

    def _known(self) -> Mapping[str, Json]:
        if self._seen is None:
            self._seen = self._read()
        return self._seen

    def __getitem__(self, key: str) -> Json:
        return self._known()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


class LazyList(Sequence[Json]):
    """A sequence that is read when it is first looked into."""

    def __init__(self, read: Callable[[], Sequence[Json]]) -> None:
        self._read = read
        self._seen: Sequence[Json] | None = None

    def _known(self) -> Sequence[Json]:
        if self._seen is None:
            self._seen = self._read()
        return self._seen

    def __getitem__(self, place: Any) -> Any:
        return self._known()[place]

    def __len__(self) -> int:
        return len(self._known())


@dataclass(frozen=True, slots=True)
class Session:
    """One decision's view of its trace.

    `memory` is keyed `type:key` as in the views of memory; `results` holds the earlier results by
    label, `steps` what each node last came to, `vars` what the chain has set; `step` counts the steps of the
    trace, and `iteration` how often it has gone back to an earlier node, from 0: the rounds of a reasoner that is asked
    again and again.
    Everything but `notes` is fixed.
    """

    trace_id: str
    context_id: str
    tenant: str
    agent: str
    intent: str
    from_: str
    payload: Mapping[str, Json] = field(default_factory=dict)
    memory: Mapping[str, Json] = field(default_factory=dict)
    results: Mapping[str, Json] = field(default_factory=dict)
    steps: Mapping[str, Json] = field(default_factory=dict)
    vars: Mapping[str, Json] = field(default_factory=dict)
    result: Json = None
    step: int = 0
    iteration: int = 0
    node: str = "reason"
    locale: str | None = None
    permissions: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    policy: Policy = DEFAULT_POLICY
    turns: Sequence[Json] = ()
    account: Mapping[str, Json] | None = None
    notes: list[Note] = field(default_factory=list, compare=False)

    def note(self, event: str, body: Mapping[str, Json]) -> None:
        """Have `event` recorded with this step, after those noted before."""
        self.notes.append(Note(event, dict(body)))

    def taken_notes(self) -> tuple[Note, ...]:
        """The notes so far, in order; the session has none afterwards."""
        taken = tuple(self.notes)
        self.notes.clear()
        return taken

    def variables(self, names: Iterable[str] | None = None) -> dict[str, Json]:
        """What an expression may name, as plain values; of these `names` only, where they are given."""
        named = {name: getattr(self, name) for name in (VARIABLES if names is None else names)}
        return {name: _plain(value) for name, value in named.items()}

    def behavior(self) -> dict[str, Json]:
        """The intent in the three parts of its envelope, with memory and results beside them."""
        return {
            "meta": {"trace_id": self.trace_id, "from": self.from_, "to": self.agent},
            "context": {
                "context_id": self.context_id,
                "locale": self.locale,
                "permissions": list(self.permissions),
            },
            "command": {"intent": self.intent, "payload": dict(self.payload)},
            "memory": dict(self.memory),
            "results": dict(self.results),
            "tools": list(self.tools),
        } | ({"turns": list(self.turns)} if self.turns else {})


VARIABLES = (
    "intent", "payload", "memory", "results", "steps", "vars", "result", "step", "iteration", "from_", "context_id",
    "agent", "tenant", "node", "policy", "turns",
)  # fmt: skip
"""The names expressions know; each is a field of Session."""


def _plain(value: Any) -> Json:
    match value:
        case Policy():
            return value.model_dump(mode="json")
        case Mapping():
            return dict(value)
        case tuple():
            return list(value)
        case _:
            return value
