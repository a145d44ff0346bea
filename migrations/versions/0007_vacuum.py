"""Autovacuum of the busy tables by what changed."""

from pathlib import Path

from alembic import op

revision = "0007_vacuum"
down_revision = "0006_counts"


def upgrade() -> None:
    script = Path(__file__).parent.parent / "sql" / f"{revision}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())


def downgrade() -> None:
    for table in ("traces", "steps", "calls", "attempts"):
        op.get_bind().connection.driver_connection.execute(
            f"ALTER TABLE mesh.{table} RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)"
        )
