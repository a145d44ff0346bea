"""What makes a process provable on its own host: boot id, pid namespace, pid and the moment it started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from agentmesh.infrastructure.database import Row


def host() -> str:
    return socket.gethostname()


def boot_id() -> str:
    """Changes with every boot; empty where the system does not tell."""
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def started(pid: int) -> int | None:
    """The process's start time in ticks since boot; None when it is gone or a zombie. 0 where nobody can tell."""
    text = _read(Path(f"/proc/{pid}/stat"))
    if not text:
        return None if Path("/proc/self/stat").exists() or not _exists(pid) else 0
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def stopped(pid: int, *, parent: int) -> bool:
    """Whether this is a child of `parent` that a signal has stopped."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[:2] == ["T", str(parent)]


def provably_gone(row: Row) -> bool:
    """Whether the worker of this row ran on this host, boot and namespace, and its process is no longer there."""
    here = (host(), boot_id(), pid_namespace())
    if not here[1] or (row["host"], row["boot_id"], row["pid_ns"]) != here:
        return False
    return bool(started(row["pid"]) != row["pid_started"])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
