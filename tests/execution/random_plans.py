"""Random plans of every node kind, and random worlds for them to run in. Their expressions are those of naive.py.

Everything is made by `pick`, which takes one of a sequence: hypothesis where a failure is to be shrunk, a generator of
random numbers where there are to be thousands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from agentmesh.execution.plan import TARGETS, BehaviorPlan
from agentmesh.records import Action, Failure, Policy, ToolUse, Verdict
from tests.execution.naive import Turn

Pick = Callable[[Sequence[Any]], Any]

KINDS = ("reason", "tools", "for_each", "set", "jump", "switch", "wait", "signal", "approval", "delegate")
MOVES = ("set", "jump", "switch", "finish", "fail")
CONDITIONS = ("true", "false", "has(vars.n) && vars.n < 3", "result.flag", "payload.kind == 'a'", "vars.deep.flag")
DARING = (*CONDITIONS, "vars.n > 2", "result", "payload.kind")
COUNT = {"=": "has(vars.n) ? vars.n + 1 : 0"}
VALUES = (0, 1, 2, True, "text", [1, 2], COUNT, COUNT, {"=": "result"}, [{"=": "result"}, {"deep": {"=": "null"}}])
RESULTS = (None, {"flag": True}, {"flag": False}, [], [5, 6], 2, True)
REQUIRE = ("all", "any", "each", 1, 2, 9)
WAITS: tuple[dict[str, Any], ...] = (
    {"seconds": 1.5}, {"seconds": COUNT}, {"until": {"=": "'2030-01-01T00:00:00+01:00'"}}, {"cron": "0 9 * * *"},
)  # fmt: skip
WRONG_WAITS: tuple[dict[str, Any], ...] = (
    {"seconds": {"=": "index * 10"}}, {"seconds": {"=": "result"}}, {"seconds": {"=": "-1"}},
    {"until": {"=": "'2030-01-01T00:00:00'"}}, {"until": {"=": "null"}},
)  # fmt: skip

TERMS: tuple[dict[str, Any], ...] = (
    {}, {}, {"vote": "result.kind"}, {"vote": "has(vars.n) ? vars.n + 1 : 0", "quorum": 2}, {"accept": "result.flag"},
    {"accept": "payload.kind == 'a'", "within_s": 60},
)  # fmt: skip


def rarely(pick: Pick) -> bool:
    return bool(pick((False,) * 11 + (True,)))


def make_plan(pick: Pick) -> BehaviorPlan:
    """Mostly one node goes on to the next, and behind a reasoner stand the tools it chose."""
    names = [f"n{place}" for place in range(pick((1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13)))]
    nodes: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        last = place + 1 == len(names)
        kind = pick((*KINDS, "finish", "fail") if last or rarely(pick) else KINDS)
        if nodes and nodes[-1]["kind"] == "reason" and pick((True, False)):
            kind = "tools"
        behind = None if last else names[place + 1]
        made: dict[str, Any] = {"id": name, "kind": kind}
        made["next"] = pick((None, *names, *names)) if rarely(pick) else behind
        if rarely(pick):
            made["when"] = pick(DARING)
        _fill(made, pick, (*names, *names, *TARGETS))
        if kind == "tools" and nodes and nodes[-1]["kind"] == "reason" and nodes[-1]["next"] == name:
            made["slots"] = None
        nodes.append(made)
    body: dict[str, Any] = {
        "chain": "random",
        "nodes": [{key: one for key, one in node.items() if one is not None} for node in nodes],
    }
    if rarely(pick):
        body["on_fail"] = pick((*names, *TARGETS))
    return BehaviorPlan.model_validate_json(json.dumps(body))


def _fill(made: dict[str, Any], pick: Pick, targets: Sequence[str]) -> None:  # noqa: PLR0912, PLR0915 - one a kind
    if made["kind"] not in MOVES:
        made["otherwise"] = pick(("next",) * 8 + ("trigger", "finish"))
        made["on_fail"] = pick(targets) if pick((True, False)) else None
        made["on_timeout"] = pick(targets) if rarely(pick) else None
    match made["kind"]:
        case "tools":
            slots = [[_use(pick, VALUES) for _ in range(pick((1, 1, 2)))] for _ in range(pick((1, 2, 3)))]
            made["slots"] = None if rarely(pick) else slots
            made |= {"strategy": pick(("serial", "parallel", "fallback", "mixed")), "require": pick(REQUIRE)}
        case "for_each":
            made["items"] = pick(("payload.items",) * 5 + ("vars.list", "result"))
            made["use"] = _use(pick, ({"=": "item"}, {"=": "index * 10"}, {"=": "result"}))
            made |= {"limit": pick((1, 2, 100)), "require": pick(REQUIRE)}
        case "set":
            made["values"] = {name: pick(VALUES) for name in pick((("n",), ("m",), ("n", "m")))}
            if pick((True, False)):
                made["values"]["list"] = pick(([], [1, 2], {"=": "payload.items"}, {"=": "result"}))
        case "jump":
            made |= {"then": pick(targets), "limit": pick((1, 2, 5, 100))}
            made["when"] = pick((None, *CONDITIONS))
        case "switch":
            made["cases"] = [{"when": pick(CONDITIONS), "then": pick(targets)} for _ in range(pick((1, 2)))]
            made["limit"] = pick((1, 2, 5, 100))
        case "wait":
            made |= pick(WRONG_WAITS if rarely(pick) else WAITS)
        case "signal":
            made |= {"signal": "s", "within_s": pick((None, 60)), "payload_schema": pick((None, {"type": "object"}))}
        case "approval":
            made |= {"ask": pick(VALUES), "within_s": pick((None, 60)), "who": pick(([], ["ann"]))}
            made["escalate"] = pick((None, {"after_s": 1, "who": ["bob"]}))
        case "delegate":
            made["errands"] = [{"label": "e", "agent": "other", "payload": pick(VALUES)}]
            made["wait"] = pick((True, True, False))
            if made["wait"] and pick((True, False, False)):
                made["each"] = pick(("payload.items",) * 3 + ("vars.list", "result"))
                made["errands"][0]["payload"] = pick(({"=": "item"}, {"n": {"=": "index * 10"}}, {"=": "result"}))
            elif made["wait"]:
                made |= pick(TERMS)
        case "finish":
            made["result"] = pick((None, *VALUES))
        case "fail":
            made["code"] = "E_MINE"


def _use(pick: Pick, values: Sequence[Any]) -> dict[str, Any]:
    return {"tool": pick(("t", "u")), "args": {"x": pick(values)}, "as": pick((None, "a", "b"))}


def make_policy(pick: Pick) -> Policy:
    return Policy(
        max_steps=pick((1, 4, 9) + (25,) * 6), reasoner_attempts=pick((1, 2)), callback_attempts=pick((1, 2)),
        on_fail=pick(("callback", "callback", "fail")), on_callback_fail=pick(("fail", "finish")),
        trigger_next_action=pick((True, False)),
    )  # fmt: skip


CHOSEN = ToolUse.model_validate({"tool": "t", "args": {"x": {"=": "not filled: a reasoner's own"}}})
SAID = (*(Action(answer=one) for one in RESULTS), *(Action(slots=((CHOSEN,),), strategy="mixed"),) * 4)
FAILURES = tuple(Failure(code, "x", permanent=hard) for code in ("E_X", "E_TIMEOUT") for hard in (True, False))
VERDICTS = (
    Verdict(kind="continue"), Verdict(kind="finish"), Verdict(kind="finish", result=5), Verdict(kind="abort", reason="no"),
    Verdict(kind="goto", to="n0"), Verdict(kind="goto", to="n1"), Verdict(kind="goto", to="away"),
    Verdict(kind="delegate", to="other", intent="i", result=4),
)  # fmt: skip


def make_world(pick: Pick) -> list[Turn]:
    """What happens at step after step, again from the beginning where there are more steps."""
    return [
        Turn(
            says=tuple(pick(FAILURES) if rarely(pick) else pick(SAID) for _ in range(pick((1, 2)))),
            failure=pick(FAILURES) if rarely(pick) else None,
            value=pick(RESULTS),
            rules=tuple(pick((*VERDICTS, *FAILURES)) if rarely(pick) else None for _ in range(pick((1, 2)))),
        )
        for _ in range(pick(range(1, 7)))
    ]
