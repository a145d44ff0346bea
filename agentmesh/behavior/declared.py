"""What an agent file says of a reasoner, and what a reasoner is handed beside its session.

Wiring hands over the desk, which is the tool router, and what the settings know of models. Keys are named, never written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field, StringConstraints

from agentmesh.behavior.session import Session
from agentmesh.infrastructure.secrets import Secrets, secret
from agentmesh.records import Action, Json, Name, Record

Attribute = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Record):
    """US dollars for a million tokens."""

    input: Positive
    output: Positive


class FileRef(Record):
    """A file beside the agent file."""

    file: str


class LlmSpec(Record):
    """A model and how it is asked. Model and endpoint may come from the settings ([llm]); `key` names a secret."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s@]+$")] | None = None
    key: Name | None = None
    output: Literal["tools", "json", "json_schema"] = "tools"
    answer: dict[str, Json] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    max_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    price: Price | None = None
    body: dict[str, Json] = Field(default_factory=dict)
    prompt: Annotated[str, StringConstraints(min_length=1)] | FileRef
    """The template itself, or the file that holds it."""
    prompts: dict[Name, str | FileRef] = Field(default_factory=dict)
    """Other ones for single nodes."""


class PolicySpec(Record):
    """Actions by name to choose among by learnt weights; `file` is what `agentmesh agents learn` printed."""

    choices: Annotated[dict[Name, dict[str, Json]], Field(min_length=2, max_length=100)]
    file: str | None = None
    explore: Annotated[float, Field(ge=0, le=1)] = 0.1


class VetoSpec(Record):
    """What a model may not do: `when` also sees its `action`; `then` is done instead (None: it is refused)."""

    when: str
    why: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    then: dict[str, Json] | None = None


class OneReasoner(Record):
    """Rules, Python code as "module:attribute", a model, or a learnt policy; rules and a model together, the rules first."""

    rules: tuple[dict[str, Json], ...] | None = None
    python: Attribute | None = None
    llm: LlmSpec | None = None
    policy: PolicySpec | None = None
    veto: tuple[VetoSpec, ...] = ()


class RouteSpec(OneReasoner):
    """A reasoner for the sessions of which `when` is true (None: all)."""

    name: Name
    when: str | None = None


class ReasonerSpec(OneReasoner):
    """How an agent decides: one reasoner, or the first of several whose condition is true."""

    route: Annotated[tuple[RouteSpec, ...], Field(min_length=1)] | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool a session may use: what it is for, and the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Json]


class Desk(Protocol):
    """The tools of a session."""

    def offers(self, session: Session) -> Sequence[Offered]:
        """Those its agent has and its permissions cover, by name."""
        ...

    def vet(self, action: Action, session: Session) -> None:
        """Raises UnknownTool, Forbidden, BadArguments or BadAction where dispatching the action would."""
        ...


@dataclass(frozen=True, slots=True)
class Models:
    """The endpoint of the settings, for whom names none of its own; and the secrets, by name.

    The settings' key goes to the settings' endpoint and to no other.
    """

    base_url: str | None = None
    model: str | None = None
    key: str | None = None
    secret: Secrets = secret

    def key_for(self, spec: LlmSpec) -> str | None:
        """The key this spec's endpoint is asked with; None: without. Raises SecretMissing."""
        name = spec.key or (self.key if spec.base_url is None else None)
        return None if name is None else self.secret(name)
