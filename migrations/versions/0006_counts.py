"""What workers count of themselves, told with their beats."""

from pathlib import Path

from alembic import op

revision = "0006_counts"
down_revision = "0005_vectors"


def upgrade() -> None:
    script = Path(__file__).parent.parent / "sql" / f"{revision}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())


def downgrade() -> None:
    op.get_bind().connection.driver_connection.execute("ALTER TABLE mesh.workers DROP COLUMN counts")
