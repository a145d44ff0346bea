"""Chains with `needs`: branches side by side, joins, and what becomes of the others when one ends the trace."""

import pytest

from agentmesh.errors import BadChain, NotRewindable
from agentmesh.execution import chain
from agentmesh.execution.tools import register_tool
from agentmesh.state import announced, children, retry, rewind, signals, steering


@pytest.fixture
def lab(make_lab, tools):
    """A lab whose chain the test gives; `run` notes each call, and fails where its name is in `lab.broken`."""
    seen, broken = [], set()

    def declare(name, **more):
        @register_tool(name, registry=tools, attempts=1, **more)
        def run(name: str, of: dict | None = None) -> str:
            seen.append(name)
            if name in broken:
                raise ValueError(name)
            return name.upper()

    declare("out")
    declare("here", inline=True)

    def make(*steps, **payload):
        made = make_lab(chain={"chain": "c", "steps": list(steps)})
        made.seen, made.broken = seen, broken
        made.t = made.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload)
        return made

    make.broken = broken
    return make


def step(name, *needs, tool="out", **more):
    return {"id": name, "tools": [{"tool": tool, "args": {"name": name}}], "needs": list(needs), **more}


DIAMOND = (step("a"), step("b", "a"), step("c", "a", tool="here"), step("d", "b", "c"))


def test_branches_begin_when_their_needs_have_ended_and_meet_again(lab):
    lab = lab(*DIAMOND)
    lab.drain()
    assert (lab.seen[0], sorted(lab.seen[1:3]), lab.seen[3:]) == ("a", ["b", "c"], ["d"])
    assert lab.t.result(0) == "D"


def test_branches_are_open_at_the_same_time(lab):
    lab = lab({"id": "one", "signal": "one", "needs": []}, {"id": "two", "signal": "two", "needs": []},
              {"id": "last", "finish": {"=": "steps.one + steps.two"}, "needs": ["one", "two"]})  # fmt: skip
    lab.drain()
    assert [one["node"] for one in lab.steps(lab.t) if one["status"] == "waiting"] == ["one", "two"]
    for name in ("two", "one"):
        sent = signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name=name, payload=name, by="ann")
        lab.bells.ring(sent.rings)
        lab.drain()
    assert lab.t.result(0) == "onetwo"


def test_a_step_that_is_passed_over_counts_as_ended_for_those_that_need_it(lab):
    lab = lab(step("a"), step("b", "a", when="false"), step("c", "b"))
    lab.drain()
    assert lab.seen == ["a", "c"]


def test_a_branch_that_fails_ends_the_trace_and_closes_the_others(lab):
    lab.broken.add("bad")
    lab = lab(step("bad"), {"id": "slow", "wait": "1d", "needs": []}, step("last", "bad", "slow"))
    lab.drain()
    assert lab.t.status() == "failed"
    assert {one["node"]: one["status"] for one in lab.steps(lab.t) if one["kind"] != "start"} == {
        "bad": "failed", "slow": "cancelled",
    }  # fmt: skip


def test_a_branch_that_may_fail_lets_the_others_go_on(lab):
    lab.broken.add("bad")
    lab = lab(step("bad", on_fail="skip"), step("good"), step("last", "bad", "good"))
    lab.drain()
    assert (lab.t.result(0), sorted(lab.seen)) == ("LAST", ["bad", "good", "last"])


def test_a_paused_trace_begins_no_branch_until_it_is_resumed(lab):
    lab = lab(*DIAMOND)
    lab.answer()
    steering.pause(lab.mesh.db, tenant="default", trace_id=lab.t.id, by="ann")
    lab.drain()
    assert lab.seen == ["a"]
    lab.bells.ring(steering.resume(lab.mesh.db, tenant="default", trace_id=lab.t.id, by="ann").rings)
    lab.drain()
    assert lab.t.result(0) == "D"


def test_branches_may_send_children(lab):
    branches = {"x": [{"finish": 1}], "y": [{"finish": 2}]}
    lab = lab(step("a"), {"id": "both", "parallel": branches, "needs": ["a"]}, step("c", "a"),
              {"id": "last", "finish": {"=": "steps.both"}, "needs": ["both", "c"]})  # fmt: skip
    lab.drain()
    assert lab.t.result(0) == {"x": 1, "y": 2}
    assert children.unwanted(lab.mesh.db, batch=5) == []


def test_a_failed_branch_is_retried_with_those_it_had_closed(lab):
    lab.broken.add("bad")
    lab = lab(step("bad"), {"id": "other", "signal": "go", "needs": []}, step("last", "bad", "other"))
    lab.drain()
    lab.broken.clear()
    lab.bells.ring(retry.retry(lab.mesh.db, tenant="default", trace_id=lab.t.id, by="ann"))
    lab.drain()
    lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", by="ann").rings)
    lab.drain()
    assert lab.t.result(0) == "LAST"


def at(lab, node):
    """The number of the node's newest step."""
    return [one["ordinal"] for one in lab.steps(lab.t) if one["node"] == node and one["status"] != "superseded"][-1]


def order(lab, ordinal):
    done = rewind.rewind(lab.mesh.db, tenant="default", trace_id=lab.t.id, ordinal=ordinal, by="ann")
    lab.bells.ring(done.rings)
    return done


def back(lab, ordinal):
    done = order(lab, ordinal)
    lab.drain()
    return done


def test_a_trace_with_branches_is_rewound_as_a_whole_at_its_first_step(lab):
    lab = lab(*DIAMOND)
    lab.drain()
    back(lab, 1)
    assert sorted(lab.seen) == sorted(["a", "b", "c", "d"] * 2)


def test_a_branch_is_rewound_with_what_needed_it_and_no_other(lab):
    lab = lab(*DIAMOND)
    lab.drain()
    done = back(lab, at(lab, "b"))
    assert lab.seen[4:] == ["b", "d"]
    assert (lab.t.result(0), done.node, done.parked) == ("D", "b", ())
    assert done.restored == ("short_term:result:b", "short_term:result:d")
    superseded = {one["node"] for one in lab.steps(lab.t) if one["status"] == "superseded"}
    assert superseded == {"start", "b", "d"}
    assert lab.trace(lab.t)["state"]["marks"] == dict.fromkeys("abcd", "done")


def fork(lab, node, **changes):
    made = lab.mesh.forks.fork(lab.t.id, at(lab, node), changes=changes, by="ann")
    lab.drain()
    return made


def test_a_fork_at_a_branch_has_what_the_others_came_to(lab):
    lab = lab(*DIAMOND)
    lab.drain()
    made = fork(lab, "b")
    assert lab.seen[4:] == ["b", "d"]
    assert (made.result(0), lab.t.result(0)) == ("D", "D")
    rows = lab.rows(
        "SELECT type, key FROM mesh.memory WHERE trace_id = %(id)s AND origin = 'fork' ORDER BY key", id=made.id
    )
    assert [one["key"] for one in rows] == ["result:a", "result:c"]
    ordinals = [one["ordinal"] for one in lab.steps(made)]
    assert len(set(ordinals)) == len(ordinals)


def test_a_branch_that_was_open_begins_in_the_fork_as_well(lab):
    lab = lab({"id": "told", "signal": "go", "needs": []}, step("b"), step("c", "b", "told"))
    lab.drain()
    made = fork(lab, "b")
    for one in (made, lab.t):
        lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=one.id, name="go", by="ann").rings)
        lab.drain()
        assert one.result(0) == "C"
    assert lab.seen == ["b", "b", "c", "c"]


def test_a_fork_follows_no_plan_that_lacks_its_branch(lab, make_lab):
    lab = lab(*DIAMOND)
    lab.drain()
    other = chain.from_values({"chain": "c", "steps": [step("a"), step("z", "a")]})
    announced.keep_plan(lab.mesh.db, tenant_id="default", plan_hash=other.hash, chain="c", body=other.body())
    with pytest.raises(NotRewindable) as caught:
        lab.mesh.forks.fork(lab.t.id, at(lab, "b"), plan_hash=other.hash, by="ann")
    assert (caught.value.what, caught.value.value) == ("the plan to follow has no such node", "b")


def test_other_branches_wait_on_where_they_wait(lab):
    lab = lab({"id": "told", "signal": "go", "needs": []}, step("b"), step("c", "b", "told"))
    lab.drain()
    before = [one["id"] for one in lab.steps(lab.t) if one["status"] == "waiting"]
    back(lab, at(lab, "b"))
    assert [one["id"] for one in lab.steps(lab.t) if one["status"] == "waiting"] == before
    lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", by="ann").rings)
    lab.drain()
    assert (lab.t.result(0), lab.seen) == ("C", ["b", "b", "c"])


def test_what_the_end_of_the_trace_had_closed_begins_again_with_a_rewound_branch(lab):
    lab.broken.add("bad")
    lab = lab(
        step("good"), {"id": "told", "signal": "go", "needs": []}, step("bad", "good"), step("last", "bad", "told")
    )
    lab.drain()
    assert lab.t.status() == "failed"
    lab.broken.clear()
    back(lab, at(lab, "good"))
    lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", by="ann").rings)
    lab.drain()
    assert (lab.t.result(0), lab.seen) == ("LAST", ["good", "bad", "good", "bad", "last"])


def test_whoever_is_at_another_branch_loses_it_and_it_is_taken_again(lab):
    lab = lab(step("a"), {"id": "told", "signal": "go", "needs": []}, step("c", "told", tool="here"))
    lab.drain()
    [ring] = signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", by="ann").rings
    runtime = lab.mesh.runtime("puppet")
    with runtime.claimed(ring) as session:
        done = rewind.rewind(lab.mesh.db, tenant="default", trace_id=lab.t.id, ordinal=at(lab, "a"), by="ann")
        assert runtime.run(session) == "lost"
    lab.bells.ring(done.rings)
    lab.drain()
    assert (lab.t.status(), sorted(lab.seen)) == ("done", ["a", "a", "c"])


@pytest.fixture
def undoable(lab, tools):
    """A lab whose branches book what can be undone; `undo` fails for the names in `lab.broken`, with a minus before them."""
    noted = []

    @register_tool("undo", registry=tools, attempts=1)
    def undo(args: dict, result: str) -> None:
        noted.append("-" + args["name"])
        if "-" + args["name"] in lab.broken:
            raise ValueError(args["name"])

    @register_tool("book", registry=tools, compensate="undo")
    def book(name: str) -> str:
        noted.append(name)
        return name

    def make(*steps):
        made = lab(*steps)
        made.noted = noted
        return made

    return make


def booking(name, *needs, **more):
    return step(name, *needs, tool="book", **more)


PAIR = (booking("a"), booking("b", "a"), booking("c"), booking("d", "b", "c"))


def test_going_back_to_a_branch_undoes_what_it_and_those_that_needed_it_did_and_no_more(undoable):
    lab = undoable(*PAIR)
    lab.drain()
    del lab.noted[:]
    back(lab, at(lab, "b"))
    assert lab.noted == ["-d", "-b", "b", "d"]
    assert (lab.t.status(), lab.t.result(0)) == ("done", "d")


def test_a_branch_that_waits_goes_on_waiting_while_another_is_undone(undoable):
    lab = undoable(booking("b"), {"id": "go", "signal": "go", "needs": []}, booking("d", "b", "go"))
    lab.drain()
    back(lab, at(lab, "b"))
    assert lab.noted == ["b", "-b", "b"]
    assert [one["status"] for one in lab.steps(lab.t) if one["node"] == "go"] == ["waiting"]
    sent = signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", payload=None, by="ann")
    lab.bells.ring(sent.rings)
    lab.drain()
    assert (lab.noted[-1], lab.t.status()) == ("d", "done")


def test_going_back_once_more_while_it_is_undone_undoes_the_rest_and_nothing_twice(undoable):
    lab = undoable(*PAIR)
    lab.drain()
    del lab.noted[:]
    order(lab, at(lab, "b"))
    while lab.noted != ["-d"]:
        lab.answer()
    order(lab, at(lab, "compensate"))  # which stands for b now
    lab.drain()
    assert lab.noted == ["-d", "-b", "b", "d"]


def test_two_branches_that_go_back_undo_what_needed_both_of_them_once(undoable):
    lab = undoable(*PAIR)
    lab.drain()
    del lab.noted[:]
    for name in ("b", "c"):
        order(lab, at(lab, name))
    lab.drain()
    assert sorted(lab.noted) == ["-b", "-c", "-d", "b", "c", "d"]
    assert lab.noted[-1] == "d"


def test_a_retry_undoes_the_rest_of_a_branch_whose_undoing_the_failure_cut_short(undoable):
    lab = undoable(booking("a"), booking("b", "a"), {"id": "told", "signal": "go", "needs": []}, step("bad", "told"))
    lab.drain()
    lab.broken.add("bad")
    del lab.noted[:]
    order(lab, at(lab, "a"))
    while lab.noted != ["-b"]:
        lab.answer()
    lab.bells.waiting.clear()
    lab.bells.ring(signals.send(lab.mesh.db, tenant="default", trace_id=lab.t.id, name="go", by="ann").rings)
    lab.drain()
    assert lab.t.status() == "failed"
    lab.broken.clear()
    lab.bells.ring(retry.retry(lab.mesh.db, tenant="default", trace_id=lab.t.id, by="ann"))
    lab.drain()
    assert (lab.t.status(), lab.noted) == ("done", ["-b", "-a", "a", "b"])


def test_a_fork_of_a_branch_that_went_back_has_no_step_of_its_undoing(undoable):
    lab = undoable(*PAIR)
    lab.drain()
    back(lab, at(lab, "b"))
    lab.mesh.forks.fork(lab.t.id, at(lab, "b"), by="ann")
    lab.drain()
    forked = lab.rows("SELECT node FROM mesh.steps WHERE trace_id <> %(id)s ORDER BY ordinal", id=lab.t.id)
    assert sorted(one["node"] for one in forked if one["node"] != "start") == ["a", "b", "c", "d"]


def test_what_a_branch_cannot_undo_is_parked_and_it_begins_anew(undoable):
    lab = undoable(*PAIR)
    lab.drain()
    lab.broken.add("-b")
    back(lab, at(lab, "b"))
    assert [one["code"] for one in lab.rows("SELECT code FROM mesh.dead_letters")] == ["E_NOT_UNDONE"]
    assert lab.t.status() == "done"


def test_a_trace_that_has_undone_everything_goes_back_to_its_beginning_only(undoable):
    lab = undoable(*PAIR, step("last", "d", on_fail="compensate"))
    lab.broken.add("last")
    lab.drain()
    before = lab.everything()
    with pytest.raises(NotRewindable, match="what all branches have done is undone") as caught:
        back(lab, at(lab, "b"))
    assert (caught.value.value, caught.value.expected, lab.everything()) == ("b", "step 1", before)


@pytest.mark.parametrize(("steps", "said"), [
    ([step("a", "b"), step("b", "a")], "these steps need one another"),
    ([step("a", "z")], "no step has this id"),
    ([step("a"), step("b", "a"), {"jump_if": "true", "then": "a"}], "nothing jumps in a chain with needs"),
])  # fmt: skip
def test_needs_that_cannot_be_met_are_mistakes(steps, said):
    with pytest.raises(BadChain, match=said):
        chain.from_values({"chain": "c", "steps": steps})
