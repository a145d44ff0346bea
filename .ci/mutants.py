"""Proves that the tests catch the bugs of FAULTS.md: puts each into a copy of the tree, where its tests must go red.

A patch under tests/mutants is one bug. What stands before its diff says which ("B04 what is wrong") and who notices
("caught by tests/…::test_…", one line a test). Only these tests are run: once without any bug, where all must be green,
and once with theirs. Fails when a bug is missing or survives, when a patch no longer applies, or when it breaks the code
(no such name, bad SQL) instead of bending it.
"""

# ruff: noqa: S603, S607, T201 - a script of ours that runs fixed commands and talks to a person

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ("agentmesh", "workers", "migrations", "config", "tests", "pyproject.toml")
PATCHES = ROOT / "tests" / "mutants"
BUGS = {f"B{number:02}" for number in range(1, 13)}
HOLES = {f"H{number:02}" for number in range(1, 11)}  # of them there may be patches, too
PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "-rpfE", "--tb=no", "--timeout=30", "-p", "no:cacheprovider"),
    *("-p", "pytest_timeout", "--basetemp=tmp"),
)
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "300"}  # other plugins take half of the time
BROKEN = re.compile(r"(Name|Type|Attribute|Import|Syntax)Error|(Undefined|Ambiguous|Indeterminate)\w+")


@dataclass(frozen=True, slots=True)
class Bug:
    """A patch, its number and what it does, and the tests that have to notice."""

    patch: Path
    number: str
    what: str
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of pytest: which tests passed, and which did not or left broken invariants, with their error."""

    passed: frozenset[str]
    red: dict[str, str]
    said: str
    seconds: float


def read(patch: Path) -> Bug:
    """Raises ValueError for a patch that does not say which bug it is and who catches it."""
    head, _, _ = patch.read_text(encoding="utf-8").partition("\n--- ")
    number, _, what = head.partition("\n")[0].partition(" ")
    tests = tuple(re.findall(r"^caught by (\S+)$", head, re.MULTILINE))
    if number[:3] not in BUGS | HOLES or not what or not tests:
        raise ValueError(f"{patch}: expected 'B01 what is wrong' and 'caught by tests/…::test_…' before the diff")
    return Bug(patch, number, what, tests)


def copy(source: Path, to: Path) -> Path:
    """The tree again; with its bytecode, so that only what a patch touches is compiled anew."""
    to.mkdir()
    for name in TREE:
        if (source / name).is_dir():
            shutil.copytree(source / name, to / name)
        else:
            shutil.copy2(source / name, to / name)
    return to


def apply(bug: Bug, clean: Path, at: Path) -> str:
    """Afterwards the tree with this bug is `at`; what git said when the patch does not apply."""
    done = subprocess.run(
        ["git", "apply", str(bug.patch)], cwd=copy(clean, at), env=os.environ | {"GIT_CEILING_DIRECTORIES": str(at.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr.strip() if done.returncode else ""


def run(tree: Path, tests: tuple[str, ...]) -> Run:
    started = time.monotonic()
    done = subprocess.run(
        [*PYTEST, *tests], cwd=tree, env=os.environ | ALONE | {"PYTHONPATH": str(tree)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.findall(r"^(PASSED|FAILED|ERROR) (tests/\S+?)(?:\[.*?\])?(?: - (.*))?$", done.stdout, re.MULTILINE)
    passed = frozenset(test for word, test, _ in found if word == "PASSED")
    # an error beside a pass is the fixture that checks the invariants; alone it is a set-up that went wrong
    red = {test: why for word, test, why in found if word == "FAILED" or (word == "ERROR" and test in passed)}
    return Run(passed, red, done.stdout[-2000:] + done.stderr[-2000:], time.monotonic() - started)


def verdict(bug: Bug, got: Run) -> tuple[bool, str]:
    """Whether the bug is caught, and by which tests or why not."""
    if survived := [test for test in bug.tests if test not in got.red]:
        return False, f"SURVIVED {' '.join(survived)}\n{got.said}"
    if broken := [f"{test}: {why}" for test, why in got.red.items() if BROKEN.search(why)]:
        return False, f"BREAKS THE CODE {' '.join(broken)}"
    return True, " ".join(test.partition("::")[2] for test in bug.tests)


def prove(bugs: list[Bug], place: Path) -> int:
    """How many of `bugs` are not caught, each printed as it is settled."""
    clean = copy(ROOT, place / "clean")
    late = {bug.patch: why for bug in bugs if (why := apply(bug, clean, place / bug.patch.stem))}
    for bug in bugs:
        if bug.patch in late:
            print(f"{bug.number:5} {bug.what:62}         DOES NOT APPLY {late[bug.patch]}")
    there = [bug for bug in bugs if bug.patch not in late]
    every = tuple(sorted({test for bug in there for test in bug.tests}))
    first = run(clean, every)
    if other := sorted(test for test in every if test in first.red or test not in first.passed):
        print(f"not green without any bug: {' '.join(other)}\n{first.said}")
        return len(bugs)
    print(f"{'':5} {f'without any bug all {len(every)} tests are green':62} {first.seconds:5.1f} s", flush=True)
    survived = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda bug: run(place / bug.patch.stem, bug.tests), there)
        for bug, got in zip(there, runs, strict=True):
            caught, by = verdict(bug, got)
            survived += not caught
            print(f"{bug.number:5} {bug.what:62} {got.seconds:5.1f} s  {by}", flush=True)
    return len(late) + survived


def main(names: list[str]) -> int:
    started = time.monotonic()
    bugs = [read(Path(name).resolve()) for name in names] or [read(patch) for patch in sorted(PATCHES.glob("*.patch"))]
    with tempfile.TemporaryDirectory() as place:
        wrong = prove(bugs, Path(place))
    print(f"{len(bugs) - wrong} of {len(bugs)} seeded bugs are caught: {time.monotonic() - started:.0f} s")
    missing = set() if names else BUGS - {bug.number[:3] for bug in bugs}
    if missing:
        print(f"no patch for {', '.join(sorted(missing))}")
    return int(bool(wrong or missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
