"""An agent as a file, or as the same keys in Python: one schema, errors with line and column.

A file is configuration: it alone may name Python code to import. Nothing here runs an agent.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StringConstraints

from agentmesh.behavior.combined import HybridReasoner, ReasonerRouter, Route, Veto, bind
from agentmesh.behavior.declared import Desk, Models, OneReasoner, PolicySpec, ReasonerSpec, RouteSpec, VetoSpec
from agentmesh.behavior.entries import MemorySpec, as_values
from agentmesh.behavior.expressions import compile as compile_expression
from agentmesh.behavior.learned import UNTAUGHT, RLPolicyReasoner
from agentmesh.behavior.limits import Limits, check_key
from agentmesh.behavior.llm import LLMReasoner
from agentmesh.behavior.reasoners import FunctionReasoner, Reasoner, ReasonerBase, RuleReasoner, read_action
from agentmesh.behavior.session import VARIABLES
from agentmesh.behavior.strategies import SessionSpec
from agentmesh.behavior.templates import compiled
from agentmesh.errors import BadAgentFile, BadJson, BadPermission, BadPolicy, BadRule
from agentmesh.infrastructure import jsontext, yamlfiles
from agentmesh.infrastructure.cron import following
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import (
    ContextId,
    IntentName,
    Json,
    Name,
    PolicyPatch,
    Record,
    Strategy,
    agent_queue,
    check_permissions,
)

Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]


KINDS = ("rules", "python", "llm", "policy")
NO_MODELS = Models()
Make = Callable[..., Reasoner]
"""Makes a reasoner of the parts a class of the user's is given: memory, tools, trace."""


class ScheduleSpec(Record):
    """What the agent is asked by the clock. `context` None: one of the schedule's own; `missed` says what becomes of
    moments that no worker was there for: none of them, one for all, or each."""

    cron: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    timezone: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "UTC"
    intent: IntentName
    payload: dict[str, Json] = Field(default_factory=dict)
    context: ContextId | None = None
    missed: Literal["skip", "once", "all"] = "once"
    priority: Annotated[int, Field(ge=0, le=9)] = 5

    def row(self) -> dict[str, Json]:
        """As the timetable is told."""
        said = self.model_dump(mode="json", exclude={"context"})
        return said | {"context_id": self.context}


class AgentSpec(Record):
    """One agent as it was declared. `intents` None: any. `group` None: a queue of its own. `capabilities` are what other
    agents' chains may ask of whoever offers it.

    `chain` is what its traces follow (None: reason → tools, round and round); `reasoners` are those that the chain names.
    """

    agent: Name
    version: Version = "1"
    description: Annotated[str, StringConstraints(max_length=500)] = ""
    intents: tuple[IntentName, ...] | None = None
    capabilities: tuple[Name, ...] = ()
    reasoner: ReasonerSpec = ReasonerSpec()
    reasoners: dict[Name, ReasonerSpec] = Field(default_factory=dict)
    chain: Name | None = None
    tools: tuple[Name, ...] = ()
    grants: tuple[str, ...] = ()
    policy: PolicyPatch = PolicyPatch()
    executor: Name = "sequential"
    max_steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    session: SessionSpec = SessionSpec()
    memory: MemorySpec = MemorySpec()
    tenants: Annotated[tuple[Name, ...], Field(min_length=1)] = ("default",)
    group: Name | None = None
    limits: Limits | None = None
    schedules: dict[Name, ScheduleSpec] = Field(default_factory=dict)

    _make: Make | None = PrivateAttr(default=None)
    _makes: dict[str, Make] = PrivateAttr(default_factory=dict)
    _chain: dict[str, Json] | None = PrivateAttr(default=None)

    @property
    def own_chain(self) -> dict[str, Json] | None:
        """The chain it was given in Python, as values; None where `chain` names a file's."""
        return self._chain

    @property
    def queue(self) -> str:
        return f"agents.{self.group}" if self.group else agent_queue(self.agent)

    @property
    def default_strategy(self) -> Strategy:
        """The strategy of an action that names none."""
        return "parallel" if self.executor == "parallel" else "serial"

    def accepts(self, intent: str) -> bool:
        return self.intents is None or intent in self.intents

    def effective_policy(self) -> PolicyPatch:
        """The policy with `max_steps` in it."""
        if self.max_steps is None:
            return self.policy
        return self.policy.model_copy(update={"max_steps": self.max_steps})

    def make_reasoner(
        self, memory_engine: Any = None, tool_registry: Any = None, trace_writer: Any = None, *, desk: Desk | None = None,
        models: Models = NO_MODELS,
    ) -> Reasoner:  # fmt: skip
        """What decides for this agent; rules are shared, a class of the user's is made anew.

        Raises BadAgentFile when the Python code it names cannot be imported or is no reasoner.
        """
        make = self._make
        if make is None and self.chain is not None and self.reasoner == ReasonerSpec():
            make = ReasonerBase
        if make is None:
            make = reasoner_maker(self.reasoner, YamlText({}, f"agent {self.agent}", {}), ())
        made = make(memory_engine, tool_registry, trace_writer)
        bind(made, desk, models)
        return made

    def make_reasoners(
        self, memory_engine: Any = None, tool_registry: Any = None, trace_writer: Any = None, *, desk: Desk | None = None,
        models: Models = NO_MODELS,
    ) -> dict[str, Reasoner]:  # fmt: skip
        """What decides at the nodes that name a reasoner. Raises BadAgentFile, as make_reasoner does."""
        found = {name: make(memory_engine, tool_registry, trace_writer) for name, make in self._makes.items()}
        for one in found.values():
            bind(one, desk, models)
        return found


def define_agent(
    agent: str,
    *,
    reasoner: Reasoner | Callable[..., Any] | Mapping[str, Json] | None = None,
    reasoners: Mapping[str, Reasoner | Callable[..., Any]] | None = None,
    chain: str | Mapping[str, Json] | None = None,
    policies: Mapping[str, PolicyPatch] | None = None,
    **keys: Any,
) -> AgentSpec:
    """An agent from keyword arguments: the keys of an agent file. A reasoner may also be an object with select_action, or
    a function of a session, and a chain the keys of a chain file; with one it needs no reasoner. In `memory` a pydantic model
    may stand for an entry. Raises BadAgentFile.
    """
    named = chain.get("chain") if isinstance(chain, Mapping) else chain
    given: dict[str, Json] = {"agent": agent, **keys} | ({} if chain is None else {"chain": named})
    if isinstance(given.get("policy"), PolicyPatch):
        given["policy"] = given["policy"].model_dump(mode="json", exclude_none=True)
    if isinstance(given.get("memory"), Mapping):
        given["memory"] = as_values(given["memory"])
    if isinstance(reasoner, Mapping):
        given["reasoner"] = dict(reasoner)
    try:
        data = json.loads(json.dumps(given))
    except (TypeError, ValueError) as exc:
        raise BadAgentFile(f"agent {agent}: {exc}", expected="the keys of an agent file") from None
    made = isinstance(reasoner, Mapping)
    spec = _checked(YamlText(data, f"agent {agent}", {}), policies or {}, needs_reasoner=made)
    if reasoner is not None and not made:
        spec._make = _given(reasoner, f"agent {agent}")
    spec._chain = dict(chain) if isinstance(chain, Mapping) else None
    spec._makes |= {name: _given(one, f"agent {agent}") for name, one in (reasoners or {}).items()}
    return spec


def load_agent_file(
    path: Path, *, policies: Mapping[str, PolicyPatch] | None = None
) -> AgentSpec:  # fmt: skip
    """The agent a file declares, its rules compiled. `policies` are those it may name.

    Raises BadAgentFile, BadRule or BadAction with file:line:column.
    """
    text = yamlfiles.read(path, BadAgentFile)
    return _checked(text, policies or {}, needs_reasoner=True)


def load_agents(
    paths: Iterable[str | Path], *, policies: Mapping[str, PolicyPatch] | None = None
) -> dict[str, AgentSpec]:
    """Every agent of these files, and of the *.yaml files in these directories, by name.

    A directory that is not there has no agents. Raises BadAgentFile, also for two of one name.
    """
    found: dict[str, AgentSpec] = {}
    homes: dict[str, Path] = {}
    for file in yamlfiles.listed(paths, BadAgentFile):
        spec = load_agent_file(file, policies=policies)
        if spec.agent in found:
            raise BadAgentFile(
                f"two files declare agent {spec.agent}", value=f"{homes[spec.agent]}, {file}",
                expected="one file an agent",
            )  # fmt: skip
        found[spec.agent], homes[spec.agent] = spec, file
    return found


def load_policies(paths: Iterable[str | Path]) -> dict[str, PolicyPatch]:
    """Every policy of these files and directories by its file's name. Raises BadPolicy."""
    found: dict[str, PolicyPatch] = {}
    for file in yamlfiles.listed(paths, BadPolicy):
        text = yamlfiles.read(file, BadPolicy)
        found[file.stem] = yamlfiles.record(PolicyPatch, text, BadPolicy)
    return found


def as_reasoner(found: object, what: str) -> Reasoner:
    """`found` itself, or the function that it is as a reasoner. Raises BadAgentFile."""
    if isinstance(found, ReasonerBase) or (hasattr(found, "select_action") and hasattr(found, "feedback")):
        return found
    if callable(found) and not isinstance(found, type):
        return FunctionReasoner(found)
    raise BadAgentFile(
        f"{what}: the reasoner is none", value=type(found).__name__,
        expected="a ReasonerBase, or a function of a session",
    )  # fmt: skip


def _imported(name: str, where: str) -> object:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise BadAgentFile(
            f"{where}: this reasoner cannot be imported: {exc}", value=name,
            expected="module:attribute of an installed module",
        ) from exc  # fmt: skip


def _checked(text: YamlText, policies: Mapping[str, PolicyPatch], *, needs_reasoner: bool) -> AgentSpec:
    data = text.data
    if not isinstance(data, dict):
        raise BadAgentFile(f"{text.where()} is not an object", value=data, expected="agent: name, reasoner: …")
    if isinstance(named := data.get("policy"), str):
        if named not in policies:
            yamlfiles.unknown(text, ("policy",), "names a policy that does not exist", named, policies, BadAgentFile)
        patch = policies[named].model_dump(mode="json", exclude_none=True)
        text = YamlText({**data, "policy": patch}, text.source, text.marks)
    elif "policy" not in data and "default" in policies:
        patch = policies["default"].model_dump(mode="json", exclude_none=True)
        text = YamlText({**data, "policy": patch}, text.source, text.marks)
    spec = yamlfiles.record(AgentSpec, text, BadAgentFile)
    try:
        check_permissions(spec.grants, wildcards=True)
    except BadPermission as exc:
        raise BadAgentFile(f"{text.where('grants')}: {exc.what}", value=exc.value, expected=exc.expected) from None
    if spec.limits is not None and spec.limits.key is not None:
        check_key(spec.limits.key, text.where("limits", "key"))
    for name, one in spec.schedules.items():
        try:
            following(one.cron, one.timezone, datetime(2026, 1, 1, tzinfo=UTC))
        except BadRule as exc:
            raise BadAgentFile(
                f"{text.where('schedules', name)}: {exc.what}", value=exc.value, expected=exc.expected
            ) from None
    if needs_reasoner:
        _attach(spec, text)
    return spec


def _attach(spec: AgentSpec, text: YamlText) -> None:
    if not (spec.chain and spec.reasoner == ReasonerSpec()):
        spec._make = reasoner_maker(spec.reasoner, text, ("reasoner",))
    spec._makes |= {name: reasoner_maker(one, text, ("reasoners", name)) for name, one in spec.reasoners.items()}


def _given(found: object, what: str) -> Make:
    made = as_reasoner(found, what)
    return lambda *_parts: made


# --- reasoners as files declare them


def reasoner_maker(spec: OneReasoner, text: YamlText, path: tuple[str | int, ...]) -> Make:
    """What makes this reasoner, once its process runs. Everything but Python code is read now.

    Raises BadAgentFile, BadRule, BadAction or BadPrompt, each with the place in `text`.
    """
    routes = spec.route if isinstance(spec, ReasonerSpec) else None
    given = [key for key in (*KINDS, "route") if getattr(spec, key, None) is not None]
    if len(given) != 1 and given != ["rules", "llm"]:
        raise BadAgentFile(
            f"{text.where(*path)}: a reasoner is one of several kinds", value=", ".join(given) or None,
            expected="one of rules, python, llm, policy, route, or rules and llm together",
        )  # fmt: skip
    if spec.veto and spec.llm is None:
        raise BadAgentFile(
            f"{text.where(*path, 'veto')}: only what a model chose can be vetoed", expected="llm beside it"
        )
    if routes is not None:
        return _route_maker(routes, text, (*path, "route"))
    if spec.python is not None:
        return _python_maker(spec.python, text.where(*path, "python"))
    if spec.policy is not None:
        learned = _learned(spec.policy, text, (*path, "policy"))
        return lambda *_parts: learned
    rules = None
    if spec.rules is not None:
        rules = RuleReasoner(
            spec.rules, source=text.where(*path, "rules"), where=lambda *more: text.where(*path, "rules", *more)
        )
        if spec.llm is None:
            return lambda *_parts: rules
    if spec.llm is None:
        raise AssertionError(given)
    model = LLMReasoner(spec.llm, folder=Path(text.source).parent, name=text.where(*path, "llm"))
    if rules is None and not spec.veto:
        return lambda *_parts: model
    vetoes = [_veto(one, text, (*path, "veto", number)) for number, one in enumerate(spec.veto)]
    hybrid = HybridReasoner(model, rules, vetoes)
    return lambda *_parts: hybrid


def _route_maker(routes: Sequence[RouteSpec], text: YamlText, path: tuple[str | int, ...]) -> Make:
    made = [
        (one.name, one.when and compiled(one.when, text.where(*path, number, "when")),
         reasoner_maker(one, text, (*path, number)))
        for number, one in enumerate(routes)
    ]  # fmt: skip
    return lambda *parts: ReasonerRouter([Route(name, when or None, make(*parts)) for name, when, make in made])


def _learned(spec: PolicySpec, text: YamlText, path: tuple[str | int, ...]) -> RLPolicyReasoner:
    taught: Json = {"weights": {}, "version": UNTAUGHT}
    if spec.file is not None:
        try:
            taught = jsontext.loads((Path(text.source).parent / spec.file).read_bytes(), what=spec.file)
        except (OSError, BadJson) as exc:
            raise BadAgentFile(
                f"{text.where(*path, 'file')}: a policy cannot be read: {exc}", value=spec.file
            ) from None
    if (
        not isinstance(taught, dict)
        or not isinstance(taught.get("weights"), dict)
        or not isinstance(taught.get("version"), str)
    ):
        raise BadAgentFile(f"{text.where(*path, 'file')}: this is no policy", value=spec.file,
                           expected="what 'agentmesh agents learn' prints")  # fmt: skip
    return RLPolicyReasoner(
        spec.choices, taught["weights"], version=taught["version"], explore=spec.explore,
        where=lambda *more: text.where(*path, "choices", *more),
    )  # fmt: skip


def _veto(spec: VetoSpec, text: YamlText, path: tuple[str | int, ...]) -> Veto:
    when = compile_expression(spec.when, source=text.where(*path, "when"), variables=(*VARIABLES, "action"))
    then = None if spec.then is None else read_action(spec.then, lambda *more: text.where(*path, "then", *more))
    return Veto(when, spec.why, then)


def _python_maker(name: str, where: str) -> Make:
    def make(*parts: Any) -> Reasoner:
        found = _imported(name, where)
        return as_reasoner(found(*parts) if isinstance(found, type) else found, where)

    return make
