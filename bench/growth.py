"""Growth: what many finished traces cost the next one, and what churn leaves behind.

Databases with none, 10,000, 100,000 and 1,000,000 finished traces are measured beside one another, round by round: W1 at
once, then runs one at a time. The finished ones are rows made by SQL, copies of all that one real run leaves, spread over the
last 90 days (`bench.peer.seed_finished`). Beside runs/s stand CPU, and what PostgreSQL read: other load does not change that.

Churn is W1 again and again for ten minutes (`--quick`: one) on the database of 100,000; then every table is written anew, and
what it was larger before is bloat. `prune` takes finished traces out again.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

import psutil

from agentmesh.coordination.archive import Archive
from agentmesh.coordination.pruner import Pruner, Wish
from agentmesh.infrastructure.database import Database
from bench import common
from bench.limits import table
from bench.measure import measure
from bench.servers import home

PRUNED = "peer_growth_prune"
SIZES = {"empty": 0, "10k": 10_000, "100k": 100_000, "1M": 1_000_000}
ALONE = 120  # runs that warm up, and that run one at a time
HOT = ("traces", "steps", "calls", "attempts", "events", "envelopes", "contexts", "workers", "leaders")
READ = """
select sum(seq_tup_read)::bigint as scanned, sum(idx_scan)::bigint as probes,
 (select blks_hit + blks_read from pg_stat_database where datname = current_database()) as blocks
 from pg_stat_user_tables where schemaname = 'mesh'
"""
PARTS = """
select coalesce(p.relname, c.relname) as name, sum(pg_table_size(c.oid))::bigint, sum(pg_indexes_size(c.oid))::bigint
 from pg_class c join pg_namespace n on n.oid = c.relnamespace left join pg_inherits i on i.inhrelid = c.oid
  left join pg_class p on p.oid = i.inhparent where n.nspname = 'mesh' and c.relkind = 'r' group by 1
"""
INDEXES = """
select i.relname, pg_relation_size(i.oid) from pg_index x join pg_class i on i.oid = x.indexrelid
 join pg_namespace n on n.oid = i.relnamespace where n.nspname = 'mesh' and x.indpred is not null
"""


def growth(env: dict[str, str], *, quick: bool) -> int:
    """Prints the tables; 1 where a measurement failed."""
    asked = os.environ.get("GROWTH", "empty,10k,100k" if quick else "empty,10k,100k,1M").split(",")
    rounds, n = (1, 300) if quick else (3, 1000)
    base = env | {"PEER_KEEP": "1"}
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in asked:
        _seed(name, env)
    for turn in range(rounds):
        for name in asked if turn % 2 == 0 else reversed(asked):
            database = f"peer_growth_{name.lower()}"
            before = _read(database)
            row = measure("peer", "G1", str(n), base | {"PEER_DB": database}, None)
            if "error" in row:
                print(name, row["error"])
                return 1
            row |= {key: (after - before[key]) / (n + ALONE) for key, after in _read(database).items()}
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.setdefault(name, []).append(row)
    _show(rows)
    if "100k" in asked:
        churn("peer_growth_100k", base, 60 if quick else 600)
    return 0


def _seed(name: str, env: dict[str, str]) -> None:
    """A database with so many finished traces, vacuumed and analysed."""
    started = time.perf_counter()
    database = f"peer_growth_{name.lower()}"
    row = measure("peer", "W1", "20", env | {"PEER_DB": database, "PEER_SEED": str(SIZES[name])}, None)
    if "error" in row:
        raise SystemExit(row["error"])
    with common.pg(database, options="-c statement_timeout=0") as connection:
        connection.execute("vacuum analyze")
        size = connection.execute("select pg_database_size(current_database())").fetchone()[0]  # type: ignore[index]
    print(f"{name}: {SIZES[name]:,} finished traces, {size / 2**20:,.0f} MiB, made in {time.perf_counter() - started:.0f} s",
          flush=True)  # fmt: skip
    if SIZES[name]:
        _sizes(database)


def _sizes(database: str) -> None:
    """What one trace takes, table by table."""
    with common.pg(database, options="-c statement_timeout=0") as connection:
        number = connection.execute("select count(*) from mesh.traces").fetchone()[0]  # type: ignore[index]
        found = [(name, heap / number, index / number) for name, heap, index in connection.execute(PARTS).fetchall()
                 if heap + index > 1 << 20]  # fmt: skip
    found.sort(key=lambda one: -one[1] - one[2])
    total = ("all", sum(one[1] for one in found), sum(one[2] for one in found))
    table(f"bytes a trace, {number:,} of them", ("table", "rows", "indexes"), [*found, total])


def _read(database: str) -> dict[str, float]:
    with common.pg(database) as connection:
        row = connection.execute(READ).fetchone()
    return dict(zip(("scanned", "probes", "blocks"), map(float, row or (0, 0, 0)), strict=True))


def _show(rows: dict[str, list[dict[str, Any]]]) -> None:
    def middle(name: str, key: str) -> float:
        return float(statistics.median(row[key] for row in rows[name]))

    first = next(iter(rows))
    lines = [
        (name, middle(name, "runs_s"), middle(name, "runs_s") / middle(first, "runs_s"), middle(name, "idle_p50_ms"),
         middle(name, "idle_p95_ms"), middle(name, "cpu_ms_run"),
         float(statistics.median(row["cpu_split_ms"]["pg"] for row in rows[name])), middle(name, "wal_kb_run"),
         middle(name, "blocks"), middle(name, "scanned"), middle(name, "probe_commit_ms"))
        for name in rows
    ]  # fmt: skip
    head = ("finished before", "runs/s", "of the empty", "alone p50 ms", "p95 ms", "CPU ms a run", "PostgreSQL's", "WAL KiB",
            "blocks a run", "rows scanned a run", "a commit ms")  # fmt: skip
    table("W1, and one run at a time, beside finished traces", head, lines)


def prune(env: dict[str, str], *, quick: bool) -> int:
    """Two thirds of 100,000 finished traces (--quick: 10,000) are archived and taken out; what that costs a trace."""
    number = 10_000 if quick else 100_000
    SIZES["prune"] = number
    _seed("prune", env)
    with home() as folder, common.pg(PRUNED) as connection:
        db = Database(common.db_url(PRUNED))
        wish = Wish(age_s=30 * 86_400, letters_s=30 * 86_400, exact=True)
        pruner = Pruner(db, tenant="default", wish=wish, archive=Archive(folder, tenant="default"), by="bench")
        postmaster = psutil.Process(connection.info.backend_pid).parent()
        assert postmaster is not None

        def spent() -> tuple[float, float, float]:
            wal = connection.execute("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8").fetchone()
            server = common.cpu_s([postmaster, *postmaster.children()])
            return time.process_time(), server, wal[0] if wal else 0.0

        before, started = spent(), time.perf_counter()
        done = pruner.run()
        wall, after = time.perf_counter() - started, spent()
        pruner.close()
        db.close()
    ours, server, wal = ((y - x) / done.traces for x, y in zip(before, after, strict=True))
    head = ("traces out", "traces/s", "CPU ms a trace", "PostgreSQL's", "WAL KiB", "archive bytes", "rows")
    row = (done.traces, done.traces / wall, ours * 1000, server * 1000, wal / 1024, done.size / done.traces,
           sum(done.rows.values()) / done.traces)  # fmt: skip
    table(f"prune of {number:,} finished traces, with an archive", head, [row])
    return 0


def churn(database: str, env: dict[str, str], seconds: float) -> None:
    """W1 again and again; what the tables take then, and what they take when they are written anew."""
    ended, runs = time.perf_counter() + seconds, 0
    while time.perf_counter() < ended:
        row = measure("peer", "G1", "1000", env | {"PEER_DB": database}, None)
        runs += row.get("n", 0)
    before, open_rows = _all(database)
    with common.pg(database, options="-c statement_timeout=0") as connection:
        for name in HOT:
            for (part,) in connection.execute(
                "select coalesce(i.inhrelid, %s::regclass)::regclass::text from (select 1) x left join pg_inherits i"
                " on i.inhparent = %s::regclass", (f"mesh.{name}", f"mesh.{name}")).fetchall():  # fmt: skip
                connection.execute(f"vacuum full {part}")
    after, _ = _all(database)
    lines = [
        (name, before[name][0] / 2**20, before[name][0] / max(1, after[name][0]), before[name][1] / 2**20,
         before[name][1] / max(1, after[name][1]))
        for name in HOT
    ]  # fmt: skip
    head = ("table", "rows MiB", "of written anew", "indexes MiB", "of written anew")
    table(f"after {seconds:.0f} s and {runs:,} runs beside 100,000 finished traces", head, lines)
    table(
        "indexes of open rows then", ("index", "KiB"), [(name, size / 1024) for name, size in sorted(open_rows.items())]
    )


def _all(database: str) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    with common.pg(database) as connection:
        sizes = {name: (heap, index) for name, heap, index in connection.execute(PARTS).fetchall()}
        return sizes, dict(connection.execute(INDEXES).fetchall())
