"""What a busy mesh asks of PostgreSQL reads rows by indexes, however many finished traces there are."""

import re
from contextlib import ExitStack

import pytest
from sqlalchemy import event

from agentmesh.observation import timeline
from agentmesh.state import children, leases, look, rescue, rings, signals, steering, vectors

GROWING = r"(traces|steps|calls|attempts|effects|envelopes|contexts|memory|signals|vectors|deliveries|audit|events\w*)"
WHOLE = re.compile(rf"Seq Scan on {GROWING}\b")
# an index that holds open rows only may be read as a whole
UNBOUNDED = re.compile(rf"Index (?:Only )?Scan using (\w+) on {GROWING}\b[^\n]*\n(?!\s+Index Cond)")


@pytest.fixture
def busy(lab):
    """A lab whose connections have prepared all that a mesh asks for: work, failures, orders, looks of a rescuer."""
    lab.mesh.db.close()

    def prepare_all(connection, _):
        connection.prepare_threshold, connection.prepared_max = 0, None

    event.listen(lab.mesh.db.engine, "connect", prepare_all)
    lab.start({"tools": ["work", "work"]}, {"tools": ["quick", "shaky"], "strategy": "parallel"}, {"answer": 1})
    lab.start({"tools": ["fallible", "boom"], "require": "any"})
    lab.start({"tools": ["work"], "strategy": "fallback"}, idempotency_key="k")
    lab.drain()
    trace = lab.open("work", "lasting")
    db, tenant = lab.mesh.db, "default"
    steering.pause(db, tenant=tenant, trace_id=trace.id, by="ann")
    steering.resume(db, tenant=tenant, trace_id=trace.id, by="ann")
    timeline.trace(db, tenant, trace.id)
    timeline.traces(db, tenant)
    look.look(db, lab.hand.worker_id, lease_s=5)
    for found in (
        rescue.orphans,
        rescue.overdue,
        signals.due,
        children.owed,
        children.unwanted,
        children.held,
        steering.owed,
    ):
        list(found(db, batch=5))
    rings.due(db, again_s=1, cap_s=2, batch=5)
    leases.silent(db, after_s=2)
    lab.mesh.memory("c-1").store("k", 1)
    vectors.owe(db, tenant, "c-1", "m")
    taken = vectors.take(db, "m", batch=5, lease_s=5)
    vectors.fill(db, "m", {row["memory_id"]: [1.0] for row in taken})
    vectors.nearest(db, tenant, "c-1", "m", [1.0], limit=5)
    vectors.waiting(db, tenant, "m", "c-1")
    lab.drain()
    steering.cancel(db, tenant=tenant, trace_id=trace.id, by="ann")
    return lab


def plans(tx):
    """Every statement that this connection has prepared, and its plan where reading a table whole is the last resort."""
    prepared = tx.all("SELECT name, statement, cardinality(parameter_types) AS n FROM pg_prepared_statements")
    tx.all(
        "SELECT set_config('enable_seqscan', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false)"
    )
    for one in prepared:
        nulls = ", ".join(["NULL"] * one["n"])
        rows = tx.connection.execute(f'EXPLAIN EXECUTE "{one["name"]}"{nulls and f"({nulls})"}'.encode()).fetchall()
        yield one["statement"], "\n".join(row[0] for row in rows)
    tx.all("SELECT set_config('enable_seqscan', 'on', false), set_config('plan_cache_mode', 'auto', false)")


def read_whole(lab):
    """Of the statements that were seen, how many there are, and those that read a growing table as a whole."""
    partial = {row["relname"] for row in lab.rows(
        "SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indpred IS NOT NULL")}  # fmt: skip
    seen = {}
    with ExitStack() as stack:
        for _ in range(lab.mesh.db.engine.pool.checkedin()):
            seen |= dict(plans(stack.enter_context(lab.mesh.db.checkout())))
    return len(seen), [
        (statement, plan) for statement, plan in seen.items()
        if WHOLE.search(plan) or {name for name, _ in UNBOUNDED.findall(plan)} - partial
    ]  # fmt: skip


def test_no_statement_reads_a_growing_table_as_a_whole(busy):
    number, found = read_whole(busy)
    assert found == []
    assert number > 30


def test_one_that_does_is_seen(busy):
    sql = "SELECT 1 FROM mesh.calls WHERE idem_key = %(key)s"
    busy.mesh.db.once(sql, {"key": "x"})
    _, found = read_whole(busy)
    assert [statement for statement, _ in found] == ["SELECT 1 FROM mesh.calls WHERE idem_key = $1"]
