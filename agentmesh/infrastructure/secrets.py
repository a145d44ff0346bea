"""Secrets by name. A declaration refers to one, and whoever uses it asks for it then: none is kept, logged or recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from agentmesh.errors import SecretMissing

PREFIX = "AGENTMESH_SECRET_"

Secrets = Callable[[str], str]
"""The secret of this name. Raises SecretMissing."""


def secret(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """What AGENTMESH_SECRET_<NAME> holds, or the file that AGENTMESH_SECRET_<NAME>_FILE names."""
    variable = PREFIX + name.upper().replace("-", "_")
    value = environ.get(variable)
    if value is None and (path := environ.get(f"{variable}_FILE")):
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise SecretMissing(f"the file of secret {name} cannot be read", value=path, expected="a file") from exc
    if not value or not value.isascii() or not value.isprintable():
        raise SecretMissing(f"secret {name} is not there, or is more than one line of ASCII", expected=variable)
    return value
