"""Agents beside and against one another on real rows: who is asked, whose answer counts, who is cancelled."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from agentmesh import define_agent
from agentmesh.errors import NotRetryable
from agentmesh.execution import errands, moving
from agentmesh.execution.tools import register_tool
from agentmesh.state import byhand, offers, retry, rewind, signals
from agentmesh.state import children as between

VOTERS = ("ann", "bob", "cid")


@pytest.fixture
def world(make_lab, tools):
    """world(*steps, say={agent: answer}) -> lab: a boss with this chain, and agents that offer `judge` and answer so.

    An agent that says `...` calls a tool and waits for it; one that says an exception fails. `slow` is the tool.
    """

    @register_tool("slow", registry=tools, attempts=1)
    def slow() -> int:
        return 1

    def mind(say: dict[str, Any], name: str) -> Any:
        def decide(session: Any) -> Any:
            said = say[name]
            if isinstance(said, Exception):
                raise said
            return {"tools": ["slow"]} if said is ... else {"answer": said}

        return decide

    def make(*steps: Any, say: dict[str, Any], **keys: Any) -> Any:
        agents = [
            define_agent(name, reasoner=mind(say, name), tools=["slow"], grants=["*"], capabilities=["judge"],
                         policy={"reasoner_attempts": 1}, **keys)
            for name in say
        ]  # fmt: skip
        return make_lab(*agents, chain={"chain": "c", "steps": list(steps)})

    return make


def go(lab: Any, payload: Any = None) -> Any:
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload or {})
    lab.drain()
    return trace


def children(lab: Any, trace: Any) -> dict[str, str]:
    """How each child ended, once what is owed has been paid."""
    for call in between.unwanted(lab.mesh.db, batch=10):
        between.drop(lab.mesh.db, call)
    rows = lab.rows("SELECT agent, status FROM mesh.traces WHERE parent_id = %(id)s ORDER BY id", id=trace.id)
    return {row["agent"]: row["status"] for row in rows}


def told(lab: Any, trace: Any) -> list[dict[str, Any]]:
    return [one["body"] for one in lab.mesh.trace_writer.get(trace.id) if one["name"] == "EXEC_DELEGATE"]


# --- a capability


def busy(lab: Any, agent: str, traces: int) -> None:
    """So many traces wait for this agent."""
    for _ in range(traces):
        lab.mesh.router.dispatch("work", "tester", agent, "c-2", {})
    lab.bells.waiting.clear()


def live(lab: Any, *agents: str) -> Any:
    holder = lab.worker("-".join(agents))
    lab.rows("UPDATE mesh.workers SET agents = %(agents)s WHERE id = %(id)s", agents=list(agents), id=holder.worker_id)
    return holder


def test_whoever_offers_it_and_has_least_to_do_is_asked_and_the_choice_is_told(world):
    lab = world({"delegate": {"capability": "judge"}}, say=dict.fromkeys(VOTERS, 7))
    live(lab, *VOTERS)
    busy(lab, "ann", 2)
    busy(lab, "cid", 1)
    trace = go(lab)
    assert (trace.result(0), children(lab, trace)) == (7, {"bob": "done"})
    sent = told(lab, trace)[0]
    assert (sent["to"], sent["capability"]) == ("bob", "judge")
    assert {one["agent"]: (one["load"], one["workers"]) for one in sent["candidates"]} == {
        "ann": (2, 1),
        "bob": (0, 1),
        "cid": (1, 1),
    }


def test_an_agent_with_live_workers_is_asked_before_one_whose_workers_are_away(world):
    lab = world({"delegate": {"capability": "judge"}}, say=dict.fromkeys(VOTERS, 7))
    holder = live(lab, "ann")
    live(lab, "bob")
    busy(lab, "bob", 3)
    lab.kill(holder)
    assert children(lab, go(lab)) == {"bob": "done"}


def test_a_paused_agent_is_asked_last_and_its_child_waits_for_its_resume(world):
    lab = world({"delegate": {"capability": "judge"}}, say={"ann": 1, "bob": 2})
    live(lab, "ann", "bob")
    lab.mesh.lifecycle.pause("ann", by="me")
    assert children(lab, go(lab)) == {"bob": "done"}
    lab.mesh.lifecycle.pause("bob", by="me")
    assert set(children(lab, go(lab)).values()) == {"queued"}


def test_what_waits_for_its_steps_counts_as_load(world):
    lab = world({"delegate": {"capability": "judge"}}, say={"ann": ..., "bob": 1})
    live(lab, "ann", "bob")
    lab.mesh.router.dispatch("work", "tester", "ann", "c-2", {})
    while not lab.rows("SELECT 1 FROM mesh.steps WHERE agent = 'ann' AND status = 'joined'"):
        lab.answer()
    lab.bells.waiting.clear()
    assert children(lab, go(lab)) == {"bob": "done"}


def test_what_a_worker_holds_and_what_limits_hold_back_count_as_load(make_lab):
    loads: list[int] = []

    def mind(_session: Any) -> Any:
        loads.extend(
            row["load"]
            for row in offers.of(lab.mesh.db, tenant="default", capability="judge", intent="work", besides="")
        )
        return {"answer": 1}

    ann = define_agent("ann", reasoner=mind, capabilities=["judge"], limits={"total": 2})
    lab = make_lab(ann)
    lab.rows("UPDATE mesh.workers SET agents = '{ann}'")
    for _ in range(4):
        lab.mesh.router.dispatch("work", "tester", "ann", "c-1", {})
    lab.drain()
    assert loads == [4, 3, 2, 1]  # one is worked on, one is queued, the others are held


def test_so_many_are_others_than_those_that_are_named_and_go_by_their_own_names(world):
    lab = world({"delegate": ["ann", {"capability": "judge", "count": 2}]}, say={"ann": 1, "bob": 2, "cid": 3})
    live(lab, *VOTERS)
    busy(lab, "bob", 3)
    busy(lab, "cid", 3)
    assert go(lab).result(0) == {"ann": 1, "bob": 2, "cid": 3}


def test_all_are_those_with_live_workers(world):
    lab = world({"delegate": {"capability": "judge", "count": "all"}}, say={"ann": 1, "bob": 2, "cid": 3})
    live(lab, "ann", "cid")
    assert go(lab).result(0) == {"ann": 1, "cid": 3}


def test_two_errands_for_one_capability_are_spread(world):
    errand = [{"capability": "judge", "as": "one"}, {"capability": "judge", "as": "two"}]
    lab = world({"delegate": errand}, say={"ann": 1, "bob": 2})
    assert sorted(go(lab).result(0).values()) == [1, 2]


def test_a_child_nobody_waits_for_is_sent_to_whoever_offers_it_each_time(world):
    again = {"set": {"n": {"=": "has(vars.n) ? vars.n + 1 : 1"}}, "id": "again"}
    lab = world(again, {"delegate": {"capability": "judge"}, "wait": False, "payload": {"n": {"=": "vars.n"}}},
                {"jump_if": "vars.n < 3", "then": "again"}, say={"ann": 1})  # fmt: skip
    trace = go(lab)
    rows = lab.rows("SELECT payload->'n' AS n FROM mesh.traces WHERE parent_id = %(id)s ORDER BY id", id=trace.id)
    assert [row["n"] for row in rows] == [1, 2, 3]


def test_a_capability_that_nobody_offers_goes_where_on_fail_says_and_is_told(world):
    lab = world({"delegate": {"capability": "juge"}, "on_fail": "sorry"}, {"finish": "fine"}, {"finish": "sorry", "id": "sorry"},
                say={"ann": 1})  # fmt: skip
    trace = go(lab)
    assert trace.result(0) == "sorry"
    assert lab.steps(trace)[1]["error"] == {
        "code": "E_NO_AGENT", "message": "no other agent offers this capability", "value": "juge",
        "expected": "one of judge · did you mean judge?",
    }  # fmt: skip


def test_an_agent_does_not_ask_itself(make_lab):
    asked = {"chain": "c", "steps": [{"delegate": {"capability": "judge"}}]}
    lab = make_lab(chain=asked, capabilities=["judge"])
    assert lab.trace(go(lab))["error"] == {
        "code": "E_NO_AGENT", "message": "no other agent offers this capability", "value": "judge", "expected": "one of none",
    }  # fmt: skip


def test_an_agent_that_nobody_announced_goes_where_on_fail_says_too(world):
    lab = world(
        {"delegate": "nobody", "on_fail": "sorry"}, {"finish": "fine"}, {"finish": "sorry", "id": "sorry"}, say={}
    )
    trace = go(lab)
    assert (trace.result(0), lab.steps(trace)[1]["error"]["code"]) == ("sorry", "E_AGENT_UNKNOWN")


def test_without_on_fail_the_trace_fails_with_what_was_wrong(world):
    lab = world({"delegate": {"capability": "judge", "count": 3}}, say={"ann": 1})
    trace = go(lab)
    assert lab.trace(trace)["error"]["code"] == "E_NO_AGENT"
    assert lab.rows("SELECT count(*) AS n FROM mesh.traces")[0]["n"] == 1


def test_whoever_is_chosen_has_no_more_permissions_than_the_errand(world):
    lab = world({"delegate": {"capability": "judge", "permissions": []}}, say={"ann": 1})
    trace = go(lab)
    assert lab.rows("SELECT permissions FROM mesh.traces WHERE parent_id = %(id)s", id=trace.id) == [
        {"permissions": []}
    ]


# --- a vote, a quorum


VOTE = {"delegate": list(VOTERS), "vote": "result.kind"}


def test_a_vote_is_what_most_answered(world):
    say = {"ann": {"kind": "a"}, "bob": {"kind": "b"}, "cid": {"kind": "b"}}
    lab = world(VOTE, {"finish": {"=": "{'now': result, 'then': steps.delegate.answer}"}}, say=say)
    trace = go(lab)
    poll = {"answer": "b", "votes": 2, "of": 3, "by": {"ann": "a", "bob": "b", "cid": "b"}}
    assert trace.result(0) == {"now": poll, "then": "b"}
    assert told(lab, trace)[-1] == {"decided": "b"}


def test_a_quorum_is_enough_and_the_last_voter_is_cancelled(world):
    say = {"ann": {"kind": "a"}, "bob": {"kind": "a"}, "cid": ...}
    lab = world(VOTE | {"quorum": "majority"}, say=say)
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    while trace.status() != "done":
        lab.answer()
    assert trace.result(0)["answer"] == "a"
    assert children(lab, trace) == {"ann": "done", "bob": "done", "cid": "cancelled"}


def test_a_quorum_that_can_no_longer_be_reached_is_not_waited_for(world):
    lab = world(VOTE | {"quorum": 3, "on_fail": "judge"}, {"finish": "fine"}, {"finish": {"=": "result"}, "id": "judge"},
                say={"ann": {"kind": "a"}, "bob": ValueError("no"), "cid": ...})  # fmt: skip
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    while trace.status() != "done":
        lab.answer()
    assert trace.result(0) == {"ann": {"kind": "a"}}
    assert lab.steps(trace)[1]["error"]["code"] == "E_NO_QUORUM"
    assert children(lab, trace)["cid"] == "cancelled"


def test_a_vote_that_failed_is_not_retried_in_place(world):
    lab = world(VOTE | {"quorum": 2}, say={"ann": {"kind": "a"}, "bob": {"kind": "b"}, "cid": {"kind": "c"}})
    trace = go(lab)
    assert lab.trace(trace)["error"] == {
        "code": "E_NO_QUORUM",
        "message": 'no answer has 2 of 3 votes: "a" 1, "b" 1, "c" 1',
    }
    with pytest.raises(NotRetryable):
        retry.retry(lab.mesh.db, tenant="default", trace_id=trace.id, by="me")


def test_two_votes_that_end_at_once_are_both_seen(world, monkeypatch):
    lab = world(VOTE | {"quorum": 2}, say={"ann": {"kind": "a"}, "bob": {"kind": "a"}, "cid": ...})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    monkeypatch.setattr(moving, "pay", lambda *_: ())
    for _ in range(3):
        lab.answer()
    lab.bells.waiting.clear()
    ended = [row["id"] for row in between.owed(lab.mesh.db, batch=10)]
    rung = lab.at_lock("steps", lab.step(trace)["id"], *(partial(errands.pay, lab.mesh.db, one) for one in ended))
    assert sorted(len(one) for one in rung) == [0, 1]
    lab.bells.ring([ring for one in rung for ring in one])
    lab.drain()
    assert trace.result(0)["answer"] == "a"
    assert children(lab, trace)["cid"] == "cancelled"


@pytest.mark.parametrize(("terms", "why"), [
    ({"vote": "result.kind"}, '2 of 3 have ended: ann votes "a", bob counts for nothing; open: cid (running)'),
    ({"accept": "result.kind == 'b'"}, "2 of 3 have ended: ann is refused, bob counts for nothing; open: cid (running)"),
])  # fmt: skip
def test_a_dump_says_how_far_a_contest_is(world, terms, why):
    lab = world({"delegate": list(VOTERS), **terms}, say={"ann": {"kind": "a"}, "bob": ValueError("no"), "cid": ...})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    for _ in range(4):
        lab.answer()
    lab.bells.waiting.clear()
    assert lab.mesh.dumps.dump(trace.id)["next"][0]["why"] == why


def test_a_poll_that_a_person_settles_goes_on_with_what_was_said(world):
    lab = world(VOTE, {"finish": {"=": "result"}}, say=dict.fromkeys(VOTERS, ...))
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    lab.answer()
    lab.bells.ring([byhand.settle(lab.mesh.db, tenant="default", trace_id=trace.id, result="mine", by="me")])
    lab.drain()
    assert trace.result(0) == "mine"


# --- bids


BIDS = {"delegate": list(VOTERS), "accept": "result.price < payload.most"}


def test_the_first_acceptable_bid_wins_and_the_others_are_cancelled(world):
    lab = world(BIDS, say={"ann": {"price": 9}, "bob": {"price": 3}, "cid": ...})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"most": 5})
    while trace.status() != "done":
        lab.answer()
    assert trace.result(0) == {"winner": "bob", "answer": {"price": 3}}
    assert children(lab, trace) == {"ann": "done", "bob": "done", "cid": "cancelled"}


def test_a_big_bid_wins_too(world):
    asked = BIDS | {"accept": "result.price < size(payload.text) - 99995"}
    lab = world(asked, say={"ann": {"price": 9}, "bob": {"price": 3, "text": "x" * 100_000}, "cid": ...})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"text": "y" * 100_000})
    while trace.status() != "done":
        lab.answer()
    assert (trace.result(0)["winner"], len(trace.result(0)["answer"]["text"])) == ("bob", 100_000)


def test_of_two_acceptable_bids_the_one_that_came_first_wins(world):
    lab = world(BIDS, say={"ann": {"price": 2}, "bob": {"price": 1}, "cid": {"price": 9}})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"most": 5})
    lab.answer()
    lab.bells.waiting.rotate(-1)  # bob is first, cid second, ann the last, and all have ended when the boss looks
    for _ in VOTERS:
        lab.answer()
    lab.drain()
    assert trace.result(0)["winner"] == "bob"


def test_without_an_acceptable_bid_the_step_fails(world):
    lab = world(BIDS | {"on_fail": "none"}, {"finish": 1}, {"finish": {"=": "result.ann"}, "id": "none"},
                say={"ann": {"price": 9}, "bob": {}, "cid": ValueError("no")})  # fmt: skip
    trace = go(lab, {"most": 5})
    assert trace.result(0) == {"price": 9}
    assert lab.steps(trace)[1]["error"]["message"] == "none of 3 answers was acceptable: 1 refused, 2 failed"


# --- time


def wait_out(lab: Any) -> None:
    for due in signals.due(lab.mesh.db, batch=10):
        lab.bells.ring(signals.wake(lab.mesh.db, due))
    lab.drain()


def test_bids_that_have_not_come_in_time_are_not_waited_for(world, tools):
    late = {"within": "1h", "on_timeout": "late"}
    lab = world(BIDS | late, {"finish": 1}, {"finish": "late", "id": "late"},
                say={"ann": {"price": 9}, "bob": ..., "cid": ...})  # fmt: skip
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"most": 5})
    for _ in range(4):
        lab.answer()
    lab.bells.waiting.clear()
    lab.shift(3601)
    wait_out(lab)
    assert (trace.result(0), lab.steps(trace)[1]["error"]["code"]) == ("late", "E_TIMEOUT")
    assert children(lab, trace) == {"ann": "done", "bob": "cancelled", "cid": "cancelled"}


def test_a_poll_is_closed_by_its_time_and_whoever_has_voted_has(world):
    lab = world(VOTE | {"within": "1h"}, say={"ann": {"kind": "a"}, "bob": ..., "cid": ...})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    for _ in range(4):
        lab.answer()
    lab.bells.waiting.clear()
    lab.shift(3601)
    wait_out(lab)
    assert trace.result(0) == {"answer": "a", "votes": 1, "of": 3, "by": {"ann": "a"}}


@pytest.mark.parametrize("first", [0, 1])
def test_an_answer_that_meets_the_end_of_its_time_counts_until_somebody_looks(world, monkeypatch, first):
    lab = world({"delegate": "ann", "within": "1h", "on_timeout": "late"}, {"finish": {"=": "result"}},
                {"finish": "late", "id": "late"}, say={"ann": 4})  # fmt: skip
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    monkeypatch.setattr(moving, "pay", lambda *_: ())
    lab.drain()
    lab.shift(3601)
    [child], [due] = between.owed(lab.mesh.db, batch=10), signals.due(lab.mesh.db, batch=10)
    both = [partial(errands.pay, lab.mesh.db, child["id"]), partial(signals.wake, lab.mesh.db, due)]
    rung = lab.at_lock("steps", lab.step(trace)["id"], *(both[::-1] if first else both))
    monkeypatch.undo()
    lab.bells.ring([ring for one in rung for ring in one])
    lab.drain()
    assert trace.result(0) == 4
    assert children(lab, trace) == {"ann": "done"}


def test_a_poll_that_came_to_nothing_is_rewound_and_held_again(world):
    say = {"ann": {"kind": "a"}, "bob": {"kind": "b"}, "cid": ValueError("no")}
    lab = world(VOTE | {"quorum": 2, "payload": {"n": {"=": "payload.n"}}}, {"finish": {"=": "result.answer"}}, say=say)
    trace = go(lab, {"n": 1})
    assert trace.status() == "failed"
    say["bob"] = {"kind": "a"}
    rewound = rewind.rewind(lab.mesh.db, tenant="default", trace_id=trace.id, ordinal=2, by="me")
    lab.bells.ring(rewound.rings)
    lab.drain()
    assert (trace.result(0), len(children(lab, trace))) == ("a", 3)


def test_an_errand_that_ends_in_time_goes_on_at_once(world):
    lab = world({"delegate": "ann", "within": "1h"}, say={"ann": 4})
    assert go(lab).result(0) == 4


def test_chains_may_lie_in_one_another_deeper_than_json_may(make_mesh, tmp_path):
    deep = 40
    for level in range(deep):
        step = "finish: 1" if level == deep - 1 else f"chain: level-{level + 1}"
        (tmp_path / f"level-{level}.yaml").write_text(f"chain: level-{level}\nsteps:\n  - {step}\n")
    mesh, bells = make_mesh(define_agent("deep", chain="level-0"), agents__chains=str(tmp_path))
    trace = mesh.router.dispatch("work", "tester", "deep", "c-1", {})
    bells.drain(mesh)
    assert trace.result(0) == 1
    assert mesh.db.once("SELECT max(depth) AS deepest FROM mesh.traces") == [{"deepest": deep - 1}]
