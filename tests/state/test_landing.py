"""The statement that lands a change, as the planner sees it."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from agentmesh.behavior.agents import define_agent
from agentmesh.execution.tools import register_tool

RUNS = 40
TABLES = ("traces", "steps", "calls", "attempts")

NEW = "; ".join([
    *(f"TRUNCATE mesh.{table}; ALTER TABLE mesh.{table} SET (autovacuum_enabled = off)" for table in TABLES),
    "SELECT pg_stat_reset()",
])  # fmt: skip
"""As after an installation: nothing is known of the tables, and nobody learns of them meanwhile."""


@pytest.mark.parametrize("inline", [True, False])
def test_a_plan_made_on_empty_tables_reads_no_table_whole(
    make_mesh: Any, tools: Any, database_url: str, *, inline: bool
) -> None:
    @register_tool("double", inline=inline, registry=tools)
    def double(n: int) -> int:
        return 2 * n

    def decide(session: Any) -> dict[str, Any]:
        return {
            "tools": [{"tool": "double", "args": {"n": n}, "as": f"r{n}"} for n in range(3)],
            "strategy": "parallel",
        }

    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(NEW)
    mesh, bells = make_mesh(define_agent("tester", reasoner=decide, tools=["double"]))
    for _ in range(RUNS):
        trace = mesh.router.dispatch("compute", "me", "tester", "c-1", {})
        bells.drain(mesh)
        assert trace.result(0) == {"r0": 0, "r1": 2, "r2": 4}
    mesh.close()  # which hands in what its connections have counted
    with psycopg.connect(database_url) as connection:
        read = connection.execute(
            "SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 'mesh' AND relname = ANY(%s)",
            (list(TABLES),),
        ).fetchall()
        connection.execute("; ".join(f"ALTER TABLE mesh.{table} RESET (autovacuum_enabled)" for table in TABLES))
    # the first runs are planned one by one; read whole at every commit, it would be thousands
    assert {table: rows for table, rows in read if rows > 10 * RUNS} == {}
