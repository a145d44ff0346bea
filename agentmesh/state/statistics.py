"""Keeping the planner's statistics up with tables that grow fast.

The hot statements are prepared, and their plans kept until a table is analysed anew. A plan made while a table was
empty reads it whole; autovacuum looks once a minute, a flood fills a table in seconds.
"""

from __future__ import annotations

from agentmesh.infrastructure.database import Database

GROWN = """
SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'mesh'
 AND n_mod_since_analyze > 300 + n_live_tup / 5 AND coalesce(last_analyze, '-infinity') < mesh.mesh_asof() - interval '5 s'
 ORDER BY relname
"""


def refresh(db: Database) -> list[str]:
    """Analyse the tables that have grown by a fifth and more; their names. Plans are made anew from then on."""
    grown = [row["relname"] for row in db.once(GROWN)]
    for table in grown:
        db.once(f'ANALYZE mesh."{table}"')
    return grown
