"""The plan a trace is pinned to: nodes by which it moves, canonical and hashed. Pure data.

The default plan of an agent is reason → tools: the reasoner decides, its tools run, the callback rules on the result
and may go round again. Callbacks are no nodes: a callback runs on the step whose result it handles.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from agentmesh.behavior.grammar import names_of
from agentmesh.behavior.templates import expressions
from agentmesh.infrastructure import jsontext
from agentmesh.records import Json, Name, PolicyPatch, Record, Require, Strategy, ToolUse

Condition = str
"""CEL that is true or false; see behavior/templates."""

PlanHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Template = Json
"""JSON in which {"=": "CEL"} stands for what the expression comes to."""

NEXT, END, FAIL, COMPENSATE = "next", "end", "fail", "compensate"
TARGETS = (NEXT, END, FAIL, COMPENSATE)
"""Where a step may go besides to a node by its id."""

START = "start"
"""The node of the step that a trace begins with when its first node is no reasoner, and begins anew with."""

VIRTUAL = (START, COMPENSATE)
"""Nodes that every plan has and none lists."""

Otherwise = Literal["next", "finish", "trigger"]
"""Where a step goes when no callback ruled; trigger: on when its policy says `trigger_next_action`, else finish."""

MAX_TURNS = 100
MAX_ITEMS = 200
"""For how many items of a list child traces may be sent at once."""
MAX_COUNT = 100
"""How many agents one errand may be given to."""


class Place(Record):
    """What every node has. `next` None: the trace ends after it. `when` false: it is passed over.

    `needs` are the nodes that have to end before it begins (None: it is reached by a way); see BehaviorPlan.branches.
    `policy` stands above the agent's and below the intent's. `on_fail` and `on_timeout` name where a step goes that
    did not succeed (None: the trace fails).
    """

    id: Name
    next: Name | None = None
    when: Condition | None = None
    policy: PolicyPatch = PolicyPatch()
    on_fail: Name | None = None
    on_timeout: Name | None = None
    otherwise: Otherwise = "next"
    needs: tuple[Name, ...] | None = None


class Reason(Place):
    """A reasoner decides: the agent's own, or one of its `reasoners` by name."""

    kind: Literal["reason"]
    reasoner: Name | None = None


class Tools(Place):
    """Tools run. `slots` None: those that the reasoner chose."""

    kind: Literal["tools"]
    slots: tuple[tuple[ToolUse, ...], ...] | None = None
    strategy: Strategy = "serial"
    require: Require = "all"


class ForEach(Place):
    """One call of a tool for every item of a list, `limit` of them at once; results in the order of the items.

    In its arguments `item` and `index` are the item and its place.
    """

    kind: Literal["for_each"]
    items: Condition
    use: ToolUse
    limit: Annotated[int, Field(ge=1, le=10_000)] = 100
    require: Require = "all"


class Assign(Place):
    """Variables get values; expressions read them as `vars`."""

    kind: Literal["set"]
    values: dict[Name, Template]


class Jump(Place):
    """On to `then` where `when` holds (None: always), else to `next`; at most `limit` times in a trace."""

    kind: Literal["jump"]
    then: Name
    limit: Annotated[int, Field(ge=1, le=10_000)] = MAX_TURNS


class Case(Record):
    when: Condition
    then: Name


class Switch(Place):
    """On to the first case that holds, else to `next`; at most `limit` times in a trace."""

    kind: Literal["switch"]
    cases: tuple[Case, ...]
    limit: Annotated[int, Field(ge=1, le=10_000)] = MAX_TURNS


class Wait(Place):
    """Nothing happens for `seconds`, or `until` a time (RFC 3339), or until the next time that `cron` names."""

    kind: Literal["wait"]
    seconds: Annotated[float, Field(gt=0, le=366 * 86_400)] | dict[Literal["="], Condition] | None = None
    until: Template = None
    cron: str | None = None
    timezone: str = "UTC"


class Signal(Place):
    """A signal of this name arrives, with a payload that fits `payload_schema`; `within_s` None: whenever."""

    kind: Literal["signal"]
    signal: Name
    payload_schema: dict[str, Json] | None = None
    within_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None


class Escalation(Record):
    """After so long, these may decide as well."""

    after_s: Annotated[float, Field(gt=0, le=366 * 86_400)]
    who: tuple[str, ...]


class Approval(Place):
    """One of `who` (nobody named: anybody) chooses one of `options`; choosing the last one is a refusal.

    `ask` is what they are shown. A refusal, and no answer within `within_s`, is a failure of the step.
    """

    kind: Literal["approval"]
    ask: Template = None
    who: tuple[str, ...] = ()
    options: Annotated[tuple[Name, ...], Field(min_length=2)] = ("approve", "reject")
    within_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None
    escalate: Escalation | None = None
    reason_required: bool = False


class Errand(Record):
    """What a child trace is to do: an intent of another agent, or a chain of this plan (`chains`).

    The agent is named, or it is whoever has least to do of those that offer a `capability`; with a `count` it is so many
    of them, each a child of its own that goes by its agent's name.
    """

    label: Name
    agent: Name | None = None
    capability: Name | None = None
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] | Literal["all"] | None = None
    chain: Name | None = None
    intent: str | None = None
    payload: Template = None
    permissions: tuple[str, ...] | None = None


class Delegate(Place):
    """Child traces do errands; the step joins on their ends, or goes on at once where it does not `wait`.

    Their answers may be one by `vote`, what the expression comes to for each: the value that a `quorum` of them have,
    else the one that most have. Or the first that `accept` holds for wins. Those that can change nothing any more are
    cancelled. `within_s` is how long they have at most. With `each`, its one errand is done for every item of that list, by
    a child each; the result is a list in the order of the items.
    """

    kind: Literal["delegate"]
    errands: Annotated[tuple[Errand, ...], Field(min_length=1)]
    require: Require = "all"
    wait: bool = True
    vote: Condition | None = None
    quorum: Annotated[int, Field(ge=1)] | Literal["majority"] | None = None
    accept: Condition | None = None
    each: Condition | None = None
    within_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None


class Finish(Place):
    """The trace ends done, with `result` (None: that of the step before)."""

    kind: Literal["finish"]
    result: Template = None


class Give(Place):
    """The trace ends failed, with this code and message."""

    kind: Literal["fail"]
    code: str = "E_CHAIN"
    message: Template = "the chain gave up"


Node = Annotated[
    Reason | Tools | ForEach | Assign | Jump | Switch | Wait | Signal | Approval | Delegate | Finish | Give,
    Field(discriminator="kind"),
]
MOVES = (Assign, Jump, Switch, Finish, Give)
"""Nodes that are no steps: they are passed within the decision that ends the step before."""


class BehaviorPlan(Record):
    """Nodes by which a trace moves; the first one starts it. Data: pinned, hashed, compared.

    `chains` are the plans that its child traces follow; in a plan as it is kept, their hashes. `on_fail` is where a step
    goes that says nothing itself. `input` is the JSON Schema of the payload that a trace begins with (None: any).
    """

    chain: Name
    nodes: Annotated[tuple[Node, ...], Field(min_length=1, max_length=1000)]
    chains: dict[Name, BehaviorPlan | PlanHash] = Field(default_factory=dict)
    policy: PolicyPatch = PolicyPatch()
    on_fail: Name | None = None
    input: dict[str, Json] | None = None

    @property
    def first(self) -> Any:
        return self.nodes[0]

    def node(self, name: str) -> Any:
        """Raises KeyError when the plan has no such node."""
        return self.nodes[self.index(name)]

    def index(self, name: str) -> int:
        """The place of a node; -1 is that of the start. Raises KeyError."""
        return -1 if name in VIRTUAL else self._places[name]

    def leads_back(self, start: str, target: str) -> bool:
        """Whether going there begins another iteration: no node is visited twice in one. Raises KeyError."""
        return self.index(target) <= self.index(start)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {one.id: n for n, one in enumerate(self.nodes)}

    @cached_property
    def policies(self) -> dict[str, dict[str, Any]]:
        """What is set for each node, and for the start: the plan's policy, and the node's own above it."""
        own = [(START, PolicyPatch()), *((one.id, one.policy) for one in self.nodes)]
        return {name: _set(self.policy) | _set(patch) for name, patch in own}

    @cached_property
    def branches(self) -> bool:
        """Whether its nodes begin when those they need have ended, side by side, rather than one after another."""
        return any(one.needs is not None for one in self.nodes)

    @property
    def opening(self) -> tuple[str, str]:
        """Node and kind of the step that a trace begins with."""
        if isinstance(self.first, Reason) and not self.first.when and not self.branches and self.input is None:
            return self.first.id, "reason"
        return START, START

    @cached_property
    def reads(self) -> frozenset[str]:
        """The names that its expressions begin with."""
        texts = {text for one in self.nodes for text in texts_of(one)}
        return frozenset(name for text in texts for name in names_of(text)) | (
            {"payload"} if self.input else frozenset()
        )

    def all(self) -> Iterator[BehaviorPlan]:
        """This plan, and those that its child traces follow, all the way down."""
        yield self
        for one in self.chains.values():
            if isinstance(one, BehaviorPlan):
                yield from one.all()

    def hash_of(self, chain: str) -> str:
        """The hash of a plan that child traces follow."""
        found = self.chains[chain]
        return found.hash if isinstance(found, BehaviorPlan) else found

    def body(self) -> Json:
        """The plan with those that its child traces follow, all the way down."""
        return _lean(self.model_dump(mode="json", exclude_none=True))

    @cached_property
    def kept(self) -> Json:
        """The plan as it is kept: of those that its child traces follow their hashes, so that depth costs nothing."""
        below = {"chains": {name: self.hash_of(name) for name in self.chains}}
        return _lean(self.model_dump(mode="json", exclude_none=True, exclude={"chains"}) | below)

    @cached_property
    def hash(self) -> str:
        """sha256 over the canonical JSON: the same plan has the same hash everywhere."""
        return jsontext.digest(self.kept)


def texts_of(node: Place) -> Iterator[str]:
    """Every expression of a node."""
    body = node.model_dump(mode="json", exclude_none=True)
    yield from expressions(body)
    yield from (body[key] for key in ("when", "items", "each", "vote", "accept") if key in body)
    yield from (one["when"] for one in body.get("cases", ()))


def _lean(value: Json) -> Json:
    """Without the empty objects that say nothing."""
    if isinstance(value, dict):
        return {key: _lean(one) for key, one in value.items() if one != {} or key not in {"policy", "chains"}}
    return [_lean(one) for one in value] if isinstance(value, list) else value


def read_plan(body: Json) -> BehaviorPlan:
    """A plan as it is kept. Raises ValueError for one of a release that this one does not read.

    Schema 1 knew one plan, the default one, in which the callback was a node of its own.
    """
    if isinstance(body, dict) and body.get("chain") == "default" and "callback" in jsontext.dumps(body, what="a plan"):
        return default_plan()
    return BehaviorPlan.model_validate_json(jsontext.dumps(body, what="a plan"))


def default_plan() -> BehaviorPlan:
    """reason → tools, and round again while the callback says so."""
    return BehaviorPlan(
        chain="default",
        nodes=(
            Reason(id="reason", kind="reason", next="tools", otherwise="finish"),
            Tools(id="tools", kind="tools", next="reason", otherwise="trigger"),
        ),
    )


def _set(patch: PolicyPatch) -> dict[str, Any]:
    return {name: value for name in PolicyPatch.model_fields if (value := getattr(patch, name)) is not None}
