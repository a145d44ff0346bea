"""The first schema: every table, in its final shape."""

from pathlib import Path

from alembic import op

revision = "0001_first"
down_revision = None


def upgrade() -> None:
    script = Path(__file__).parent.parent / "sql" / f"{revision}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())


def downgrade() -> None:
    op.get_bind().connection.driver_connection.execute("DROP SCHEMA inv CASCADE; DROP SCHEMA mesh CASCADE")
