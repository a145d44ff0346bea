"""One row by its name, or an error that lists the names there are and the one that may be meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from agentmesh.errors import MeshError


def one_of(
    rows: Sequence[dict[str, Any]], name: str, what: str, error: type[MeshError], key: str = "id"
) -> dict[str, Any]:
    """The row whose `key` is `name`. Raises `error` with a suggestion."""
    for row in rows:
        if row[key] == name:
            return row
    known = [str(row[key]) for row in rows]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" · did you mean {near[0]}?" if near else ""
    raise error(what, value=name, expected=f"one of {', '.join(known[:20]) or 'none yet'}{hint}")
