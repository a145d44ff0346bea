"""What a schema really is, as sorted lines: columns, constraints, indexes, functions, triggers and views.

Two databases with the same lines have the same schema; Alembic's own comparison sees less than that. `declared` builds
this release's schema beside the real one in a transaction that is rolled back, and says what its lines are.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg

from agentmesh.infrastructure import migrate

SCHEMAS = ("mesh", "inv")
ASIDE = "_declared"  # the suffix of the schemas that `declared` makes and takes back

# Partitions but the default one come and go with time; the version table is migrate's own.
LINES = """
WITH s AS (SELECT oid, nspname FROM pg_namespace WHERE nspname = ANY(%(schemas)s)),
r AS (SELECT c.oid, c.relname, c.relkind, c.relispartition, c.reloptions, c.relpersistence, s.nspname
  FROM pg_class c JOIN s ON s.oid = c.relnamespace
  WHERE c.relname <> 'alembic_version' AND (NOT c.relispartition OR c.relname = 'events_default'))
SELECT format('%%s %%s.%%s %%s %%s', CASE relkind WHEN 'v' THEN 'view' WHEN 'p' THEN 'partitioned' ELSE 'table' END,
   nspname, relname, relpersistence, array_to_string(reloptions, ',')) FROM r WHERE relkind IN ('r', 'p', 'v')
UNION ALL SELECT format('column %%s.%%s.%%s %%s %%s %%s %%s', r.nspname, r.relname, a.attname,
   format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated, pg_get_expr(d.adbin, d.adrelid))
  FROM r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum WHERE r.relkind IN ('r', 'p', 'v')
UNION ALL SELECT format('constraint %%s.%%s %%s %%s', r.nspname, r.relname, k.conname, pg_get_constraintdef(k.oid))
  FROM r JOIN pg_constraint k ON k.conrelid = r.oid WHERE k.contype <> 'n'
UNION ALL SELECT format('index %%s valid %%s', pg_get_indexdef(i.indexrelid), i.indisvalid)
  FROM r JOIN pg_index i ON i.indrelid = r.oid
UNION ALL SELECT format('trigger %%s %%s', pg_get_triggerdef(t.oid), t.tgenabled)
  FROM r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL SELECT format('view %%s.%%s as %%s', r.nspname, r.relname, pg_get_viewdef(r.oid)) FROM r WHERE r.relkind = 'v'
UNION ALL SELECT format('function %%s', pg_get_functiondef(p.oid)) FROM pg_proc p JOIN s ON s.oid = p.pronamespace
ORDER BY 1
"""


def lines(connection: psycopg.Connection[Any], *, suffix: str = "") -> list[str]:
    """The sorted catalog lines of schemas `mesh` and `inv`, each in one line."""
    named = [f"{name}{suffix}" for name in SCHEMAS]
    rows = connection.execute(LINES, {"schemas": named}).fetchall()
    found = [" ".join(str(row[0]).split()) for row in rows]
    if suffix:
        found = [line.replace(f"mesh{suffix}.", "mesh.").replace(f"inv{suffix}.", "inv.") for line in found]
    return sorted(found)


def declared(connection: psycopg.Connection[Any]) -> list[str]:
    """The lines that this release's scripts lead to on this server. Nothing of it stays; needs CREATE on the database."""
    with connection.transaction(force_rollback=True):
        for revision in migrate.revisions():
            script = (migrate.scripts() / "sql" / f"{revision}.sql").read_text()
            aside = re.sub(rf"\b({'|'.join(SCHEMAS)})(?=[.;]|$)", rf"\1{ASIDE}", script, flags=re.MULTILINE)
            aside = re.sub(r"(SCHEMA (?:IF NOT EXISTS )?)(mesh|inv)\b(?!_)", rf"\1\2{ASIDE}", aside)
            connection.execute(aside.encode())
        return lines(connection, suffix=ASIDE)


def drift(connection: psycopg.Connection[Any]) -> list[str]:
    """What differs: "- line" is declared and missing, "+ line" is there and not declared. Empty: the same."""
    real, wanted = set(lines(connection)), set(declared(connection))
    return sorted([f"- {line}" for line in wanted - real] + [f"+ {line}" for line in real - wanted])
