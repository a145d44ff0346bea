"""F01: an agent worker is killed at every point of its side. The trace ends, and no committed answer is asked again."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from agentmesh.testing import until
from tests.faults.bench import Bench

LEASE_S = 1.0
SLACK_S = 4.0  # what a busy machine adds to a promise of seconds

# the shapes that reach a point, and whether the answer of its reasoner is committed by then
POINTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "receive.before_verify": (("serial",), False),
    "receive.after_claim": (("serial", "parallel"), False),
    "prepare.after_context": (("serial",), False),
    "reason.before": (("serial", "parallel"), False),
    "reason.after_answer": (("serial", "parallel"), False),
    "reason.after_commit": (("answer",), True),
    "tools.before_commit": (("serial", "parallel"), False),
    "tools.after_commit": (("serial", "parallel", "loop"), True),
    "tools.mid_ring": (("parallel",), True),
    "tools.after_ring": (("serial", "parallel"), True),
    "next.after_commit": (("loop",), True),
    "callback.before": (("serial", "parallel"), True),
    "callback.after_handler": (("serial", "parallel", "memory"), True),
    "callback.after_commit": (("loop",), True),
    "finish.before_commit": (("serial", "parallel", "delegate"), True),
    "finish.after_commit": (("serial", "delegate"), True),
    "beat.before": (("serial",), False),
}
QUICK = {("tools.after_commit", "parallel"), ("callback.after_handler", "memory"), ("finish.after_commit", "delegate")}


def every() -> list[Any]:
    pairs = [(point, shape) for point, (shapes, _) in POINTS.items() for shape in shapes]
    return [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.faults) for pair in pairs]


@pytest.mark.parametrize(("point", "shape"), every())
def test_f01_an_agent_worker_killed_at_any_point_leaves_a_trace_that_ends(
    make_bench: Any, point: str, shape: str
) -> None:
    bench: Bench = make_bench("amqp" if point == "tools.mid_ring" else "embedded")
    tools = bench.worker("tools", pool="threads", wait=False)
    nth = 3 if point == "beat.before" else 1
    doomed = bench.armed("agents", f"{point}=kill@{nth}", wait=point != "beat.before")
    bench.wait_for(tools)
    if point == "beat.before":
        until(lambda: not doomed.running, what="the armed death")
    else:
        trace = bench.start(shape, 3)
        until(lambda: not doomed.running, what="the armed death")
    before = time.monotonic()
    bench.worker("agents")
    began = time.monotonic()
    start_s = began - before  # of a worker on this machine now; what was lost with one runs alone, in a process more
    if point == "beat.before":
        trace = bench.start(shape, 3)
    trace.result(timeout=60)
    assert time.monotonic() - began < LEASE_S + 2 + SLACK_S + 3 * start_s
    bench.settle()
    answers = Counter(one.idem_key for one in bench.ledger() if one.kind == "reason" and one.name == "worker")
    turns = 3 if shape == "loop" else 1
    assert len(answers) == turns
    assert max(answers.values()) <= (1 if POINTS[point][1] else 2)
    children = bench.value("SELECT count(*) FROM mesh.traces WHERE parent_id IS NOT NULL")
    assert children == (shape == "delegate")
