"""SQL as a tool: one statement of a file's, its arguments bound, in a database of its own or in the mesh's.

    sql: {database: crm_url, query: "SELECT name FROM customers WHERE number = :number", rows: one}

`database` names a secret that holds a PostgreSQL URL. Without it the statement runs in the transaction that records
the call's result: what it writes in the mesh's own database is there exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from agentmesh.execution.adapters import DataAdapter
from agentmesh.execution.tools import ToolContext
from agentmesh.infrastructure.foreign import Statement, connected
from agentmesh.records import Json, Name, Record


class Sql(Record):
    """One statement; `rows` says what of its answer is the result."""

    query: Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
    database: Name | None = None
    rows: Literal["all", "one", "value", "count"] = "all"
    limit: Annotated[int, Field(ge=1, le=100_000)] = 1000
    write: bool = False


class SqlAdapter(DataAdapter):
    """A call for many inputs runs them in one transaction."""

    kind = "sql"
    spec: Sql

    def __post_init__(self) -> None:
        self._statement = Statement(self.spec.query, self.spec.rows, self.spec.limit)
        if odd := sorted(self._statement.names ^ set(self.declared.arguments)):
            raise ValueError(f"query: {', '.join(odd)}: each argument is used, as :name, and nothing else is")
        if self.spec.database is None and not self.spec.write:
            raise ValueError("database: the name of a secret; only what writes runs in the mesh's own")
        if self.spec.database is not None and self.spec.write and self.declared.effect is None:
            raise ValueError("what writes says what doing it again means: effect: repeatable, keyed or once")

    @property
    def tx(self) -> bool:
        return self.spec.database is None

    def __call__(self, ctx: ToolContext, **args: Json) -> Json:
        return self.many(ctx, [args])[0]

    def many(self, ctx: ToolContext, inputs: Sequence[Mapping[str, Json]]) -> list[Json]:
        if self.spec.database is None:
            return [self._statement.run(ctx.tx, one) for one in inputs]
        url = self.secrets(self.spec.database)
        with connected(url, write=self.spec.write, within_s=self.declared.seconds) as connection:
            return [self._statement.run(connection, one) for one in inputs]
