"""agentmesh as one of the systems that are measured: this module fits beside those of other systems, too.

A run is a trace along a chain of `steps` tools steps, each of `fan` inline calls at once, on two agent workers with a
threads pool. It has the shipped settings but for: the lease of 3 s (10 s by default) that W7 depends on, 50 threads a
worker where the tools wait (W5; 16 by default, or PEER_THREADS), and no copy of each result in short-term memory (policy
`write_memory: false`): the results stand on the steps. PEER_BROKER is pg (doorbells in the same PostgreSQL, nothing else
to run), redis, or amqp, whose CPU is counted where BENCH_BROKER_PIDS names its process.

PEER_MEMORY=1 lets results be written to memory. PEER_TOOLS=workers runs the same
tools as chords on two tool workers (W2c), with two agent workers beside them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

from agentmesh import ToolContext, ToolRegistry, define_agent, register_tool
from agentmesh.infrastructure import logging, migrate
from agentmesh.infrastructure.settings import load
from agentmesh.wiring import Mesh, build

if __package__ == "bench":
    from bench import common as C  # noqa: N812 - as the modules of all systems name it
else:
    from . import common as C  # type: ignore[no-redef]  # noqa: N812, TID252

DB = os.environ.get("PEER_DB", "peer_agentmesh")
NAME = __name__.rpartition(".")[2]
PROCS = C.Procs()
BROKER = os.environ.get("PEER_BROKER", "pg")
USES_REDIS = BROKER == "redis"
LEAVES = os.environ.get("PEER_TOOLS") == "workers"
HOME = Path(tempfile.gettempdir()) / f"{DB}-{os.getuid()}"
THREADS = {"W5": "50"}
PLANS = {"one": (1, 1), "three": (1, 3), "three-ones": (3, 1), "three-threes": (3, 3), "ten": (10, 1)}


def mesh() -> Mesh:
    """The same in the client and in every worker."""
    tools = ToolRegistry()

    @register_tool("count", inline=not LEAVES, registry=tools)
    def count(ctx: ToolContext, step: int, i: int) -> int:
        given = ctx.payload
        return C.tool(given["run"], step, i, given["sleep"], given["effects"])

    agents = {name: _agent(name, steps, fan) for name, (steps, fan) in PLANS.items()}
    environ = {
        "AGENTMESH_DATABASE_URL": C.db_url(DB), "AGENTMESH_HOME": str(HOME / "mesh"), "AGENTMESH_LEASE_LEASE": "3s",
        "AGENTMESH_DATABASE_POOL_SIZE": "5",
    }  # fmt: skip
    if BROKER != "pg":
        environ["AGENTMESH_BROKER_URL"] = C.REDIS_URL if USES_REDIS else C.AMQP_URL
    return build(load(environ=environ, cwd=HOME), tools=tools, agents=agents, root=HOME)


def _agent(name: str, steps: int, fan: int) -> Any:
    work = [
        {"tools": [{"tool": "count", "args": {"step": step, "i": i}, "as": f"r{i}"} for i in range(fan)],
         "strategy": "parallel"}
        for step in range(steps)
    ]  # fmt: skip
    return define_agent(
        name,
        chain={"chain": name, "steps": work},
        tools=["count"],
        policy={"write_memory": bool(os.environ.get("PEER_MEMORY"))},
        group="bench",
    )


def worker(kind: str, threads: str) -> None:
    logging.configure(format="text", level=os.environ.get("PEER_LEVEL", "warning"))
    raise SystemExit(mesh().work(kind, pool="threads", concurrency=int(threads)))  # type: ignore[arg-type]


def setup() -> None:
    HOME.mkdir(exist_ok=True)
    if os.environ.get("PEER_KEEP"):  # the database stands
        return
    url = C.fresh_db(DB)
    migrate.upgrade(url)
    if BROKER == "amqp":
        import kombu

        with kombu.Connection(C.AMQP_URL) as connection:
            for queue in ("agents.bench", "tools.tools"):
                connection.default_channel.queue_delete(queue)
    elif USES_REDIS:
        import redis

        redis.Redis.from_url(C.REDIS_URL).flushdb()


def start_worker(workload: str = "W1") -> None:
    number = getattr(C, "WORKLOADS", {}).get(workload, {}).get("workers", 2)
    kinds = ["agents"] * number + ["tools"] * (number if LEAVES else 0)
    for kind in kinds:
        PROCS.start(C.module_worker(NAME, kind, os.environ.get("PEER_THREADS") or THREADS.get(workload, "16")))
    pids = [one.pid for one in PROCS.ps]
    ready = "select count(*) from mesh.workers where state = 'alive' and pid = any(%s)"
    with C.pg(DB) as connection:
        C.wait_ready(lambda: connection.execute(ready, (pids,)).fetchone()[0] == len(kinds))  # type: ignore[index]


def _payload(run: str, w: dict[str, Any]) -> dict[str, Any]:
    if hasattr(C, "payload"):
        return C.payload(run, w)
    return {"run": run, "sleep": w["sleep"], "effects": w.get("effects", 0)}


class Client(C.PgClient):
    SQL = "select id from mesh.traces where id = any(%s) and status = 'done'"

    def __init__(self) -> None:
        self.mesh = mesh()
        self.traces: dict[str, UUID] = {}

    async def submit(self, ids: list[str], w: dict[str, Any]) -> None:
        to = next(name for name, shape in PLANS.items() if shape == (w["steps"], w["fan"]))
        contexts = w.get("contexts")
        intents = [
            {"intent": "work", "from_id": "bench", "to_id": to, "context_id": f"c{n % contexts}" if contexts else run,
             "payload": _payload(run, w)}
            for n, run in enumerate(ids)
        ]  # fmt: skip
        made = self.mesh.router.dispatch_many(intents)
        self.traces |= dict(zip(ids, (one.id for one in made), strict=True))

    async def finished(self, ids: list[str]) -> set[str]:
        asked = {self.traces[run]: run for run in ids}
        cursor = await self.c.execute(self.SQL, (list(asked),))
        return {asked[row[0]] for row in await cursor.fetchall()}

    async def close(self) -> None:
        await super().close()
        self.mesh.close()


async def make_client(_: dict[str, Any]) -> Any:
    return await Client().open(DB)


DAYS = 90


def seed_finished(n: int) -> None:
    """Every row that the first run left, n times, as if they had ended evenly over the last 90 days; audited and sealed."""
    with C.pg(DB) as connection:
        first, from_ms = connection.execute(
            "select id, ((extract(epoch from now()) - %s * 86400) * 1000)::bigint from mesh.traces where status = 'done'"
            " order by id limit 1", (DAYS,)).fetchone()  # type: ignore[misc]  # fmt: skip
        sealed = "select count(*) from mesh.audit where seq is not null"
        C.wait_ready(lambda: connection.execute(sealed).fetchone()[0] > 0)  # type: ignore[index]
    at = f"{from_ms} + g * {DAYS * 86_400_000 // (n + 1)}::bigint"

    def copy(column: str) -> str:
        return f"(lpad(to_hex({at}), 12, '0') || '7' || right(md5(t.{column}::text || g), 19))::uuid"

    times = {name: f"to_timestamp(({at}) / 1000.0) + (t.{name} - (select created_at from mesh.traces where id = '{first}'))"
             for name in ("created_at", "started_at", "ended_at", "rung_at", "at")}  # fmt: skip
    trace, own = copy("trace_id"), copy("id")
    made = {
        "traces": {"id": own, "root_id": own, "context_id": "t.context_id || g"},
        "envelopes": {"id": own, "trace_id": trace},
        "events": {"trace_id": trace, "step_id": copy("step_id"), "call_id": copy("call_id")},
        "steps": {"id": own, "trace_id": trace, "after_step_id": copy("after_step_id")},
        "calls": {"id": own, "trace_id": trace, "step_id": copy("step_id"), "idem_key": "t.idem_key || g"},
        "attempts": {"id": own, "trace_id": trace, "step_id": copy("step_id"), "call_id": copy("call_id")},
        "effects": {"trace_id": trace, "step_id": copy("step_id")},
    }  # fmt: skip
    for table, new in made.items():
        key = "id" if table == "traces" else "trace_id"
        C.clone_rows(DB, f"mesh.{table}", n, f"t.{key} = '{first}'", **{name: one for name, one in times.items()
                                                                       if name in _times(table)}, **new)  # fmt: skip
    context = f"t.id = (select context_id from mesh.traces where id = '{first}')"
    C.clone_rows(DB, "mesh.contexts", n, context, id="t.id || g", created_at=f"to_timestamp(({at}) / 1000.0)")
    last = "(select max(seq) from mesh.audit) + g"
    C.clone_rows(DB, "mesh.audit", n, "t.seq = 1", id="gen_random_uuid()", seq=last)


def _times(table: str) -> set[str]:
    with C.pg(DB) as connection:
        rows = connection.execute(
            "select column_name from information_schema.columns where table_schema = 'mesh' and table_name = %s",
            (table,),
        ).fetchall()
    return {row[0] for row in rows}


def stop() -> None:
    PROCS.stop()


run_workload = C.drive(sys.modules[__name__])
