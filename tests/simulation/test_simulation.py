"""The simulator: its schedules keep every promise, a seed is a history, and a bug is found and made small."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.infrastructure import faults
from tests.simulation.__main__ import read_plan
from tests.simulation.plan import KINDS, Outcome, Plan
from tests.simulation.play import Players, first_difference, players

ROOT = Path(__file__).resolve().parents[2]
SEEDS = Path(__file__).parent / "seeds.txt"
CHUNK = 50
CHUNKS = 4 if os.environ.get("CI") else 1
# Points of parts that are not simulated: the wire of a message, webhooks, migrations, exports. A round trip is a step of its own.
ELSEWHERE = re.compile(r"(wire|webhook|migrate|admission|export|index|prune)\.|receive.before_verify|tools.mid_ring")


@pytest.fixture(scope="module")
def pool(postgres: str) -> Iterator[Players]:
    with players(postgres) as made:
        yield made


def told(outcome: Outcome) -> str:
    """What a person needs who sees it fail."""
    return "\n".join([*outcome.broken, f"replay: {outcome.plan.command()}"])


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_schedules_keep_every_promise(pool: Players, chunk: int) -> None:
    happened: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    first = chunk * CHUNK + 1
    for outcome in pool.play(Plan(seed) for seed in range(first, first + CHUNK)):
        assert outcome.broken == [], told(outcome)
        happened += outcome.faults
        reached += outcome.reached
    assert set(KINDS) - set(happened) == set(), "these faults never happened"
    assert {one for one in faults.POINTS if not ELSEWHERE.match(one)} - set(reached) == set(), (
        "these points were never reached"
    )


@pytest.mark.parametrize("line", [one for one in SEEDS.read_text().splitlines() if one and not one.startswith("#")])
def test_a_seed_that_once_failed_does_so_no_more(pool: Players, line: str) -> None:
    [outcome] = pool.play([read_plan(line)])
    assert outcome.broken == [], told(outcome)


def test_the_same_seed_is_the_same_history(pool: Players) -> None:
    seeds = range(501, 507)
    times = 2
    played = list(pool.play(Plan(seed, lines=True) for _ in range(times) for seed in seeds))
    for at in range(len(seeds)):
        same = played[at :: len(seeds)]
        for again in same[1:]:
            assert again.digest == same[0].digest, first_difference(same[0], again)


def test_a_seed_alone_decides_what_happens(pool: Players) -> None:
    assert len({one.digest for one in pool.play(Plan(seed) for seed in range(501, 505))}) == 4


@pytest.mark.faults  # two minutes: with `make faults`
@pytest.mark.timeout(300)
def test_a_bug_is_found_made_small_and_replayed(tmp_path: Path) -> None:
    """B06, a trace that is claimed whatever its status is, in a copy of the tree."""
    for name in ("agentmesh", "migrations", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    patch = ROOT / "tests" / "mutants" / "B06b_claim_of_a_running_trace.patch"
    limit = {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, env=os.environ | limit, check=True)

    def simulate(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.simulation", *args]
        env = os.environ | {"PYTHONPATH": str(tree)}
        return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)

    found = simulate(tmp_path, "--schedules", "50", "--tries", "8")
    assert found.returncode == 1, found.stdout + found.stderr
    sizes = re.findall(r"FAILED: (\d+) intents, \d+ workers, (\d+) turns, (\d+) faults", found.stdout)
    (intents, _, happened), (fewer, turns, left) = (tuple(map(int, one)) for one in sizes)
    assert fewer <= intents
    assert fewer + left < intents + happened
    replay = re.findall(r"replay: python -m tests\.simulation (.*)", found.stdout)[-1].split()
    again = simulate(tmp_path, *replay, "--whole")
    assert again.returncode == 1
    assert f"{turns} turns" in again.stdout
    assert simulate(ROOT, *replay, "--whole").returncode == 0
