"""Memory: why a person wrote an entry, and when it is to be forgotten."""

from pathlib import Path

from alembic import op

revision = "0003_memory"
down_revision = "0002_chains"


def upgrade() -> None:
    script = Path(__file__).parent.parent / "sql" / f"{revision}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())


def downgrade() -> None:
    op.get_bind().connection.driver_connection.execute(
        "ALTER TABLE mesh.memory DROP COLUMN reason, DROP COLUMN forget_at"
    )
