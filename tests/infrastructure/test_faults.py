"""Fault points: each stands in the code, is off until armed, and leaves a mark when it was reached."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import agentmesh
from agentmesh.infrastructure import faults
from agentmesh.infrastructure.database import Database
from agentmesh.infrastructure.faults import Injected, arm, arm_from, point

PACKAGE = Path(agentmesh.__file__).parent
TESTS = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.disarm()


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    made = Database(database_url, pool_size=1, max_overflow=0)
    made.once("CREATE TABLE IF NOT EXISTS public.noted (n int)")
    yield made
    made.once("DROP TABLE public.noted")
    made.close()


def noted(db: Database) -> int:
    with psycopg.connect(db.url.replace("+psycopg", "")) as other:
        row = other.execute("SELECT count(*) FROM public.noted").fetchone()
    assert row is not None
    return int(row[0])


def note_two(db: Database) -> None:
    with db.begin() as tx:
        tx.count("INSERT INTO public.noted VALUES (1)")
        tx.count("INSERT INTO public.noted VALUES (2)")


def test_every_point_stands_in_the_code_and_nothing_else_does() -> None:
    texts = [
        path.read_text().partition('"""\n\n')[2] for path in PACKAGE.rglob("*.py")
    ]  # without what it says of itself
    standing = {name for text in texts for name in re.findall(r"""\bpoint\("([\w.]+)"\)""", text)}
    assert standing == faults.POINTS


def test_every_point_is_armed_in_a_test_of_its_own() -> None:
    """Named in a test as a word of its own, or with what it is armed with: an armed point never reached is a failure."""
    armed: set[str] = set()
    for path in sorted(TESTS.rglob("*.py")):
        if path == Path(__file__) or "simulation" in path.parts:
            continue  # these arm whatever there is
        said = [one.value for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, ast.Constant)]
        words = [word for text in said if isinstance(text, str) for word in text.split(",")]
        armed |= {word.partition("=")[0] for word in words}
    assert faults.POINTS - armed == set()


def test_a_point_that_does_not_exist_cannot_be_armed() -> None:
    with pytest.raises(KeyError):
        arm("call.after_efect", lambda: None)
    with pytest.raises(KeyError):
        arm_from("call.after_effect=explode")


def test_an_armed_point_acts_at_the_time_it_was_told(tmp_path: Path) -> None:
    arm_from("call.after_effect=raise@2", tmp_path)
    point("call.after_effect")
    with pytest.raises(Injected):
        point("call.after_effect")
    point("call.after_effect")
    assert sorted(one.name for one in tmp_path.iterdir()) == [f"call.after_effect.{n}" for n in (1, 2, 3)]


def test_processes_that_share_a_folder_count_together(tmp_path: Path) -> None:
    code = "from agentmesh.infrastructure.faults import point; point('call.after_effect'); print('alive')"
    env = {"AGENTMESH_TEST_FAULTS": "call.after_effect=kill@1", "AGENTMESH_TEST_REACHED": str(tmp_path)}
    ends = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False) for _ in range(2)]
    assert [one.returncode for one in ends] == [-9, 0]


def test_a_barrier_lets_go_when_enough_have_come(tmp_path: Path) -> None:
    code = "from agentmesh.infrastructure.faults import point; point('call.after_effect')"
    env = {"AGENTMESH_TEST_FAULTS": "call.after_effect=barrier:2", "AGENTMESH_TEST_REACHED": str(tmp_path)}
    first = subprocess.Popen([sys.executable, "-c", code], env=env)
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(1)
    second = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert (first.wait(10), second.returncode) == (0, 0)


def test_drop_loses_the_next_statement_before_it_is_sent(db: Database) -> None:
    arm_from("tools.before_commit=drop")
    point("tools.before_commit")
    with pytest.raises(psycopg.OperationalError):
        db.once("INSERT INTO public.noted VALUES (1)")
    assert noted(db) == 0
    db.once("INSERT INTO public.noted VALUES (2)")
    assert noted(db) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_commit_unknown_commits_and_loses_the_answer(db: Database, whole: bool) -> None:
    arm_from("tools.before_commit=commit_unknown")
    point("tools.before_commit")
    with pytest.raises(psycopg.OperationalError, match="the answer to COMMIT was lost"):
        note_two(db) if whole else db.once("INSERT INTO public.noted VALUES (1)")
    assert noted(db) == 1 + whole
    db.once("INSERT INTO public.noted VALUES (3)")
    assert noted(db) == 2 + whole
