"""${message}"""

from pathlib import Path

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    script = Path(__file__).parent.parent / "sql" / f"{revision}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())
