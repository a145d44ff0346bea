"""Builds one process's parts, by hand: settings in, a Mesh out. Nothing connects before it is first used.

A producer uses `mesh.router`; a worker process `mesh.work(…)`. What must travel against the layers (rings, claims,
signatures) is handed over here as functions.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import structlog

import agentmesh
from agentmesh.behavior.agents import AgentSpec, load_agents, load_policies
from agentmesh.behavior.declared import Models
from agentmesh.behavior.embedders import Embedders, EmbedderSpec
from agentmesh.behavior.router import BIRRouter
from agentmesh.behavior.strategies import SessionBuilder
from agentmesh.communication.bootsteps import add_life, on_boot, run_worker
from agentmesh.communication.broker import Broker, make_app
from agentmesh.communication.client import DirectClient, Trace
from agentmesh.communication.doorbell import Doorbell
from agentmesh.communication.hardening import harden
from agentmesh.communication.keys import PublicKey, SigningKey, signing_key
from agentmesh.communication.server import ACPServer
from agentmesh.communication.tasks import register_tasks, task_names
from agentmesh.coordination.alone import Ends, LoneProcesses, pipes, serve
from agentmesh.coordination.anchors import Anchors
from agentmesh.coordination.container import AgentRuntime
from agentmesh.coordination.controller import AgentController
from agentmesh.coordination.engine import BehaviorChainEngine
from agentmesh.coordination.forks import Forks
from agentmesh.coordination.heartbeat import Heart, here
from agentmesh.coordination.indexer import Indexer
from agentmesh.coordination.lifecycle import AgentLifecycle
from agentmesh.coordination.migrations import Migrations
from agentmesh.coordination.notes import Notes
from agentmesh.coordination.people import People
from agentmesh.coordination.registry import AgentRegistry
from agentmesh.coordination.rescuer import Pace, Rescuer
from agentmesh.coordination.scheduler import Scheduler
from agentmesh.coordination.stuck import Stuck
from agentmesh.coordination.timetable import Timetable
from agentmesh.errors import BadToolFile, NoSigningKey, PluginRefused, UnknownPlan
from agentmesh.execution import chain
from agentmesh.execution.answers import Answers
from agentmesh.execution.callbacks import CallbackHandler
from agentmesh.execution.errands import Asking
from agentmesh.execution.executors import EXECUTORS
from agentmesh.execution.plan import BehaviorPlan, read_plan
from agentmesh.execution.router import ToolRouter
from agentmesh.execution.runner import Alone, ToolRunner
from agentmesh.execution.tools import TOOLS, ToolRegistry
from agentmesh.execution.views import Parts
from agentmesh.infrastructure import migrate, yamlfiles
from agentmesh.infrastructure.counts import COUNTS
from agentmesh.infrastructure.cron import following
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.embedding import Embedder
from agentmesh.infrastructure.logging import configure, name_process, redact
from agentmesh.infrastructure.secrets import secret
from agentmesh.infrastructure.settings import Settings
from agentmesh.infrastructure.settings import load as load_settings
from agentmesh.observation.dumps import Dumps
from agentmesh.records import Ring
from agentmesh.state import announced, dispatch, traces
from agentmesh.state.audit import AuditPipeline, Refusals
from agentmesh.state.blobs import BlobStore
from agentmesh.state.contexts import ContextBinder, SessionManager
from agentmesh.state.events import TraceWriter
from agentmesh.state.keys import KeyTable
from agentmesh.state.leases import Worker
from agentmesh.state.memory import MemoryEngine

if TYPE_CHECKING:
    from agentmesh.console.gateway import ACPGateway

if TYPE_CHECKING:
    from agentmesh.coordination.courier import Courier

log = structlog.get_logger("agentmesh")

Kind = Literal["agents", "tools", "all"]
PLUGINS = "agentmesh.plugins"
TOOLS_FRESH_S = 10.0


def now_s() -> int:
    """Unix seconds, for what other systems compare with their own clocks: envelopes, tokens."""
    return int(time.time())  # noqa: TID251 - the one wall clock, at the edge


class Keys:
    """The table of keys as envelopes ask for it."""

    def __init__(self, table: KeyTable) -> None:
        self._table = table
        self._made: dict[str, tuple[Row, PublicKey]] = {}

    def get(self, kid: str) -> PublicKey | None:
        row = self._table.row(kid)
        if row is None:
            return None
        known = self._made.get(kid)
        if known is None or known[0] is not row:
            known = self._made[kid] = (row, _public(row))
        return known[1]


def _public(row: Row) -> PublicKey:
    return PublicKey(
        row["kid"], row["tenant_id"], bytes(row["public"]), row["owner"], tuple(row["grants"]), row["registered_at"],
        row["revoked_at"],
    )  # fmt: skip


class Mesh:
    """The parts of one process. Every part is made when it is first used."""

    def __init__(
        self, settings: Settings, *, tools: ToolRegistry | None = None, agents: Mapping[str, AgentSpec] | None = None,
        notes: Notes | None = None, root: Path | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.tools = tools or TOOLS
        self.notes = notes or Notes()
        self._given = agents
        self._root = root or Path.cwd()
        self._threads = 1
        self._loaded = False
        self._lone: LoneProcesses | None = None
        self.tenant = settings.mesh.tenant

    # --- what it stands on ------------------------------------------------------------------------------------------

    @property
    def database_url(self) -> str:
        """Where the rows are: as configured, else the embedded PostgreSQL under mesh.home, which must be running."""
        given = self.settings.database.url
        return given.get_secret_value() if given is not None else self.embedded.url()

    @cached_property
    def embedded(self) -> Any:
        from agentmesh.infrastructure.postgres import EmbeddedPostgres, choose_home  # noqa: PLC0415

        home, said = choose_home(self._root / self.settings.mesh.home)
        if said:
            log.info(said)
        return EmbeddedPostgres(home)

    @property
    def broker_url(self) -> str:
        given = self.settings.broker.url
        return given.get_secret_value() if given is not None else self.database_url

    @cached_property
    def db(self) -> Database:
        section = self.settings.database
        size = max(section.pool_size, self._threads)  # an overflow connection is closed after each use
        return Database(self.database_url, pool_size=size, max_overflow=section.max_overflow)

    @cached_property
    def app(self) -> Any:
        return make_app(broker_url=self.broker_url, backend="agentmesh.communication.join:JoinBackend")

    @cached_property
    def broker(self) -> Broker:
        return Broker(self.app)

    @cached_property
    def doorbell(self) -> Doorbell:
        return Doorbell(self.broker, self.db)

    @cached_property
    def blobs(self) -> BlobStore:
        limits = self.settings.limits
        return BlobStore(self.db, inline_bytes=limits.inline_payload, max_bytes=limits.blob)

    # --- keys -------------------------------------------------------------------------------------------------------

    @cached_property
    def key_table(self) -> KeyTable:
        return KeyTable(self.db)

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.key_table)

    @cached_property
    def key(self) -> SigningKey:
        """This mesh's signing key; in development it is made, and registered with every grant, on first use.

        Raises NoSigningKey when production has none, or when it is not registered.
        """
        return self._key_of(self.tenant)

    def _key_of(self, tenant: str) -> SigningKey:
        """The key this process signs with for a tenant; `{tenant}` in keys.private is its name."""
        settings = self.settings
        path = settings.keys.private
        if path is None and settings.mesh.environment == "development":
            name = "private.pem" if tenant == self.tenant else f"tenant-{tenant}.pem"
            path = self._root / settings.mesh.home / "keys" / name
        elif path is not None and "{tenant}" in str(path):
            path = Path(str(path).replace("{tenant}", tenant))
        key = signing_key(path, environment=settings.mesh.environment, tenant=tenant)
        row = self.key_table.row(key.kid)
        if row is not None and row["tenant_id"] != tenant:
            raise NoSigningKey("this signing key is registered for another tenant", value=key.kid,
                               expected=f"a key of tenant {tenant}; keys.private may say {{tenant}}")  # fmt: skip
        if row is None:
            if settings.mesh.environment == "production":
                raise NoSigningKey("this signing key is not registered", value=key.kid,
                                   expected="a key that 'agentmesh keys new' registered")  # fmt: skip
            self.key_table.register(
                kid=key.kid, tenant_id=key.tenant, owner=settings.mesh.name, public=key.public, grants=["*"]
            )
        return key

    # --- producing --------------------------------------------------------------------------------------------------

    @cached_property
    def client(self) -> DirectClient:
        return self._client_with(self.key)

    def client_of(self, tenant: str) -> DirectClient:
        """The client of a tenant that a gateway serves. Raises NoSigningKey where this process has no key for it."""
        if tenant == self.tenant:
            return self.client
        made = self._clients.get(tenant)
        if made is None:
            made = self._clients[tenant] = self._client_with(self._key_of(tenant))
        return made

    @cached_property
    def _clients(self) -> dict[str, DirectClient]:
        return {}

    def _client_with(self, key: SigningKey) -> DirectClient:
        row = self.key_table.row(key.kid)
        return DirectClient(
            self.db, key=key, grants=row["grants"] if row else (), mesh=self.settings.mesh.name,
            ring=self.doorbell.ring, admit=self.scheduler.sent, blobs=self.blobs, now_s=now_s,
            backlog=self.settings.limits.backlog,
        )  # fmt: skip

    @cached_property
    def trace_writer(self) -> TraceWriter:
        return TraceWriter(self.db, tenant_id=self.tenant)

    @cached_property
    def router(self) -> BIRRouter:
        return BIRRouter(self.client, self.trace_writer)

    def trace(self, trace_id: Any) -> Trace:
        return Trace(trace_id, self.tenant, self.db, self.blobs)

    def memory(self, context_id: str, trace_id: UUID | None = None) -> MemoryEngine:
        """What a context remembers, and one trace in it."""
        return MemoryEngine(
            self.db, tenant_id=self.tenant, context_id=context_id, trace_id=trace_id, blobs=self.blobs,
            embedders=_Later(lambda: self.embedders),
        )  # fmt: skip

    def indexers(self) -> list[Indexer]:
        """What embeds for the agents of this process: one for each model."""
        specs = {one.spec.memory.embedder for one in self.registry.all()} | {self.embedders.default}
        by_model = {one.vectors: one for one in specs if one is not None}
        return [Indexer(self.db, self.blobs, name, partial(self.embedders.get, one)) for name, one in by_model.items()]

    def indexer(self, model: str, spec: dict[str, Any]) -> Indexer:
        """What embeds by one model, as an agent announced it."""
        return Indexer(self.db, self.blobs, model, partial(self.embedders.made, spec))

    @cached_property
    def contexts(self) -> ContextBinder:
        return ContextBinder(self.db, tenant_id=self.tenant)

    # --- over HTTP --------------------------------------------------------------------------------------------------

    @property
    def rates_url(self) -> str | None:
        """The Redis where all gateways count; None: each counts alone."""
        given = self.settings.gateway.rates_url
        url = given.get_secret_value() if given else self.broker_url
        return url if url.startswith("redis") else None

    @cached_property
    def gateway(self) -> ACPGateway:
        """The ASGI application: intents, traces and orders over HTTP."""
        from agentmesh.console.auth import Authenticator  # noqa: PLC0415 - FastAPI, only where it is used
        from agentmesh.console.gateway import ACPGateway  # noqa: PLC0415
        from agentmesh.console.parts import Parts as Doors  # noqa: PLC0415
        from agentmesh.console.rates import Proxies, Rates, Streams  # noqa: PLC0415

        section, name = self.settings.gateway, self.settings.mesh.name
        return ACPGateway(Doors(
            section=section, mesh=name, db=self.db, blobs=self.blobs, keys=self.keys, client_of=self.client_of,
            ring=self.doorbell.ring, answers=self.answers, now_s=now_s,
            people_of=self.people_of, forks_of=self.forks_of, timetable=self.timetable,
            lifecycle_of=lambda tenant: AgentLifecycle(self.db, tenant=tenant),
            audit_of=lambda tenant: AuditPipeline(self.db, tenant=tenant), dumps_of=self.dumps_of,
            authenticator=Authenticator(self.key_table, section, tenant=self.tenant, now_s=now_s, root=self._root),
            rates=Rates(section, self.rates_url, mesh=name),
            streams=Streams(section), proxies=Proxies(section.proxies), cursor_key=self.key.derive("cursors"),
        ))  # fmt: skip

    @cached_property
    def scheduler(self) -> Scheduler:
        return Scheduler(self.db, ring=self.doorbell.ring)

    @cached_property
    def timetable(self) -> Timetable:
        return Timetable(self.db, client_of=self.client_of)

    @cached_property
    def lifecycle(self) -> AgentLifecycle:
        return AgentLifecycle(self.db, tenant=self.tenant)

    @cached_property
    def audit(self) -> AuditPipeline:
        return AuditPipeline(self.db, tenant=self.tenant)

    @property
    def anchors_path(self) -> Path | None:
        given = self.settings.audit.anchors
        return None if given is None else self._root / given

    @cached_property
    def anchors(self) -> Anchors | None:
        """What signs the audit's heads and keeps them outside; None where the settings name no file."""
        path, section = self.anchors_path, self.settings.audit
        if path is None:
            return None
        name = self.settings.mesh.name
        return Anchors(self.db, path, key=lambda: self.key, mesh=name, every_s=section.anchor_every)

    @cached_property
    def people(self) -> People:
        return self.people_of(self.tenant)

    def people_of(self, tenant: str) -> People:
        return People(self.db, self.blobs, tenant=tenant, plan=self._pinned, ring=self.doorbell.ring)

    @cached_property
    def migrations(self) -> Migrations:
        return Migrations(self.db, tenant=self.tenant, plan=self._pinned)

    @cached_property
    def dumps(self) -> Dumps:
        return self.dumps_of(self.tenant)

    def dumps_of(self, tenant: str) -> Dumps:
        return Dumps(lambda: self.parts, tenant=tenant)

    @cached_property
    def engine(self) -> BehaviorChainEngine:
        return BehaviorChainEngine(self.db, self.blobs, self.client, tenant=self.tenant, ring=self.doorbell.ring)

    @cached_property
    def forks(self) -> Forks:
        return self.forks_of(self.tenant)

    def forks_of(self, tenant: str) -> Forks:
        """Raises NoSigningKey where this process has no key for the tenant."""
        client = self.client_of(tenant)
        return Forks(self.db, self.blobs, client, tenant=tenant, plan=self._pinned, ring=self.doorbell.ring)

    # --- working ----------------------------------------------------------------------------------------------------

    @cached_property
    def registry(self) -> AgentRegistry:
        """The agents of this process, with the user's modules and listed plugins imported before them."""
        self.load_code()
        section, llm = self.settings.agents, self.settings.llm
        registry = AgentRegistry(
            self.tools, chain.load([self._root / one for one in section.chains]), desk=self.tool_router,
            models=Models(llm.base_url, llm.model, llm.key, secret), embedders=self.embedders,
        )  # fmt: skip
        agents = self._given
        if agents is None:
            policies = load_policies([self._root / one for one in section.policies])
            agents = load_agents([self._root / one for one in section.paths], policies=policies)
        for spec in agents.values():
            registry.register(spec)
        return registry

    @cached_property
    def embedders(self) -> Embedders:
        """What memory is searched by, with the user's modules imported before."""
        self.load_code()
        section, llm = self.settings.embeddings, self.settings.llm
        spec = EmbedderSpec(
            name=section.embedder, model=section.model, base_url=section.base_url, key=section.key,
            dimensions=section.dimensions,
        )  # fmt: skip
        chosen = section.embedder is not None or section.model is not None
        return Embedders(spec if chosen else None, Models(llm.base_url, llm.model, llm.key, secret))

    def load_code(self) -> None:
        """Import what the settings list, and nothing else: the user's modules, plugins at their pinned version, and the
        tools that files declare; once."""
        if self._loaded:
            return
        for module in self.settings.tools.imports:
            importlib.import_module(module)
        for listed in self.settings.tools.plugins:
            _load_plugin(listed)
        files = yamlfiles.listed([self._root / one for one in self.settings.tools.paths], BadToolFile)
        if files:
            from agentmesh.execution.toolfiles import load_tools  # noqa: PLC0415 - an HTTP client, 0.2 s

            for tool in load_tools(files, secret):
                self.tools.register(tool)
        self._loaded = True

    @cached_property
    def tool_router(self) -> ToolRouter:
        return ToolRouter(self.tools, _Announced(lambda: self.db), fan_out=self.settings.limits.fan_out)

    @property
    def _alone(self) -> Alone | None:
        return None if self._lone is None else self._lone.hand

    @cached_property
    def runner(self) -> ToolRunner:
        return ToolRunner(
            self.db, self.tools, self.blobs, note=self.notes.note, holder=self.notes.holder,
            alone=self._alone, answer_at=self.answers.url, asks=lambda: Asking(self.parts),
        )  # fmt: skip

    @cached_property
    def answers(self) -> Answers:
        section = self.settings.gateway
        return Answers(
            self.db, self.blobs, announced=_Announced(lambda: self.db), ring=self.doorbell.ring, secrets=secret,
            base_url=section.url or f"http://{section.address}",
        )  # fmt: skip

    @cached_property
    def parts(self) -> Parts:
        limits = self.settings.limits
        return Parts(
            db=self.db, router=self.tool_router, callback=CallbackHandler(), builder=SessionBuilder(),
            sessions=SessionManager(self.db, self.blobs), blobs=self.blobs, ring=self.doorbell.ring, chord=self.doorbell.chord,
            sent=self.scheduler.sent, ended=self.scheduler.ended,
            delegate=lambda held, verdict: self.client.child(held, verdict, depth_limit=limits.delegation_depth),
            child=self.client.send_child,
            depths=(limits.delegation_depth, limits.chain_depth), max_steps=limits.steps, plan=self._pinned,
            moment=lambda asked: following(asked["cron"], asked["timezone"], traces.now(self.db)),
            pool=ThreadPoolExecutor(self.settings.worker.agents_concurrency, thread_name_prefix="inline"),
            embedder=self.embedders.get, redact=redact, overrun=self.notes.overrun,
        )  # fmt: skip

    def _pinned(self, tenant_id: str, plan_hash: str) -> BehaviorPlan:
        known = self._plans.get(plan_hash)
        if known is None:
            body = announced.plan(self.db, tenant_id, plan_hash)
            if body is None:
                raise UnknownPlan("the plan that a trace follows is not kept", value=plan_hash)
            known = self._plans[plan_hash] = read_plan(body)
        return known

    @cached_property
    def _plans(self) -> dict[str, BehaviorPlan]:
        return {}

    def runtime(self, agent: str) -> AgentRuntime:
        """The runtime of a hosted agent. Raises UnknownAgent."""
        made = self._runtimes.get(agent)
        if made is None:
            hosted = self.registry.get(agent)
            executor = EXECUTORS[hosted.spec.executor](hosted, self.parts)
            made = self._runtimes[agent] = AgentRuntime(
                hosted, executor, self.db, note=self.notes.note, holder=self.notes.holder, alone=self._alone
            )
        return made

    @cached_property
    def _runtimes(self) -> dict[str, AgentRuntime]:
        return {}

    @cached_property
    def controller(self) -> AgentController:
        return AgentController(self.runtime, self.runner, stale=self._require_row)

    def _require_row(self, ring: Ring) -> None:
        """An envelope on a queue makes no row: where there is none, it is refused like one that is not believed."""
        if ring.envelope is not None and not dispatch.stands(self.db, ring.id):
            self.refusals("row", {"queue": ring.queue, "row": str(ring.id)})

    @cached_property
    def refusals(self) -> Refusals:
        return Refusals(lambda: self.audit)

    def server(self, *, refused: Callable[[str, dict[str, Any]], None] | None = None) -> ACPServer:
        return ACPServer(
            keys=self.keys, mesh=self.settings.mesh.name, now_s=now_s, refused=refused or self.refusals,
            handle=self.controller.run_once,
        )  # fmt: skip

    def register_tasks(self, *, agents: bool = True, tools: bool = True) -> dict[str, str]:
        """Give the app its tasks; the queue of each. An inline or transactional call of an agent's own queue runs
        with the agent's task."""
        queues = self._tasks(agents=agents, tools=tools)
        register_tasks(self.app, server=self.server(), queues=queues, ring=self.doorbell.ring)
        return queues

    def _tasks(self, *, agents: bool, tools: bool) -> dict[str, str]:
        known = self.registry.all()  # which loads the user's code
        hosted = [(one.spec.agent, one.spec.queue) for one in known] if agents else []
        own = [(one.name, one.queue) for one in self.tools.list()] if tools else []
        return task_names(hosted, own)

    def prepare_worker(self, kind: Kind, *, name: str, pool: str, concurrency: int) -> list[str]:
        """Make this process a worker for agents, tools or both: announced, hardened, with a heart and a rescuer.

        Returns the queues to consume. In a lone process it does not return: that one serves its worker, and ends with
        it. Raises DatabaseNotMigrated, DatabaseUnreachable, or what agent files raise.
        """
        name_process(worker=name)
        hosted = self.registry  # the user's code is loaded by now, and nothing is connected
        ends = pipes(os.environ)
        if ends is not None:
            self._serve_alone(name, ends)
            raise SystemExit(0)
        lone = self._lone = LoneProcesses(silence_s=2 * self.settings.lease.lease)
        lone.keep_warm(lambda ends: self._serve_alone(name, ends))
        self._threads = 1 if pool == "prefork" else concurrency
        self.require_migrated()
        if pool == "prefork":
            self.notes = Notes(children=concurrency)
        queues = self.register_tasks(agents=kind != "tools", tools=kind != "agents")
        hosted.announce(self.db, [self.tenant], by=f"worker:{name}")
        if kind != "tools":
            hosted.declare(self.timetable)
        harden(self.app)
        me = here(
            name=name, queues=sorted(set(queues.values())), lease_s=self.pace.lease_s, version=agentmesh.__version__,
            agents=[one.removeprefix("agent.") for one in queues if one.startswith("agent.")],
            tools=[one.removeprefix("tool.") for one in queues if one.startswith("tool.")],
        )  # fmt: skip
        worker = self.settings.worker
        stuck = Stuck(self.notes, grace_s=worker.grace, threads=concurrency)
        life = _Life(self, me, lone, stuck, hosts=kind != "tools")
        stuck.full = add_life(
            self.app, start=life.start, stop=life.stop, child=self.become_child, spent=stuck.nothing_else,
            drain_s=worker.drain,
        )  # fmt: skip
        return sorted(set(queues.values()))

    @property
    def pace(self) -> Pace:
        section = self.settings.lease
        return Pace(
            section.lease, section.beat, section.rescue, section.ring_again, section.ring_again_cap,
            self.settings.limits.no_worker_after,
        )  # fmt: skip

    def _serve_alone(self, name: str, ends: Ends) -> None:
        """Be a lone process of the worker of this name, until it is gone."""
        name_process(worker=f"{name}-alone")
        self.notes, self._lone = Notes(), None
        pace = self.pace
        me = here(
            name=f"{name}-alone", queues=(), agents=(), tools=(), version=agentmesh.__version__, lease_s=pace.lease_s
        )
        heart = Heart(
            self.db.alone(deadline_s=pace.lease_s / 4), me, self.notes, beat_s=pace.beat_s, ring=self.doorbell.ring
        )
        heart.start()
        try:
            serve(
                ends,
                lambda ring: self.doorbell.ring(self.controller.run_once(ring)),
                ours=heart.holds,
                look_s=pace.beat_s,
            )
        finally:
            heart.stop()
            self.close()

    def work(
        self, kind: Kind, *, name: str | None = None, pool: str | None = None, concurrency: int | None = None
    ) -> int:
        """Be a worker until told to stop; Celery's exit code."""
        section = self.settings.worker
        pool = pool or (section.tools_pool if kind == "tools" else section.agents_pool)
        concurrency = concurrency or (section.tools_concurrency if kind == "tools" else section.agents_concurrency)
        name = name or f"{kind}-{os.getpid()}"
        queues = self.prepare_worker(kind, name=name, pool=pool, concurrency=concurrency)
        return run_worker(self.app, name=name, queues=queues, pool=pool, concurrency=concurrency)

    def worker_app(self, kind: Kind) -> Any:
        """The app for `celery -A … worker`, whose workers are what `work` would be. Nothing connects before one boots."""
        section, log_section = self.settings.worker, self.settings.log
        tasks = self._tasks(agents=kind != "tools", tools=kind != "agents")

        def prepare(name: str, pool: str, concurrency: int) -> None:
            configure(level=log_section.level, format=log_section.format)
            self.prepare_worker(kind, name=name, pool=pool, concurrency=concurrency)

        on_boot(
            self.app, queues=sorted(set(tasks.values())), prepare=prepare,
            pool=section.tools_pool if kind == "tools" else section.agents_pool,
            at_once=section.tools_concurrency if kind == "tools" else section.agents_concurrency,
        )  # fmt: skip
        return self.app

    def become_child(self, number: int) -> None:
        """In a prefork child: its own connections, and its notes where the parent sees them."""
        self.after_fork()
        if self._lone is not None:
            self._lone.after_fork()
        self.notes.become_child(number)
        COUNTS.become_child(number)

    # --- its life ---------------------------------------------------------------------------------------------------

    def require_migrated(self) -> None:
        """Raises DatabaseNotMigrated, or DatabaseUnreachable."""
        migrate.require(self.database_url)

    def after_fork(self) -> None:
        """In a child: forget the parent's connections and threads."""
        self.db.after_fork()
        self.__dict__.pop("parts", None)
        self.__dict__.pop("_runtimes", None)

    def close(self) -> None:
        """Afterwards this process holds no connection of ours."""
        if "broker" in self.__dict__:
            self.broker.close()
        if "parts" in self.__dict__:
            self.parts.pool.shutdown(wait=False, cancel_futures=True)
        if "db" in self.__dict__:
            self.db.close()


class _Life:
    """Heart and rescuer of one worker process, from its first beat to its leaving."""

    def __init__(self, mesh: Mesh, me: Worker, lone: LoneProcesses, stuck: Stuck, *, hosts: bool) -> None:
        self._lone, pace = lone, mesh.pace
        patience_s = pace.lease_s / 4
        self.heart = Heart(
            mesh.db.alone(deadline_s=patience_s),
            me,
            mesh.notes,
            beat_s=pace.beat_s,
            ring=mesh.doorbell.ring,
            stuck=stuck,
        )
        self.rescuer = Rescuer(
            mesh.db.alone(deadline_s=patience_s), self.heart, mesh.notes, pace, ring=mesh.doorbell.ring,
            depths=mesh.broker.depths, also=[*_hosts(mesh)] if hosts else (), again=mesh.doorbell.ring_again,
        )  # fmt: skip
        self.courier = _courier(mesh, lambda: self.rescuer.leads)
        self.indexers = mesh.indexers() if hosts else []

    def start(self) -> None:
        self.heart.start()
        self.rescuer.start()
        self.courier.start()

        for one in self.indexers:
            one.start()

    def stop(self) -> None:
        for one in self.indexers:
            one.stop()
        self._lone.close()
        self.courier.stop()
        self.rescuer.stop()
        self.heart.stop()


def _hosts(mesh: Mesh) -> Iterator[Callable[[], None]]:
    """What every agent worker looks at, for what tool workers have no key for."""
    yield mesh.timetable.fire
    if mesh.anchors is not None:
        yield mesh.anchors.look


def _courier(mesh: Mesh, leads: Callable[[], bool]) -> Courier:
    from agentmesh.coordination.courier import Courier, Manner  # noqa: PLC0415 - an HTTP client, for workers alone
    from agentmesh.infrastructure.outbound import Reach  # noqa: PLC0415

    hooks = mesh.settings.webhooks
    manner = Manner(Reach(ports=hooks.ports, private=hooks.private), secret, now_s, within_s=hooks.timeout)
    return Courier(mesh.db, mesh.blobs, manner, leads=leads)


class _Later:
    """The embedders of a process, once somebody searches by meaning: the user's code is imported for them."""

    def __init__(self, embedders: Callable[[], Embedders]) -> None:
        self._embedders = embedders

    def announced(self) -> dict[str, Any] | None:
        return self._embedders().announced()

    def made(self, spec: dict[str, Any]) -> Embedder:
        return self._embedders().made(spec)


class _Announced:
    """The tools other workers announced, by name; remembered for a few seconds."""

    def __init__(self, db: Callable[[], Database]) -> None:
        self._db = db
        self._seen: dict[str, tuple[float, dict[str, Row]]] = {}

    def __call__(self, tenant_id: str) -> dict[str, Row]:
        at, rows = self._seen.get(tenant_id, (float("-inf"), {}))
        if time.monotonic() - at > TOOLS_FRESH_S:
            rows = {row["id"]: row for row in announced.tools(self._db(), tenant_id)}
            self._seen[tenant_id] = (time.monotonic(), rows)
        return rows


def _load_plugin(listed: str) -> None:
    """Import the entry points of one distribution, if it is installed at exactly the listed version."""
    name, _, version = listed.partition("==")
    try:
        installed = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise PluginRefused("a listed plugin is not installed", value=listed) from None
    if not version or installed.version != version:
        raise PluginRefused(
            "a listed plugin has another version", value=f"{name}=={installed.version}", expected=listed
        )
    for point in installed.entry_points.select(group=PLUGINS):
        point.load()


def build(settings: Settings | None = None, **parts: Any) -> Mesh:
    """The parts of this process. `settings` None: as `settings.load()` finds them."""
    return Mesh(settings or load_settings(), **parts)


def embedded_started(mesh: Mesh) -> bool:
    """Start or adopt the embedded PostgreSQL of this mesh where it is the configured one; True when this started it."""
    return mesh.settings.database.url is None and bool(mesh.embedded.start())


__all__ = ["Mesh", "Ring", "build", "embedded_started", "now_s"]
