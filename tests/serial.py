"""Two orders at once, and the two serial orders that they may come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentmesh.infrastructure import faults
from agentmesh.testing import broken, race

Actor = Callable[[Any, Any, Any], Any]
"""Does its part to a trace, given the ring by which its holder goes on."""


def comes_to_a_serial_order(
    lab: Any, begin: Callable[[Any], tuple[Any, Any]], actors: Mapping[str, Actor], pair: tuple[str, str],
    seen: Callable[[Any, Any], Any],
) -> None:  # fmt: skip
    """What is `seen` after both at once is what is seen after one and then the other. `begin` makes the trace."""
    serial = []
    for order in (pair, pair[::-1]):
        trace, ring = begin(lab)
        for name in order:
            actors[name](lab, trace, ring)
        serial.append(seen(lab, trace))
    if "finish" in pair and len(set(pair)) == 2:  # the holder's part is two transitions: it takes the step, and ends it
        trace, ring = begin(lab)
        [other] = set(pair) - {"finish"}
        faults.arm("receive.after_claim", lambda: actors[other](lab, trace, ring))
        actors["finish"](lab, trace, ring)
        faults.disarm()
        serial.append(seen(lab, trace))
    trace, ring = begin(lab)
    answers = race(*[lambda name=name: actors[name](lab, trace, ring) for name in pair])
    assert [one for one in answers if isinstance(one, BaseException)] == []
    assert seen(lab, trace) in serial
    assert broken(lab.url) == {}
