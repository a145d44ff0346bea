"""A trace as a tree: its steps in order, under each its calls and attempts, then the traces it delegated to.

On a terminal the tree fills in place while the trace runs; elsewhere every event is a line, and the tree comes at the
end. Nothing is told by colour alone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from agentmesh.cli.output import as_line, is_terminal, moment, safe, say, span
from agentmesh.errors import StillWorking
from agentmesh.observation import timeline
from agentmesh.observation.timeline import Timeline

if TYPE_CHECKING:
    from rich.tree import Tree

    from agentmesh.infrastructure.database import Database, Row

LOOK_S = 0.1
SHORT = 60
MARKS = {
    "done": ("✓", "ok", "green"), "won": ("✓", "ok", "green"), "failed": ("✗", "FAIL", "red"),
    "timeout": ("✗", "FAIL", "red"), "lost": ("✗", "LOST", "red"), "cancelled": ("-", "stopped", "yellow"),
    "stale": ("-", "stale", "yellow"), "released": ("-", "released", "yellow"), "superseded": ("-", "superseded", "dim"),
    "held": ("·", "held", "dim"),
}  # fmt: skip


@dataclass(slots=True)
class Node:
    """One line of the tree. `status` chooses its mark."""

    status: str
    text: str
    below: list[Node] = field(default_factory=list)


def tree(seen: Timeline, below: Callable[[UUID], Timeline] | None = None) -> Node:
    """The trace as lines; `below` reads the traces it delegated to, None leaves them as one line each."""
    head = seen.trace
    root = Node(
        head["status"],
        f"{head['agent']} · {head['intent']} · {head['status']} · {span(head['seconds'])} · {head['id']}",
    )
    for step in seen.steps:
        root.below.append(_step(step, seen))
    if head["error"]:
        root.below.append(Node("failed", _error(head["error"])))
    for child in seen.children:
        root.below.append(tree(below(child["id"])) if below else _child(child))
    return root


def _child(child: Row) -> Node:
    return Node(child["status"], f"{child['agent']} · {child['intent']} · {child['status']} · {child['id']}")


def _step(step: Row, seen: Timeline) -> Node:
    times = f" #{step['iteration']}" if step["iteration"] > 1 else ""
    said = f" → {_short(step['output'])}" if step["output"] is not None and step["kind"] != "tools" else _waits(step)
    made = Node(step["status"], f"{step['ordinal']} {step['node']}{times} · {span(step['seconds'])}{_cost(step)}{said}")
    calls = [one for one in seen.calls if one["step_id"] == step["id"]]
    for call in calls:
        made.below.append(_call(call, [one for one in seen.attempts if one["call_id"] == call["id"]]))
    own = [one for one in seen.attempts if one["step_id"] == step["id"] and one["call_id"] is None]
    if len(own) > 1 or any(one["outcome"] not in {None, "won"} for one in own):
        made.below += [_attempt(one) for one in own]
    if step["error"]:
        made.below.append(Node("failed", _error(step["error"])))
    return made


def _waits(step: Row) -> str:
    """What a waiting step waits for, and until when."""
    if step["status"] != "waiting" or not step["waits_for"]:
        return ""
    kind, _, name = step["waits_for"].partition(":")
    who = ", ".join((step["action"] or {}).get("who") or ["anybody"])
    what = {
        "time": "a time",
        "children": "its child traces",
        "signal": f"signal {name}",
        "approval": f"a decision of {who}",
    }
    until = f" until {moment(step['wake_at'])}" if step["wake_at"] else ""
    return f" · waits for {what.get(kind, step['waits_for'])}{until}"


def _cost(step: Row) -> str:
    """Which model was asked, for how many tokens in and out, and for how much, as far as that is known."""
    if step["model"] is None:
        return ""
    tokens = "" if step["input_tokens"] is None else f" · {step['input_tokens']} + {step['output_tokens'] or 0} tokens"
    return f" · {step['model']}{tokens}" + ("" if step["cost_usd"] is None else f" · ${step['cost_usd']:.6g}")


def _call(call: Row, attempts: Sequence[Row]) -> Node:
    worked = sum(one["seconds"] for one in attempts)
    name = call["label"] if call["label"] == call["tool"] else f"{call['label']} ({call['tool']})"
    tries = f" · {len(attempts)} attempts" if len(attempts) > 1 else ""
    said = f" → {_short(call['result'])}" if call["result"] is not None else ""
    made = Node(call["status"], f"{name} · {span(worked)}{tries}{said}")
    if call["error"] and len(attempts) <= 1:
        made.text += f" · {_error(call['error'])}"
    if (call["effect"], call["status"]) == ("once", "failed"):
        made.below.append(Node("waiting", f"agentmesh resolve {call['id']} --done JSON | --failed | --again"))
    if len(attempts) > 1 or any(one["progress"] for one in attempts if one["outcome"] is None):
        made.below += [_attempt(one) for one in attempts]
    return made


def _attempt(one: Row) -> Node:
    status = one["outcome"] or "running"
    text = f"attempt {one['n']} · {status} · {span(one['seconds'])} · {one['worker'] or 'a worker that is gone'}"
    if one["progress"] and one["outcome"] is None:
        text += f" · {_short(one['progress'])}"
    return Node(status, text + (f" · {_error(one['error'])}" if one["error"] else ""))


def _error(error: Any) -> str:
    if isinstance(error, dict) and "code" in error:
        return f"{error['code']} {error.get('message', '')}".strip()
    return _short(error)


def _short(value: Any) -> str:
    text = as_line(value) if not isinstance(value, str) else value
    return text if len(text) <= SHORT else text[:SHORT] + "…"


# --- on the screen ------------------------------------------------------------------------------------------------------


def mark(status: str) -> tuple[str, str]:
    """The mark of a status (in words where the terminal has no such characters), and its colour."""
    sign, word, style = MARKS.get(status, ("…", "...", "cyan"))
    encoding = (sys.stdout.encoding or "ascii").lower()
    return (sign if encoding.startswith("utf") else word), style


def rich_tree(node: Node) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    sign, style = mark(node.status)
    made = Tree(Text.assemble((sign, style), " ", safe(node.text)), guide_style="dim")
    for one in node.below:
        made.children.append(rich_tree(one))
    return made


def plain_lines(node: Node, depth: int = 0) -> Iterator[str]:
    yield f"{'  ' * depth}{mark(node.status)[0]} {safe(node.text)}"
    for one in node.below:
        yield from plain_lines(one, depth + 1)


def show(node: Node) -> None:
    """The tree, once, on stdout."""
    if is_terminal():
        from agentmesh.cli.output import console

        console().print(rich_tree(node))
        return
    for line in plain_lines(node):
        print(line)


def follow(
    db: Database,
    tenant: str,
    trace_id: UUID,
    *,
    timeout: float | None = None,
    quiet: bool = False,
    children: bool = False,
) -> Timeline:
    """Draw the trace until it has ended (with `children`: and what it delegated); its last state.

    Raises StillWorking after `timeout` seconds; the work goes on.
    """
    pen = _Nothing() if quiet else _Live() if is_terminal() else _Lines(db, tenant, trace_id)
    end = None if timeout is None else time.monotonic() + timeout
    wait = threading.Event().wait
    with pen:
        while True:
            seen = timeline.trace(db, tenant, trace_id)
            below = [timeline.trace(db, tenant, child["id"]) for child in seen.children] if children else []
            known = {one.trace["id"]: one for one in below}
            pen.draw(tree(seen, known.__getitem__ if children else None))
            if seen.ended and all(one.ended for one in below):
                return seen
            if end is not None and time.monotonic() >= end:
                raise StillWorking(f"trace {trace_id} has not ended", value=f"{seen.trace['status']} after {timeout:g} s",
                                   next=f"agentmesh trace show {trace_id} --follow")  # fmt: skip
            wait(LOOK_S)


class _Nothing:
    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def draw(self, node: Node) -> None:
        """Nothing is drawn."""


class _Live(_Nothing):
    """The tree in place, on stderr while it grows: what stays is printed once at the end."""

    def __init__(self) -> None:
        from rich.live import Live

        from agentmesh.cli.output import console

        self._live = Live(console=console(), auto_refresh=False)

    def __enter__(self) -> _Live:
        self._live.__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        self._live.__exit__(*about)

    def draw(self, node: Node) -> None:
        self._live.update(rich_tree(node), refresh=True)


class _Lines(_Nothing):
    """Off a terminal: each event as a line of talk when it is committed, and the tree at the end."""

    def __init__(self, db: Database, tenant: str, trace_id: UUID) -> None:
        self._db, self._tenant, self._id, self._seen = db, tenant, trace_id, 0
        self._last: Node | None = None

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            show(self._last)

    def draw(self, node: Node) -> None:
        self._last = node
        for event in timeline.events(self._db, self._tenant, self._id, after=self._seen):
            self._seen = event["seq"]
            say(f"{event['seq']:>4} {event['name']}")
