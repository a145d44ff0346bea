"""That the proof of `make mutants` fails where it must."""

import subprocess
import sys
from pathlib import Path

import pytest

MUTANTS = Path(__file__).resolve().parent.parent.parent / ".ci" / "mutants.py"
QUICK = "tests/test_records.py::test_permissions_are_sorted_without_doubles"


def adds(path, *lines):
    """A patch that makes a file of these lines."""
    return f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{one}\n" for one in lines)


FAILS = adds("conftest.py", "def pytest_runtest_call():", "    assert not 'green'")
PATCHES = {
    "harmless": (adds("agentmesh/unused.py", "UNUSED = 1"), "SURVIVED"),
    "moved": (
        "--- a/agentmesh/records.py\n+++ b/agentmesh/records.py\n@@ -1 +1 @@\n-not a line\n+a line\n",
        "NOT APPLY",
    ),
    "misspelt": (adds("conftest.py", "def pytest_runtest_call():", "    misspelt()"), "BREAKS THE CODE"),
    "no set-up": (adds("conftest.py", "def pytest_runtest_setup():", "    assert not 'green'"), "SURVIVED"),
}


@pytest.fixture
def prove(tmp_path):
    """prove({what: diff}, caught by) -> (exit code, its last lines by what)."""

    def run(diffs, test=QUICK):
        for what, diff in diffs.items():
            (tmp_path / f"{what}.patch").write_text(f"B01 {what}\ncaught by {test}\n\n{diff}")
        files = sorted(tmp_path.glob("*.patch"))
        done = subprocess.run([sys.executable, MUTANTS, *files], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.splitlines()

    return run


def test_a_bug_that_survives_or_proves_nothing_fails(prove):
    code, lines = prove({"fails": FAILS} | {what: diff for what, (diff, _) in PATCHES.items()})
    assert (code, lines[-1].partition(":")[0]) == (1, "1 of 5 seeded bugs are caught")
    for what, (_, said) in PATCHES.items():
        assert [line for line in lines if f" {what} " in line and said in line], lines


def test_a_test_that_does_not_exist_catches_nothing(prove):
    code, lines = prove({"fails": FAILS}, QUICK + "_in_vain")
    assert code == 1
    assert lines[0].startswith("not green without any bug: ")
