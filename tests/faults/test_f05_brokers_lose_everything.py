"""F05, F06: the broker loses everything while wide steps are half done. All of them end; nobody is restarted."""

from __future__ import annotations

import threading
from typing import Any

import kombu
import psycopg
import pytest
import redis

from agentmesh.testing import until
from tests.faults.bench import Bench

WIDE = 8
LONG_S = 6  # three times as long as a row waits at most for its next ring


def half_done(bench: Bench, traces: int = 3) -> list[Any]:
    """Traces of eight calls of which some are done, some run and some still wait for a worker."""
    tools = [{"tool": "part", "args": {"n": k}, "as": f"p{k}"} for k in range(WIDE // 2)]
    tools += [{"tool": "gated", "args": {"gate": "gate", "n": k}, "as": f"g{k}"} for k in range(WIDE // 2)]
    made = [bench.given(*tools) for _ in range(traces)]
    bench.until_ran("gated")
    return made


def consume_again(bench: Bench, pools: int) -> None:
    """Each tool worker that ran before the fault runs something new, without a restart."""
    before = len(bench.runs())

    def everybody() -> bool:
        bench.start("parallel", 1).result(timeout=30)
        return len({one.pid for one in bench.runs()[before:]}) >= pools

    until(everybody, within=60, what=f"runs by {pools} processes")


RINGS = "SELECT id, rings FROM mesh.{0} WHERE status IN ('queued', 'ready', 'joined')"


def settle(bench: Bench, made: list[Any], *, pools: int = 3) -> None:
    """The broker is back: everything ends, and no row was rung more than twice for it."""
    before = rings(bench)
    threading.Event().wait(LONG_S)
    counted = {row: n - before[row] for row, n in rings(bench).items() if row in before}
    assert counted != {}
    assert {row: n for row, n in counted.items() if n > 2} == {}
    bench.open("gate")
    for trace in made:
        assert len(trace.result(timeout=60)) == WIDE
    consume_again(bench, pools)
    bench.settle()


def rings(bench: Bench) -> dict[Any, int]:
    """How often each row that waits was rung again."""
    rows = [row for table in ("traces", "steps", "calls") for row in bench.rows(RINGS.format(table))]
    return {row["id"]: row["rings"] for row in rows}


def loaded(bench: Bench) -> list[Any]:
    """Three processes that run tools: one of threads, two prefork children."""
    bench.workers(("agents", "threads"), ("tools", "threads"))
    bench.worker("tools", pool="prefork", concurrency=2)
    return half_done(bench)


def flush(own: Any) -> None:
    with redis.Redis.from_url(own.url) as client:
        client.flushall()


def restart_empty(own: Any) -> None:
    own.stop()
    own.start()


@pytest.mark.parametrize("lose", [pytest.param(flush, marks=pytest.mark.faults), restart_empty])
def test_f05_a_redis_that_lost_everything_is_rung_again(make_bench: Any, own_broker: Any, lose: Any) -> None:
    own = own_broker("redis")
    bench: Bench = make_bench("redis", broker=own)
    made = loaded(bench)
    bench.loses()
    lose(own)
    settle(bench, made)


@pytest.mark.faults
def test_f05_a_truncated_doorbell_table_is_rung_again(make_bench: Any) -> None:
    bench: Bench = make_bench("embedded")
    made = loaded(bench)
    bench.loses()
    with psycopg.connect(bench.database_url, autocommit=True) as connection:
        connection.execute("TRUNCATE mq.message")
    settle(bench, made)


def stop_app(own: Any, _: Bench) -> None:
    own.control("stop_app")
    own.control("start_app")


def kill(own: Any, _: Bench) -> None:
    own.kill()
    own.start()


def delete_queues(own: Any, bench: Bench) -> None:
    with kombu.Connection(own.url) as connection:
        for queue in bench.queues():
            connection.default_channel.queue_delete(queue)


@pytest.mark.faults
@pytest.mark.parametrize("lose", [stop_app, kill, delete_queues])
def test_f06_a_rabbitmq_that_lost_everything_is_rung_again(make_bench: Any, own_broker: Any, lose: Any) -> None:
    own = own_broker("amqp")
    bench: Bench = make_bench("amqp", broker=own)
    made = loaded(bench)
    bench.loses()
    lose(own, bench)
    settle(bench, made)
