"""The floor: a hand-written loop on psycopg, no framework.

One statement a step records the step just done and claims the next work, so one commit a step; several loops a process
let PostgreSQL group the fsyncs.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench import common as C  # noqa: N812 - as in every module of a system

DB = "peer_floor"
PROCS = C.Procs()
LOOPS = {"W5": 50}  # a process; else 8

CLAIM = """with d as (update runs set step = step + 1, status = case when step + 1 >= steps then 'done' else 'running' end,
    result = %(res)s where seq = any(%(done)s) returning seq, step, status, steps, id, fan, sleep, effects),
  c as (select seq from runs where status = 'queued' order by seq for update skip locked limit %(room)s),
  n as (update runs r set status = 'running' from c where r.seq = c.seq
        returning r.seq, r.step, r.status, r.steps, r.id, r.fan, r.sleep, r.effects)
select * from n union all select * from d where status = 'running'"""


def setup() -> None:
    C.fresh_db(DB)
    with C.pg(DB) as connection:
        connection.execute("""create table runs(seq bigserial primary key, id text unique, steps int, fan int,
          sleep float8, effects int, step int default 0, status text default 'queued', result jsonb, payload jsonb);
          create index on runs(seq) where status = 'queued'""")


def loop(wake: threading.Semaphore, fans: ThreadPoolExecutor) -> None:
    connection = C.pg(DB)
    held: list[Any] = []
    idle = True
    while True:
        for _, step, _, _, run, fan, sleep, effects in held:
            if fan > 1:
                list(fans.map(lambda i: C.tool(run, step, i, sleep, effects), range(fan)))  # noqa: B023 - joined here
            else:
                C.tool(run, step, 0, sleep, effects)
        going = sum(1 for one in held if one[1] + 1 < one[3])
        held = connection.execute(
            CLAIM, {"res": '{"ok":1}', "done": [one[0] for one in held], "room": 1 - going}
        ).fetchall()
        if not held:
            idle = True
            wake.acquire(timeout=1)
        elif idle:  # there was work: rouse one more loop, not all of them at each notice
            idle = False
            wake.release()


def worker(loops: str) -> None:
    wake, fans = threading.Semaphore(0), ThreadPoolExecutor(int(loops) * 3)
    for _ in range(int(loops)):
        threading.Thread(target=loop, args=(wake, fans), daemon=True).start()
    connection = C.pg(DB, application_name="floor_ready")
    connection.execute("listen work")
    for _ in connection.notifies():
        wake.release()


def start_worker(workload: str = "W1") -> None:
    with C.pg(DB) as connection:  # what a dead worker held
        connection.execute("update runs set status = 'queued' where status = 'running'")
    number = C.WORKLOADS[workload].get("workers", 2)
    for _ in range(number):
        PROCS.start(C.module_worker("floor", str(LOOPS.get(workload, 8))))
    ready = "select count(*) from pg_stat_activity where application_name = 'floor_ready' and query like 'listen%'"
    with C.pg() as connection:
        C.wait_ready(lambda: connection.execute(ready).fetchone()[0] >= number)  # type: ignore[index]


class Client(C.PgClient):
    SQL = "select id from runs where id = any(%s) and status = 'done'"

    async def submit(self, ids: list[str], w: dict[str, Any]) -> None:
        texts = [json.dumps(C.payload(run, w)) if w.get("kib") else None for run in ids]
        await self.c.execute(
            "with i as (insert into runs(id, steps, fan, sleep, effects, payload) select x.id, %s, %s, %s, %s, x.given"
            " from unnest(%s::text[], %s::jsonb[]) x(id, given) returning 1)"
            " select pg_notify('work', '') from (select count(*) from i) q",
            (w["steps"], w["fan"], w["sleep"], w.get("effects", 0), ids, texts),
        )


async def make_client(_: dict[str, Any]) -> Any:
    return await Client().open(DB)


def seed_finished(n: int) -> None:
    C.clone_rows(DB, "public.runs", n, "id = 'warm0'", id="'old' || g", seq="-")


def stop() -> None:
    PROCS.stop()


run_workload = C.drive(sys.modules[__name__])
