"""Checks lock files against published advisories, and says what it could not check.

An advisory fails. A package whose advisories cannot be had from here does not, but it is counted
aloud: silence of the source is not a clean bill.
"""

# ruff: noqa: S603, T201 - a script of ours that runs one fixed command and talks to a person

from __future__ import annotations

import json
import re
import subprocess
import sys

COMMAND = [
    *(sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--format=json"),
    *("--progress-spinner=off", "--timeout=20", "--requirement"),
]
AWAY = re.compile(r"Connect|connect|resolve|resolution|[Tt]imeout|[Tt]imed out|Proxy|SSL|ServiceError")


def audit(lock: str) -> int:
    """How many packages of `lock` have a known vulnerability, each printed; 1 if none could tell."""
    done = subprocess.run([*COMMAND, lock], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]
        if AWAY.search(done.stderr):
            print(f"{lock}: NOT AUDITED, the advisories cannot be reached from here ({reason})")
            return 0
        print(f"{lock}: the audit itself failed: {reason}")
        return 1
    checked = [one for one in packages if "skip_reason" not in one]
    vulnerable = [one for one in checked if one["vulns"]]
    for one in vulnerable:
        for known in one["vulns"]:
            fixed = ", ".join(known["fix_versions"]) or "no release yet"
            print(f"{lock}: {one['name']} {one['version']}: {known['id']}, fixed in {fixed}")
    unknown = len(packages) - len(checked)
    print(
        f"{lock}: {len(checked)} of {len(packages)} packages audited, {len(vulnerable)} vulnerable"
        + (f", NOT AUDITED: {unknown} (unknown to the source of advisories)" if unknown else "")
    )
    return len(vulnerable)


if __name__ == "__main__":
    sys.exit(sum(audit(lock) for lock in sys.argv[1:]) > 0)
