"""Undoing: what was done is undone newest first, and what cannot be undone is parked for a person."""

import pytest

from agentmesh.execution.tools import register_tool
from agentmesh.state import rewind


@pytest.fixture
def shop(tools):
    """A shop's ledger: reserve and charge can be undone, ship fails where it is told to, stubborn undoes nothing."""
    ledger = []

    def declare(name, undo, **more):
        @register_tool(name, registry=tools, attempts=1, compensate=undo, **more)
        def do(n: int = 0) -> int:
            ledger.append(f"{name} {n}")
            return n * 10

        @register_tool(undo, registry=tools, attempts=1, **more)
        def undone(args: dict, result: int) -> None:
            ledger.append(f"{undo} {args['n']} {result}")
            if name == "stubborn":
                raise ValueError("it stays")

    declare("reserve", "release")
    declare("charge", "refund", inline=True)
    declare("stubborn", "try_undo")

    @register_tool("ship", registry=tools, attempts=1)
    def ship(fail: bool = False) -> str:
        if fail:
            raise ValueError("no truck")
        return "shipped"

    return ledger


def use(tool, n):
    return {"tools": [{"tool": tool, "args": {"n": n}}], "id": f"{tool}-{n}"}


SHIP = {"tool": "ship", "args": {"fail": {"=": "has(payload.fail)"}}}
STEPS = [use("reserve", 1), use("charge", 2), {"tools": [SHIP], "id": "ship", "on_fail": "compensate"}]


@pytest.fixture
def run(make_lab, shop):
    def go(steps, payload=None, **chain):
        lab = make_lab(chain={"chain": "c", "steps": steps, **chain})
        trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload or {})
        lab.drain()
        return lab, trace

    return go


def test_what_was_done_is_undone_newest_first_and_the_trace_fails_with_the_first_failure(run, shop):
    lab, trace = run(STEPS, {"fail": True})
    assert shop == ["reserve 1", "charge 2", "refund 2 20", "release 1 10"]
    assert (trace.status(), lab.trace(trace)["error"]["code"]) == ("failed", "E_TOOL")
    assert "EXEC_COMPENSATE" in lab.events(trace)


def test_nothing_is_undone_where_all_went_well(run, shop):
    _, trace = run(STEPS)
    assert (trace.result(0), shop) == ("shipped", ["reserve 1", "charge 2"])


def test_what_cannot_be_undone_is_parked_and_the_rest_is_undone(run, shop):
    lab, trace = run([use("reserve", 1), use("stubborn", 2), STEPS[2]], {"fail": True})
    assert shop[-2:] == ["try_undo 2 20", "release 1 10"]
    [letter] = lab.rows("SELECT code, evidence FROM mesh.dead_letters")
    assert (letter["code"], letter["evidence"]["tool"], trace.status()) == ("E_NOT_UNDONE", "try_undo", "failed")


def test_a_chain_may_undo_on_any_failure(run, shop):
    steps = [use("reserve", 1), {"tools": [{"tool": "ship", "args": {"fail": True}}]}]
    _, trace = run(steps, on_fail="compensate")
    assert (shop, trace.status()) == (["reserve 1", "release 1 10"], "failed")


def test_a_rewind_undoes_what_was_done_since_and_goes_on_from_there(run, shop):
    lab, trace = run(STEPS)
    done = rewind.rewind(lab.mesh.db, tenant="default", trace_id=trace.id, ordinal=3, by="ann")
    lab.bells.ring(done.rings)
    lab.drain()
    assert shop == ["reserve 1", "charge 2", "refund 2 20", "charge 2"]
    assert trace.result(0) == "shipped"


def test_a_cancel_that_undoes_ends_cancelled_when_all_is_undone(run, shop):
    lab, trace = run([use("reserve", 1), {"signal": "never"}])
    undone = rewind.undo(lab.mesh.db, tenant="default", trace_id=trace.id, by="ann")
    lab.bells.ring(undone.rings)
    lab.drain()
    assert (shop, trace.status(), lab.events(trace)[-1]) == (["reserve 1", "release 1 10"], "cancelled", "EXEC_CANCEL")
