"""What a simulation is given to do: agents and tools that do as the intent's payload tells them.

Everything follows from the seed and from what a call can know of itself (its attempt), never from who runs it when.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from agentmesh.behavior.agents import AgentSpec, define_agent
from agentmesh.errors import Permanent
from agentmesh.execution.callbacks import HANDLERS, register_callback
from agentmesh.execution.tools import ToolContext, ToolRegistry, register_tool
from agentmesh.records import AgentCall, Backoff
from tests.simulation import chains

AGENTS = {"alpha": "sequential", "beta": "parallel"}
LEAVES = ("work", "work", "keyed", "once", "booked", "narrow", "ask")
TIMEOUT_S = 4.0
SOON = Backoff(base_s=1.0, cap_s=4.0)


@dataclass(frozen=True, slots=True)
class Job:
    """One intent, and how it is submitted: by so many producers at once under one key."""

    number: int
    agent: str
    context: str
    payload: dict[str, Any]
    policy: dict[str, Any]
    at: float
    key: str | None = None
    producers: int = 1
    delay: float | None = None
    priority: int = 5


@dataclass(slots=True)
class Moods:
    """How often each scripted reasoner and callback has been asked already: they fail so often, then do their work."""

    asked: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def fails(self, what: str, trace: str, iteration: int, times: int) -> bool:
        seen = self.asked.get((what, trace, iteration), 0)
        self.asked[what, trace, iteration] = seen + 1
        return seen < times


def jobs(seed: int, count: int) -> list[Job]:
    """`count` intents; each is the same for every `count`."""
    return [_job(Random(f"{seed}/job/{number}"), number, seed) for number in range(count)]


def _job(chance: Random, number: int, seed: int) -> Job:
    rounds = chance.choices((0, 1, 2, 3), (1, 6, 3, 1))[0]
    do = [_action(chance) for _ in range(rounds)]
    then: list[dict[str, Any] | None] = [_ruling(chance, last=at == rounds) for at in range(rounds + 1)]
    policy: dict[str, Any] = {
        "backoff": {"base_s": 1.0, "cap_s": 4.0}, "callbacks": ["rule"], "reasoner_timeout_s": 3.0, "callback_timeout_s": 3.0,
        "trigger_next_action": True, "on_fail": chance.choice(("callback", "callback", "fail")),
        "on_callback_fail": chance.choice(("fail", "finish")),
    }  # fmt: skip
    payload = {"do": do, "then": then}
    if chance.random() < 0.3:
        payload["moody"] = {"reasoner": chance.randint(0, 2), "callback": chance.randint(0, 2)}
    if chance.random() < 0.2:
        payload["thinks_s"] = chance.choice((0.5, 3.0, 6.5))
    keyed = chance.random() < 0.4
    agent = chance.choice(sorted(AGENTS))
    if Random(f"{seed}/chained/{number}").random() < 0.3:
        agent, payload, policy = chains.AGENT, {}, {"backoff": policy["backoff"]}
    return Job(
        number, agent, f"c-{chance.randint(1, 2)}", payload, policy, at=chance.uniform(0, 4),
        key=f"key-{number}" if keyed else None, producers=2 if keyed and chance.random() < 0.5 else 1,
        delay=chance.uniform(1, 5) if chance.random() < 0.1 else None, priority=chance.choice((1, 5, 5, 5, 9)),
    )  # fmt: skip


def _action(chance: Random) -> dict[str, Any]:
    inline = chance.random() < 0.35
    width = chance.choices((1, 2, 3, 5), (3, 4, 3, 1))[0]
    uses = [_use(chance, f"r{n}", inline=inline and chance.random() < 0.9) for n in range(width)]
    strategy = chance.choices(("serial", "parallel", "fallback", "mixed"), (2, 5, 2, 2))[0]
    action: dict[str, Any] = {"tools": uses, "strategy": strategy}
    slots = 1 if strategy in {"serial", "fallback"} else width
    if strategy == "mixed":
        cut = chance.randint(1, width)
        action["tools"] = [one for one in (uses[:cut], uses[cut:]) if one]
        slots = len(action["tools"])
    if slots > 1 and chance.random() < 0.5:
        action["require"] = chance.choice(("all", "any", chance.randint(1, slots)))
    return action


def _use(chance: Random, label: str, *, inline: bool) -> dict[str, Any]:
    slow, late = f"{chance.uniform(0.5, 3):.1f}", f"{chance.uniform(TIMEOUT_S, 2 * TIMEOUT_S):.1f}"
    script = chance.choices(
        (["ok"], ["fail", "ok"], ["fail", "fail", "fail"], ["wrong"], [slow], [late, "ok"], [late, slow], ["asks"]),
        (20, 6, 2, 2, 6, 2, 4, 2),
    )[0]
    return {"tool": "quick" if inline else chance.choice(LEAVES), "as": label, "args": {"script": script}}


def _ruling(chance: Random, *, last: bool) -> dict[str, Any] | None:
    ruling: dict[str, Any] = {}
    if chance.random() < 0.4:
        ruling["memory"] = [{"key": f"k{chance.randint(1, 2)}", "value": chance.randint(0, 9)}]
    roll = chance.random()
    if roll < 0.12:
        child = {"do": [_action(chance)] if chance.random() < 0.6 else [], "then": []}
        ruling |= {"verdict": "delegate", "to": chance.choice(sorted(AGENTS)), "intent": "work", "payload": child}
    elif roll < 0.17:
        ruling |= {"verdict": "abort", "reason": "told to"}
    elif last:
        ruling |= {"verdict": "finish"}
    return ruling or None


class Scripted:
    """Agents and tools of all schedules of a process: making them takes as long as a tenth of one."""

    def __init__(self) -> None:
        self.tools = ToolRegistry()
        self.agents: dict[str, AgentSpec] = {}
        self._register()

    def chained(self, seed: int) -> None:
        """From now on one of the agents follows the chain of this seed."""
        made = chains.chain(seed, lambda chance, label: _use(chance, label, inline=chance.random() < 0.3))
        names = [one.name for one in self.tools.list()]
        self.agents[chains.AGENT] = define_agent(chains.AGENT, chain=made, tools=names, grants=["*"])

    def begin(self, ran: Callable[[str, ToolContext], None], pause: Callable[[float], None]) -> None:
        """From now on `ran` is told of every start and end of a tool, and `pause` takes the schedule's time."""
        self._ran, self._pause, self.moods = ran, pause, Moods()
        HANDLERS.pop("rule", None)
        register_callback("rule")(self._rule)

    def _register(self) -> None:
        def declare(name: str, **how: Any) -> None:
            how = {"timeout": TIMEOUT_S, "backoff": SOON} | how

            @register_tool(name, registry=self.tools, **how)
            def tool(ctx: ToolContext, script: list[str]) -> dict[str, Any]:
                return self._do(ctx, script)

        declare("work", attempts=3)
        declare("keyed", attempts=2, effect="keyed")
        declare("once", effect="once")
        declare("narrow", attempts=2, queue="narrow")
        declare("quick", attempts=2, inline=True)
        declare("booked", attempts=3, tx=True, timeout=4.0)

        @register_tool(
            "ask", registry=self.tools, timeout=TIMEOUT_S, attempts=2, backoff=SOON, asks=AgentCall("beta", "work")
        )
        def ask(ctx: ToolContext, script: list[str]) -> dict[str, Any]:
            return self._do(ctx, script) | {"thinks_s": 0.5}

        names = [one.name for one in self.tools.list()]
        for name, executor in AGENTS.items():
            self.agents[name] = define_agent(
                name, reasoner=self._reason, tools=names, grants=["*"], executor=executor, capabilities=["work"]
            )

    def _do(self, ctx: ToolContext, script: list[str]) -> dict[str, Any]:
        self._ran("entered", ctx)
        mood = script[min(ctx.attempt, len(script)) - 1]
        if ctx.tx is not None:
            ctx.tx.exec_driver_sql(
                "INSERT INTO sim.booked VALUES (%s, %s, %s, %s)",
                (str(ctx.trace_id), ctx.idempotency_key, ctx.attempt, ctx.epoch),
            )
        match mood:
            case "ok":
                pass
            case "asks":
                self._pause(0.5)
                if not ctx.still_mine():
                    raise RuntimeError("nobody waits for this")
            case "fail":
                raise RuntimeError("told to fail")
            case "wrong":
                raise Permanent("told to fail for good")
            case seconds:
                self._pause(float(seconds))
        self._ran("left", ctx)
        return {"by": ctx.idempotency_key[:6], "attempt": ctx.attempt}

    def _reason(self, session: Any) -> Any:
        moody = session.payload.get("moody", {})
        if self.moods.fails("reasoner", session.trace_id, session.iteration, moody.get("reasoner", 0)):
            raise RuntimeError("in no mood to think")
        self._pause(session.payload.get("thinks_s", 0))
        told = session.payload.get("do", [])
        return told[session.iteration] if session.iteration < len(told) else {"answer": sorted(session.results)}

    def _rule(self, _result: Any, session: Any) -> Any:
        moody = session.payload.get("moody", {})
        if self.moods.fails("callback", session.trace_id, session.iteration, moody.get("callback", 0)):
            raise RuntimeError("in no mood to rule")
        told = session.payload.get("then", [])
        return told[session.iteration] if session.iteration < len(told) else None
