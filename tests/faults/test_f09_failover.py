"""F09: a standby is promoted while the primary dies, and the old primary comes back as a stranger."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.testing import until
from tests.faults.bench import Bench
from tests.faults.load import Load

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
REPLICA = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on"}


def streaming(primary: Any, state: str) -> bool:
    rows = primary.rows("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")
    return rows == [(state,)]


def failed_over(make_bench: Any, own_postgres: Any, home: Any, *, sync: bool) -> tuple[Bench, Any, Any, Load]:
    """A mesh behind one link, under load while its primary is killed and its standby promoted."""
    primary = own_postgres(**REPLICA)
    bench: Bench = make_bench("redis", server=primary, links=("postgres",))
    standby = primary.standby(home / "standby")
    if sync:
        primary.configure(synchronous_standby_names="standby")
        primary.rows("SELECT pg_reload_conf()")
    until(lambda: streaming(primary, "sync" if sync else "async"), what="a streaming standby")
    workers = bench.workers(("agents", "threads"), ("tools", "threads"))
    with Load(bench) as load:
        load.more(15)
        primary.end("kill")
        bench.links["postgres"].cut()
        standby.promote()
        bench.links["postgres"].lead(standby.path)
        bench.links["postgres"].pass_()
        load.more(10)
    bench.servers.remove(primary)
    primary.configure(synchronous_standby_names="")  # else whatever it commits later waits for ever
    name = bench.database_url.partition("?")[0].rpartition("/")[2]
    bench.database_url = f"postgresql://postgres@/{name}?host={standby.socket}"
    assert all(worker.running for worker in workers)
    return bench, primary, standby, load


@pytest.mark.parametrize("sync", [True, False])
def test_f09_a_promoted_standby_goes_on(make_bench: Any, own_postgres: Any, home: Any, sync: bool) -> None:
    bench, primary, standby, load = failed_over(make_bench, own_postgres, home, sync=sync)
    try:
        bench.quiet(90)
        known = {row["id"] for row in bench.rows("SELECT id FROM mesh.traces")}
        kept = [trace.id in known for trace in load.accepted]
        if sync:
            assert all(kept)
            bench.settle()
        else:
            before = kept[: len(kept) - 10]  # acknowledged before the failover: what is missing is its end
            assert before == sorted(before, reverse=True)
        # the old primary is back, and somebody leads us to it: workers refuse a server that is behind theirs
        written = "SELECT count(*) FROM mesh.events"
        primary.start()
        bench.links["postgres"].cut()
        bench.links["postgres"].lead(primary.path)
        bench.links["postgres"].pass_()
        name = bench.database_url.partition("?")[0].rpartition("/")[2]
        beats = "SELECT id, beat_at FROM mesh.workers ORDER BY id"
        beaten = primary.rows(beats, name)
        said = [worker.text() for worker in bench.processes]
        until(lambda: all("older" in one.text()[len(text):] for one, text in zip(bench.processes, said, strict=True)),
              within=15, what="workers that refuse it")  # fmt: skip
        assert primary.rows(beats, name) == beaten
        assert primary.rows(written, name)
        bench.links["postgres"].cut()
        bench.links["postgres"].lead(standby.path)
        bench.heal()
        assert bench.start("answer", 1).result(timeout=30) == {"n": 1}
    finally:
        bench.settled = True
        for process in bench.processes:
            process.kill()
        standby.stop()
