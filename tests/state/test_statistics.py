"""Plans made on empty tables do not outlive their growth."""

from __future__ import annotations

import psycopg

from agentmesh.infrastructure.database import Database
from agentmesh.state import statistics
from agentmesh.testing import until


def test_a_table_that_grew_is_analysed_once(database_url: str) -> None:
    with psycopg.connect(database_url) as filling:
        filling.execute(
            "INSERT INTO mesh.contexts (tenant_id, id) SELECT 'default', 'c-' || n FROM generate_series(1, 2000) n"
        )
    db = Database(database_url)
    try:
        assert "contexts" in until(lambda: statistics.refresh(db), what="the statistics collector")
        assert "contexts" not in statistics.refresh(db)
    finally:
        db.close()
