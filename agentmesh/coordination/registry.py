"""The AgentRegistry: which agents this process hosts, and what it announces of them and of its tools."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from agentmesh.behavior.agents import AgentSpec
from agentmesh.behavior.declared import Desk, Models
from agentmesh.behavior.embedders import Embedders
from agentmesh.behavior.strategies import SessionBuilder
from agentmesh.coordination.timetable import Timetable
from agentmesh.errors import BadAgentFile, UnknownAgent
from agentmesh.execution import chain
from agentmesh.execution.chain import Known
from agentmesh.execution.executors import EXECUTORS
from agentmesh.execution.plan import BehaviorPlan, default_plan
from agentmesh.execution.tools import ToolRegistry
from agentmesh.execution.views import HostedAgent
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import grants_cover, origin_of
from agentmesh.state import announced


class AgentRegistry:
    """Agents by name, in one process; `announce` tells the mesh of them and of the tools."""

    def __init__(
        self, tools: ToolRegistry, chains: Mapping[str, YamlText] | None = None, *, desk: Desk | None = None,
        models: Models | None = None, embedders: Embedders | None = None,
    ) -> None:  # fmt: skip
        """`desk` and `models` are what reasoners that ask models are handed, `embedders` what memory is searched by."""
        self._tools, self._chains = tools, chains or {}
        self._desk, self._models, self._embedders = desk, models or Models(), embedders or Embedders()
        self._agents: dict[str, HostedAgent] = {}

    def register(self, spec: AgentSpec) -> HostedAgent:
        """From now on this process hosts the agent.

        Raises BadAgentFile for an executor or a chain that does not exist, BadChain for one that it cannot follow.
        """
        if spec.executor not in EXECUTORS:
            near = difflib.get_close_matches(spec.executor, EXECUTORS, n=1)
            hint = f" · did you mean {near[0]}?" if near else ""
            raise BadAgentFile(f"agent {spec.agent} names an executor that does not exist", value=spec.executor,
                               expected=f"one of {', '.join(sorted(EXECUTORS))}{hint}")  # fmt: skip
        spec = self._with_embedder(spec)
        reasoners = spec.make_reasoners(tool_registry=self._tools, desk=self._desk, models=self._models)
        reasoner = spec.make_reasoner(tool_registry=self._tools, desk=self._desk, models=self._models)
        _check_session(spec, reasoners)
        plan = self._plan(spec, reasoners)
        hosted = HostedAgent(spec, plan, reasoner, reasoners)
        self._agents[spec.agent] = hosted
        return hosted

    def _with_embedder(self, spec: AgentSpec) -> AgentSpec:
        """The same with the embedder it is to have, and all that is known of it."""
        chosen = spec.memory.embedder
        where = f"agent {spec.agent}: memory"
        found = self._embedders.default if chosen is None else self._embedders.settled(chosen, where)
        if found is None and spec.session.nearest is not None:
            raise BadAgentFile(f"agent {spec.agent} wants what is nearest, and nothing makes vectors",
                               value=spec.session.nearest, expected="memory: {embedder: …}, or [embeddings]")  # fmt: skip
        if found == chosen:
            return spec
        return spec.model_copy(update={"memory": spec.memory.model_copy(update={"embedder": found})})

    def _plan(self, spec: AgentSpec, reasoners: Collection[str]) -> BehaviorPlan:
        known = Known(tools=spec.tools, reasoners=reasoners, chains=self._chains, signature=self._tools.signature)
        if spec.chain is None:
            return default_plan()
        if spec.own_chain is not None:
            return chain.from_values(spec.own_chain, known)
        if spec.chain not in self._chains:
            near = difflib.get_close_matches(spec.chain, self._chains, n=1)
            hint = f" · did you mean {near[0]}?" if near else ""
            raise BadAgentFile(f"agent {spec.agent} names a chain that does not exist", value=spec.chain,
                               expected=f"one of {', '.join(sorted(self._chains)) or 'none'}{hint}")  # fmt: skip
        return chain.read(self._chains[spec.chain], known)

    def get(self, name: str) -> HostedAgent:
        """Raises UnknownAgent."""
        hosted = self._agents.get(name)
        if hosted is None:
            raise UnknownAgent("this process hosts no such agent", value=name,
                               expected=f"one of {', '.join(sorted(self._agents)) or 'none'}")  # fmt: skip
        return hosted

    def all(self) -> list[HostedAgent]:
        return [self._agents[name] for name in sorted(self._agents)]

    def accepts(self, spec: AgentSpec) -> tuple[str, ...]:
        """The permissions a trace of this agent may hold, without wildcards: what its grants cover of its tools'
        needs, and its grants that name one permission."""
        needs = {need for name in spec.tools if name in self._tools for need in self._tools.get(name).needs}
        covered = {need for need in needs if grants_cover(spec.grants, need)}
        return tuple(sorted(covered | {grant for grant in spec.grants if not grant.endswith("*")}))

    def announce(self, db: Database, tenants: Iterable[str] = (), *, by: str = "mesh") -> None:
        """Afterwards producers find these agents, and routers these tools, in every tenant they serve; `by` says so."""
        everywhere = {tenant for one in self.all() for tenant in one.spec.tenants} | set(tenants)
        for hosted in self.all():
            spec = hosted.spec
            for tenant in spec.tenants:
                for plan in hosted.plan.all():
                    announced.keep_plan(db, tenant_id=tenant, plan_hash=plan.hash, chain=plan.chain, body=plan.kept)
                announced.announce_agent(db, {
                    "tenant_id": tenant, "id": spec.agent, "version": spec.version, "queue": spec.queue,
                    "plan_hash": hosted.plan.hash, "intents": None if spec.intents is None else list(spec.intents),
                    "accepts": list(self.accepts(spec)),
                    "spec": {"description": spec.description, "tools": list(spec.tools), "executor": spec.executor,
                             "capabilities": list(spec.capabilities),
                             "limits": spec.limits.announced() if spec.limits else None,
                             **({"memory": memory} if (memory := spec.memory.announced()) else {}),
                             **({"webhook": origin_of(hook.url)} if (hook := spec.policy.webhook) else {})},
                }, by=by)  # fmt: skip
        for tool in self._tools.list():
            for tenant in sorted(everywhere):
                announced.announce_tool(db, {
                    "tenant_id": tenant, "id": tool.name, "version": tool.version, "queue": tool.queue,
                    "needs": list(tool.needs), "effect": tool.effect, "spec": tool.spec(),
                }, by=by)  # fmt: skip

    def declare(self, timetable: Timetable) -> None:
        """Afterwards the schedules of these agents' files stand, and no others of theirs."""
        for spec in (one.spec for one in self.all()):
            for tenant in spec.tenants:
                timetable.declare(tenant, spec.agent, {name: one.row() for name, one in spec.schedules.items()})

    def health(self, db: Database, tenant_id: str) -> list[Row]:
        """Every announced agent with the live workers that host it, by their beats."""
        return announced.agents(db, tenant_id)


def _check_session(spec: AgentSpec, reasoners: Collection[str]) -> None:
    SessionBuilder().check(spec.session, spec.agent)
    summary = spec.session.summary
    if summary is not None and summary.reasoner not in reasoners:
        raise BadAgentFile(f"agent {spec.agent} has no reasoner that could sum its contexts up", value=summary.reasoner,
                           expected=f"one of its reasoners: {', '.join(sorted(reasoners)) or 'it has none'}")  # fmt: skip
