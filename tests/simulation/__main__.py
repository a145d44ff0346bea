"""`python -m tests.simulation`: plays schedules, and makes those that fail small. See README.md here."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from agentmesh import testing
from tests.simulation.plan import KINDS, Outcome, Plan
from tests.simulation.play import Players, players

TELL_S = 5.0
SHOWN = 120
DULL = re.compile(r"/beat |/look (?!rescue\.after)")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every promise held in every schedule, 1 otherwise."""
    args = _parser().parse_args(argv)
    server = testing.need("AGENTMESH_TEST_POSTGRES_URL")
    alone = args.seed is not None
    with players(server, number=1 if alone else args.processes) as pool:
        if alone:
            return _one(pool, args)
        return _many(pool, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=300, help="how many seeds to play (default 300)")
    parser.add_argument("--start", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--processes", type=int, help="how many at once (default: one a core)")
    parser.add_argument("--twice", action="store_true", help="play each twice; their histories must be the same")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    parser.add_argument("--whole", action="store_true", help="do not make what fails smaller")
    parser.add_argument("--tries", type=int, default=150, help="how many smaller ones to play (default 150)")
    one = parser.add_argument_group("one schedule, as a failing one prints it")
    one.add_argument("--seed", type=int)
    one.add_argument("--steps", type=int, default=None, help="how long faults happen")
    one.add_argument("--workers", type=int, default=0)
    one.add_argument("--only", type=_numbers, help="only these of its intents: 0,2")
    one.add_argument("--faults", type=_numbers, help="only these of its faults: 1,7, or none")
    one.add_argument("--kinds", type=_kinds, help=f"only these kinds of faults: {','.join(KINDS)}, or none")
    one.add_argument("-v", "--verbose", action="store_true", help="show every turn")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(",") if one != "none")


def _kinds(text: str) -> tuple[str, ...]:
    return tuple(one for one in text.split(",") if one != "none")


def plan_of(args: argparse.Namespace) -> Plan:
    return Plan(
        args.seed,
        steps=args.steps,
        workers=args.workers,
        kinds=args.kinds,
        only=args.only,
        faults=args.faults,
        lines=True,
    )


def read_plan(line: str) -> Plan:
    """The plan of a line like those of seeds.txt: what a failing schedule printed after its command."""
    return plan_of(_parser().parse_args(line.split()))


def _one(pool: Players, args: argparse.Namespace) -> int:
    [outcome] = pool.play([plan_of(args)])
    if args.verbose:
        say(*outcome.lines)
    say(f"seed {args.seed}: {_summary(outcome)}, history {outcome.digest}")
    if outcome.broken:
        _show(outcome)
        if not args.whole:
            _shrink(pool, outcome, args.tries)
    return int(bool(outcome.broken))


def _many(pool: Players, args: argparse.Namespace) -> int:
    started = told = time.monotonic()
    faults: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    failed: list[Outcome] = []
    played = 0
    for outcome in pool.play(_plans(args, started)):
        played += 1
        faults += outcome.faults
        reached += outcome.reached
        failed += [outcome] if outcome.broken else []
        now = time.monotonic()
        if now - told >= TELL_S:
            told = now
            say(f"{played} of {args.schedules} schedules, {played / (now - started):.1f}/s, {len(failed)} failed")
        if outcome.broken:
            _show(outcome)
            if not args.keep_going:
                break
    seconds = time.monotonic() - started
    say(f"{played} schedules in {seconds:.0f} s, {played / seconds:.1f}/s, {len(failed)} failed")
    say("faults: " + ", ".join(f"{name} {times}" for name, times in sorted(faults.items())))
    say("points: " + ", ".join(f"{name} {times}" for name, times in sorted(reached.items())))
    if failed and not args.whole:
        _shrink(pool, failed[0], args.tries)
    return int(bool(failed))


def _plans(args: argparse.Namespace, started: float) -> Iterator[Plan]:
    for number in count(args.start) if args.minutes else range(args.start, args.start + args.schedules):
        if args.minutes and time.monotonic() - started > args.minutes * 60:
            return
        yield Plan(number, twice=args.twice)


def _summary(outcome: Outcome) -> str:
    happened = sum(outcome.faults.values())
    return f"{len(outcome.jobs)} intents, {outcome.plan.workers} workers, {outcome.steps} turns, {happened} faults"


def _show(outcome: Outcome) -> None:
    say(f"\nseed {outcome.plan.seed} FAILED: {_summary(outcome)}")
    say(*(f"  {one}" for one in outcome.broken))
    say(f"  replay: {outcome.plan.command()}")


def _shrink(pool: Players, failed: Outcome, tries: int) -> None:
    say("making it smaller …")
    small = pool.shrunk(failed, tries)
    say(*[line for line in small.lines if not DULL.search(line)][-SHOWN:])
    _show(small)


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201 - a command


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
