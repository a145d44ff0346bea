"""Alembic's environment: runs the revisions on the connection that `agentmesh db upgrade` hands over, or on
AGENTMESH_DATABASE_URL when Alembic is called by hand."""

import os

import sqlalchemy as sa
from alembic import context

connection = context.config.attributes.get("connection")


def run(connection: sa.Connection) -> None:
    context.configure(connection=connection, version_table_schema="mesh", transactional_ddl=True)
    context.run_migrations()


if connection is not None:
    run(connection)
else:
    with sa.create_engine(os.environ["AGENTMESH_DATABASE_URL"]).begin() as own:
        run(own)
