"""Growth: events in partitions by week, and what was pruned."""

from pathlib import Path

from alembic import op

revision = "0004_growth"
down_revision = "0003_memory"


def upgrade() -> None:
    script = Path(__file__).parent.parent / "sql" / f"{revision}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())


def downgrade() -> None:
    op.get_bind().connection.driver_connection.execute(
        "DROP INDEX mesh.signals_trace, mesh.deliveries_trace, mesh.dead_letters_trace, mesh.rewards_trace;"
        "DROP TABLE mesh.prunings"  # partitions hold the same rows, and stay
    )
