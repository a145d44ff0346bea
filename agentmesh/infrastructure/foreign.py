"""Statements of a user's in databases that are not ours: bound values, a time limit, read-only unless told otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from agentmesh.errors import AnswerRefused, BadSettings
from agentmesh.infrastructure.database import driver_options
from agentmesh.infrastructure.logging import redact


class Statement:
    """One statement, and what of its answer is wanted. Lists are bound as arrays, objects as JSON text."""

    def __init__(self, query: str, rows: Literal["all", "one", "value", "count"], limit: int) -> None:
        self._text, self._rows, self._limit = sa.text(query), rows, limit
        self.names = frozenset(self._text._bindparams)

    def run(self, connection: sa.Connection, values: Mapping[str, Any]) -> Any:
        """Its rows as objects (all), the first or None (one), its first column (value), or how many it changed (count).

        Raises AnswerRefused for more rows than the limit.
        """
        bound = {name: json.dumps(one) if isinstance(one, dict) else one for name, one in values.items()}
        answer = connection.execute(self._text, bound)
        if self._rows == "count":
            return answer.rowcount
        found = [dict(row) for row in answer.mappings().fetchmany(self._limit + 1)]
        if len(found) > self._limit:
            raise AnswerRefused("the answer has too many rows", expected=f"at most {self._limit} rows")
        if self._rows == "all":
            return found
        first = found[0] if found else None
        return first if self._rows == "one" or first is None else next(iter(first.values()))


@contextmanager
def connected(url: str, *, write: bool, within_s: float) -> Iterator[sa.Connection]:
    """A connection in one transaction, committed at the end where it may write. No error shows the URL."""
    try:
        made, options = driver_options(url)
    except sa.exc.ArgumentError:
        raise BadSettings("a database secret is no URL", expected="postgresql://user:password@host/name") from None
    if made.get_backend_name() != "postgresql":
        raise BadSettings("a database secret is for another database", value=made.get_backend_name(),
                          expected="postgresql://…")  # fmt: skip
    limits = f"-c statement_timeout={int(within_s * 1000)}" + ("" if write else " -c default_transaction_read_only=on")
    engine = sa.create_engine(made, poolclass=NullPool, connect_args=options | {"options": limits})
    try:
        with engine.begin() as connection:
            yield connection
    except sa.exc.DBAPIError as exc:
        line = re.sub(r"\s+", " ", str(exc.orig)).strip()
        raise RuntimeError(f"the database refused it: {redact(line)}") from exc
