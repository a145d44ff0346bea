"""Checks lock files against published advisories; says so, and passes, where their source is away.

An advisory fails. A machine without a way to the source cannot know, and is told that it does not.
"""

from __future__ import annotations

import subprocess
import sys

OPTIONS = ["--require-hashes", "--disable-pip", "--progress-spinner=off", "--timeout=20"]
UNREACHABLE = (
    "ConnectionError",
    "Max retries exceeded",
    "Name or service not known",
    "Temporary failure in name resolution",
    "ReadTimeout",
    "ConnectTimeout",
    "ProxyError",
    "SSLError",
    "HTTPError",
    "ServiceError",
)


def audit(lock: str) -> int:
    """0: nothing known against it, or the source is away (printed); else what pip-audit says."""
    command = [sys.executable, "-m", "pip_audit", *OPTIONS, "-r", lock]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    talk = done.stderr.strip()
    if done.returncode and any(word in talk for word in UNREACHABLE):
        print(f"{lock}: NOT AUDITED, the advisories cannot be reached from here: {talk[-200:]}")
        return 0
    print(f"{lock}: {talk.splitlines()[-1] if talk else 'audited'}")
    print(done.stdout, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(max(audit(lock) for lock in sys.argv[1:]))
