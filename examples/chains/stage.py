"""What the examples stand on: one process that does all the work by hand, on a real database whose clock can be moved."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from agentmesh import Trace, define_agent
from agentmesh.coordination.heartbeat import Heart, here
from agentmesh.coordination.rescuer import Pace, Rescuer
from agentmesh.execution.callbacks import HANDLERS
from agentmesh.execution.tools import ToolRegistry, register_tool
from agentmesh.state import steering
from agentmesh.testing import hand_mesh, shift

HERE = Path(__file__).parent


class Stage:
    """An agent `shop` that follows a chain of this folder, beside agents of the example's own."""

    def __init__(self, url: str, home: Path) -> None:
        self._url, self._home, self._late_s = url, home, 0.0
        self._tools, self._others, self._callbacks = ToolRegistry(), [], dict(HANDLERS)
        self.tool = partial(register_tool, registry=self._tools)

    def agent(self, name: str, reasoner: Any = None, **keys: Any) -> None:
        """Another agent, that the chain may delegate to, from now on; `keys` are further ones of it."""
        made = define_agent(name, reasoner=reasoner, grants=["*"], **keys)
        self._others.append(made)
        if "mesh" in self.__dict__:
            self.mesh.registry.register(made)
            self.mesh.registry.announce(self.mesh.db)
            self._host()

    def run(self, chain: str, payload: dict[str, Any] | None = None, **keys: Any) -> Trace:
        """A trace of this chain, as far as it goes; `keys` are further ones of the agent."""
        names = [one.name for one in self._tools.list()]
        shop = define_agent("shop", chain=chain, tools=names, grants=["*"], **keys)
        agents = {one.agent: one for one in (shop, *self._others)}
        flags = {"agents.chains": [str(HERE)]}
        self.mesh, self._bells = hand_mesh(self._url, root=self._home, flags=flags, tools=self._tools, agents=agents)
        self.mesh.__dict__["doorbell"] = self._bells
        self._host()
        me = here(name="hand", queues=[], agents=[], tools=[], version="1", lease_s=10)
        heart = Heart(self.mesh.db, me, self.mesh.notes, beat_s=1, ring=self._bells.ring)
        self._rescuer = Rescuer(
            self.mesh.db, heart, self.mesh.notes, Pace(), ring=self._bells.ring, depths=lambda _: {}
        )
        return self.again(payload)

    def _host(self) -> None:
        """This process is known as the worker of all its agents, and stays alive however the clock is moved."""
        names = [one.spec.agent for one in self.mesh.registry.all()]
        self.mesh.db.once("UPDATE mesh.workers SET agents = %(names)s, lease_s = 1e9", {"names": names})

    def again(self, payload: dict[str, Any] | None = None, **options: Any) -> Trace:
        """Another trace of the same chain; `options` are those of dispatch."""
        trace = self.mesh.router.dispatch("work", "customer", "shop", "case-1", payload or {}, **options)
        self.go_on()
        return trace

    def go_on(self) -> None:
        """Everything is done that can be done now."""
        self._rescuer.tick()
        while self._bells.drain(self.mesh):
            self._rescuer.tick()

    def later(self, days: float = 0, hours: float = 0) -> None:
        """So much later, everything is done that can be done then."""
        self._late_s += days * 86_400 + hours * 3_600
        shift(self._url, self._late_s)
        self.go_on()

    def steer(self, order: str, trace: Trace, **more: Any) -> None:
        """pause, resume or cancel it, as `agentmesh pause` and its like do."""
        steered = getattr(steering, order)(self.mesh.db, tenant=self.mesh.tenant, trace_id=trace.id, by="ann", **more)
        self.mesh.doorbell.ring(steered.rings)
        self.go_on()

    def path(self, trace: Trace) -> list[str]:
        """The nodes it went through, in order; those that are no steps are passed unseen."""
        rows = self.mesh.db.read(
            "SELECT node FROM mesh.steps WHERE trace_id = %(id)s AND kind <> 'group' ORDER BY ordinal", {"id": trace.id}
        )
        return [row["node"] for row in rows if row["node"] != "start"]

    def calls(self, trace: Trace) -> list[dict[str, Any]]:
        """Its calls in order: tool, status, and how many attempts each took."""
        return self.mesh.db.read(
            "SELECT id, tool, status, (SELECT count(*) FROM mesh.attempts a WHERE a.call_id = c.id) AS attempts"
            " FROM mesh.calls c WHERE trace_id = %(id)s ORDER BY id", {"id": trace.id}
        )  # fmt: skip

    def children(self, trace: Trace) -> list[Trace]:
        """The traces it has sent, in order."""
        rows = self.mesh.db.read("SELECT id FROM mesh.traces WHERE parent_id = %(id)s ORDER BY id", {"id": trace.id})
        return [self.mesh.trace(row["id"]) for row in rows]

    def close(self) -> None:
        HANDLERS.clear()
        HANDLERS.update(self._callbacks)  # an example's own callbacks go with it
        if "mesh" in self.__dict__:
            self.mesh.close()
