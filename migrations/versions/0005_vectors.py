"""Memory by meaning: vectors of entries, each of one model."""

from pathlib import Path

from alembic import op

revision = "0005_vectors"
down_revision = "0004_growth"


def upgrade() -> None:
    script = Path(__file__).parent.parent / "sql" / f"{revision}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())


def downgrade() -> None:
    op.get_bind().connection.driver_connection.execute("DROP TABLE mesh.vectors")
