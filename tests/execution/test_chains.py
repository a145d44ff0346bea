"""Chains on real rows: every kind of node, the way a trace takes, and what it ends with."""

import pytest

from agentmesh import define_agent
from agentmesh.errors import AlreadyDecided, BadPayload, NotAsked, NotRetryable, Permanent
from agentmesh.execution.callbacks import HANDLERS
from agentmesh.execution.tools import register_tool
from agentmesh.records import Backoff
from agentmesh.state import children as between
from agentmesh.state import retry, signals, steering


@pytest.fixture
def shop(tools):
    """add: n + 1 · fast: the same, inline · boom: always fails · sure: fails where it is told to."""

    @register_tool("add", registry=tools, attempts=1)
    def add(n: int = 0) -> int:
        return n + 1

    @register_tool("fast", registry=tools, inline=True, attempts=1)
    def fast(n: int = 0) -> int:
        return n + 1

    @register_tool("boom", registry=tools, attempts=1, backoff=Backoff(base_s=0, cap_s=0))
    def boom() -> int:
        raise ValueError("boom")

    @register_tool("grade", registry=tools, inline=True)
    def grade(round_: int = 0) -> dict[str, bool]:
        return {"low_confidence": round_ < 2}


@pytest.fixture
def run(make_lab, shop):
    """run(*steps, **payload) -> (lab, trace), as far as it goes."""

    def go(*steps, payload=None, **keys):
        lab = make_lab(chain={"chain": "c", "steps": list(steps)}, **keys)
        trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload or {})
        lab.drain()
        return lab, trace

    return go


def nodes(lab, trace):
    return [one["node"] for one in lab.steps(trace)]


def result(trace):
    return trace.result(0)


def test_steps_follow_one_another_and_the_last_result_is_the_traces(run):
    lab, trace = run({"tools": ["fast"], "id": "one"}, {"tools": [{"tool": "add", "args": {"n": {"=": "result"}}}]})
    assert (nodes(lab, trace), result(trace)) == (["start", "one", "tools"], 2)


def test_one_call_runs_for_many_inputs(run):
    lab, trace = run({"tools": [{"tool": "add", "for": {"=": "payload.numbers"}}]},
                     payload={"numbers": [{"n": 3}, {"n": 1}]})  # fmt: skip
    assert (len(lab.calls(trace)), result(trace)) == (1, [4, 2])


def test_a_reasoner_decides_where_it_stands_in_the_chain(run):
    lab, trace = run({"tools": ["fast"]}, {"reasoner": "mind"}, {"tools": ["add"]},
                     reasoners={"mind": lambda session: {"answer": session.results["fast"] + 40}})  # fmt: skip
    assert nodes(lab, trace) == ["start", "tools", "mind", "tools-2"]
    assert lab.steps(trace)[2]["output"] == {"answer": 41}


def test_a_jump_goes_back_until_its_condition_holds_no_more(run):
    again = {"n": {"=": "has(vars.n) ? vars.n + 1 : 1"}}
    lab, trace = run({"set": again, "id": "count"}, {"tools": [{"tool": "grade", "args": {"round_": {"=": "vars.n"}}}]},
                     {"jump_if": "result.low_confidence", "then": "count"}, {"finish": {"rounds": {"=": "vars.n"}}})  # fmt: skip
    assert result(trace) == {"rounds": 2}
    assert [(one["node"], one["iteration"]) for one in lab.steps(trace)] == [("start", 1), ("tools", 1), ("tools", 2)]
    assert lab.events(trace).count("EXEC_JUMP") == 1


def test_a_jump_that_is_taken_too_often_fails_the_trace(run):
    _, trace = run({"tools": ["fast"]}, {"jump_if": "true", "then": "tools", "limit": 3})
    assert trace.status() == "failed"


@pytest.mark.parametrize(("kind", "path"), [("a", "left"), ("b", "right"), ("c", "other")])
def test_a_switch_takes_the_first_case_that_holds(run, kind, path):
    cases = [{"when": "payload.kind == 'a'", "then": "left"}, {"when": "payload.kind == 'b'", "then": "right"}]
    _, trace = run({"switch": cases, "else": "other"}, {"finish": "left", "id": "left"}, {"finish": "right", "id": "right"},
                   {"finish": "other", "id": "other"}, payload={"kind": kind})  # fmt: skip
    assert result(trace) == path


def test_a_step_whose_condition_is_false_is_passed_over(run):
    lab, trace = run({"tools": ["add"], "when": "has(payload.vip)"}, {"tools": ["fast"], "id": "last"})
    assert nodes(lab, trace) == ["start", "last"]


@pytest.mark.parametrize(("on_fail", "path", "status"), [
    (None, ["start", "risk"], "failed"), ("skip", ["start", "risk", "after", "rescue"], "done"),
    ("rescue", ["start", "risk", "rescue"], "done"), ("end", ["start", "risk"], "done"),
])  # fmt: skip
def test_a_failed_step_goes_where_on_fail_says(run, on_fail, path, status):
    risk = {"tools": ["boom"], "id": "risk"} | ({"on_fail": on_fail} if on_fail else {})
    lab, trace = run(risk, {"tools": ["fast"], "id": "after"}, {"tools": ["fast"], "id": "rescue"})
    assert (nodes(lab, trace), trace.status()) == (path, status)
    assert lab.steps(trace)[1]["status"] == "failed"


def test_a_chain_may_give_up_with_a_code_of_its_own(run):
    lab, trace = run({"fail": {"=": "'no stock of ' + payload.item"}, "code": "E_STOCK"}, payload={"item": "tea"})
    assert lab.trace(trace)["error"] == {"code": "E_STOCK", "message": "no stock of tea"}


def test_for_each_gives_results_in_the_order_of_the_items(run):
    each = {"for_each": "payload.numbers", "tool": "add", "args": {"n": {"=": "item * 10 + index"}}}
    _, trace = run(each, payload={"numbers": [3, 1, 2]})
    assert result(trace) == [31, 12, 23]


def test_for_each_of_nothing_goes_on_with_an_empty_list(run):
    lab, trace = run({"for_each": "payload.numbers", "tool": "add"}, payload={"numbers": []})
    assert (result(trace), nodes(lab, trace)) == ([], ["start"])


def test_for_each_starts_no_more_than_its_limit_and_one_more_at_each_end(run, make_lab):
    lab = make_lab(chain={"chain": "c", "steps": [{"for_each": "payload.numbers", "tool": "add", "limit": 2,
                                                   "args": {"n": {"=": "item"}}}]})  # fmt: skip
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"numbers": list(range(5))})
    lab.answer()
    running = []
    while trace.status() == "running":
        running.append(sum(one["status"] in {"ready", "running"} for one in lab.calls(trace)))
        lab.answer()
    assert max(running) == 2
    assert result(trace) == [1, 2, 3, 4, 5]


def test_a_retried_for_each_keeps_to_its_limit(make_lab, tools):
    asked = []

    @register_tool("picky", registry=tools, attempts=1)
    def picky(n: int) -> int:
        asked.append(n)
        if len(asked) == 1:
            raise ValueError("not yet")
        return n

    each = {"for_each": "payload.numbers", "tool": "picky", "args": {"n": {"=": "item"}}, "limit": 2}
    lab = make_lab(chain={"chain": "c", "steps": [each]})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {"numbers": [1, 2, 3, 4, 5]})
    for _ in range(3):
        lab.answer()
    lab.bells.waiting.clear()
    lab.mesh.engine.resume(trace.id)
    lab.answer()  # one has failed, one of five is done, and the step has joined
    assert trace.status() == "failed"
    lab.bells.ring(retry.retry(lab.mesh.db, tenant="default", trace_id=trace.id, by="ann"))
    open_ones = [one["status"] for one in lab.calls(trace) if one["status"] in {"ready", "held"}]
    assert sorted(open_ones) == ["held", "held", "ready", "ready"]
    lab.drain()
    assert result(trace) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("said", "intent", "ends"), [
    (None, None, 3), (True, None, 3), (False, None, 1), (False, True, 3), (True, False, 1),
])  # fmt: skip
def test_a_step_goes_on_where_its_policy_says_trigger_next_action(make_lab, shop, said, intent, ends):
    first = {"tools": ["fast"], "id": "one"} | ({} if said is None else {"trigger_next_action": said})
    lab = make_lab(chain={"chain": "c", "steps": [first, {"finish": 3}]})
    policy = None if intent is None else {"trigger_next_action": intent}
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {}, policy=policy)
    lab.drain()
    assert result(trace) == ends


@pytest.mark.parametrize("inline", [False, True])
def test_for_each_with_require_each_keeps_what_succeeded(run, tools, inline):
    @register_tool("picky", registry=tools, attempts=1, inline=inline)
    def picky(n: int) -> int:
        if n % 2:
            raise ValueError("odd")
        return n

    each = {"for_each": "payload.numbers", "tool": "picky", "args": {"n": {"=": "item"}}, "require": "each"}
    _, trace = run(each, payload={"numbers": [1, 2, 3, 4]})
    assert result(trace) == [None, 2, None, 4]


def test_a_wait_is_a_row_until_its_time_and_then_the_chain_goes_on(run):
    lab, trace = run({"wait": "3d"}, {"tools": ["fast"]})
    row = lab.trace(trace)
    assert (row["status"], row["waits_for"], row["worker_id"], len(lab.bells.waiting)) == ("waiting", "time", None, 0)
    assert signals.due(lab.mesh.db, batch=10) == []
    lab.shift(3 * 86_400 + 1)
    [due] = signals.due(lab.mesh.db, batch=10)
    lab.bells.ring(signals.wake(lab.mesh.db, due))
    lab.drain()
    assert result(trace) == 1


def send(lab, trace, name, payload=None, **more):
    sent = signals.send(
        lab.mesh.db, tenant="default", trace_id=trace.id, name=name, payload=payload, by="tester", **more
    )
    lab.bells.ring(sent.rings)
    lab.drain()
    return sent


def test_a_signal_carries_the_chain_on_with_its_payload(run):
    lab, trace = run({"signal": "paid"}, {"finish": {"=": "result.cents"}})
    assert lab.trace(trace)["waits_for"] == "signal:paid"
    assert send(lab, trace, "paid", {"cents": 5}).heard
    assert result(trace) == 5


def test_a_signal_that_came_first_is_heard_when_the_chain_listens(run):
    lab, trace = run({"signal": "first"}, {"signal": "paid"}, {"finish": {"=": "result"}})
    assert not send(lab, trace, "paid", 7).heard
    send(lab, trace, "first")
    assert result(trace) == 7


def test_a_signal_under_one_key_counts_once(run):
    lab, trace = run({"signal": "paid"}, {"signal": "paid", "id": "again"})
    assert not send(lab, trace, "paid", key="k").repeated
    assert send(lab, trace, "paid", key="k").repeated
    assert trace.status() == "waiting"


def test_a_signal_that_never_comes_goes_where_on_timeout_says(run):
    lab, trace = run({"signal": "paid", "within": "1h", "on_timeout": "late"}, {"finish": "paid"},
                     {"finish": "late", "id": "late"})  # fmt: skip
    lab.shift(3601)
    lab.bells.ring(signals.wake(lab.mesh.db, signals.due(lab.mesh.db, batch=1)[0]))
    lab.drain()
    assert result(trace) == "late"


def decide(lab, trace, choice, *, ok, by="ann"):
    [asked] = signals.asked(lab.mesh.db, tenant="default", trace_id=trace.id)
    rings = signals.decide(lab.mesh.db, tenant="default", step=asked, choice=choice, ok=ok, by=by, reason="because")
    lab.bells.ring(rings)
    lab.drain()
    return asked


@pytest.mark.parametrize(("choice", "ok", "ends"), [("approve", True, "shipped"), ("reject", False, "kept")])
def test_an_approval_waits_for_a_person_and_records_who_and_why(run, choice, ok, ends):
    lab, trace = run({"approval": {"order": {"=": "payload.order"}}, "on_fail": "kept"}, {"finish": "shipped"},
                     {"finish": "kept", "id": "kept"}, payload={"order": 9})  # fmt: skip
    asked = decide(lab, trace, choice, ok=ok)
    assert (asked["asked"]["ask"], result(trace)) == ({"order": 9}, ends)
    [said] = [one["body"] for one in lab.mesh.trace_writer.get(trace.id) if one["name"] == "EXEC_SIGNAL"]
    assert said == {"node": "approval", "choice": choice, "by": "ann", "reason": "because"}


def test_whoever_sent_a_trace_decides_nothing_of_it_nor_of_what_descends_from_it(run):
    lab, trace = run({"parallel": {"left": [{"approval": "ship it?"}]}}, {"finish": "shipped"})
    [asked] = lab.mesh.people.asked()
    for name in ("tester", "user:tester"):
        with pytest.raises(NotAsked, match="another than asked"):
            lab.mesh.people.decide(asked["trace_id"], by=name)
    lab.mesh.people.decide(asked["trace_id"], by="ann")
    lab.drain()
    assert result(trace) == "shipped"


def test_a_second_decision_is_told_which_one_stands(run):
    lab, trace = run({"approval": "ship it?"}, {"signal": "paid"})
    asked = decide(lab, trace, "approve", ok=True)
    with pytest.raises(AlreadyDecided, match="approve"):
        signals.decide(lab.mesh.db, tenant="default", step=asked, choice="reject", ok=False, by="bob", reason=None)


def test_an_approval_that_nobody_gives_asks_more_people_then_times_out(run):
    lab, trace = run({"approval": "ship it?", "who": ["ann"], "within": "2d", "escalate": {"after": "1d", "who": ["boss"]},
                      "on_timeout": "late"}, {"finish": "shipped"}, {"finish": "late", "id": "late"})  # fmt: skip
    lab.shift(86_401)
    assert signals.wake(lab.mesh.db, signals.due(lab.mesh.db, batch=1)[0]) == []
    [asked] = signals.asked(lab.mesh.db, tenant="default")
    assert asked["asked"]["who"] == ["ann", "boss"]
    lab.shift(2 * 86_402)
    lab.bells.ring(signals.wake(lab.mesh.db, signals.due(lab.mesh.db, batch=1)[0]))
    lab.drain()
    assert result(trace) == "late"


def test_an_outage_over_both_times_asks_more_people_and_is_too_late_at_once(run):
    lab, trace = run({"approval": "ship it?", "within": "2d", "escalate": {"after": "1d", "who": ["boss"]},
                      "on_timeout": "late"}, {"finish": "shipped"}, {"finish": "late", "id": "late"})  # fmt: skip
    lab.shift(3 * 86_400)
    for _ in range(2):  # in the order in which both were due
        [row] = signals.due(lab.mesh.db, batch=9)
        lab.bells.ring(signals.wake(lab.mesh.db, row))
    lab.drain()
    assert result(trace) == "late"


CENTS = {"type": "object", "required": ["cents"], "properties": {"cents": {"type": "integer"}}}


def test_a_signal_that_comes_before_its_step_has_to_fit_it_as_well(make_lab, shop):
    lab = make_lab(chain={"chain": "c", "steps": [{"signal": "go"}, {"signal": "paid", "schema": CENTS}]})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    for _ in range(2):  # before the trace has begun, and while it waits for another signal
        with pytest.raises(BadPayload) as caught:
            lab.mesh.people.signal(trace.id, "paid", {"cents": "5"}, by="bank")
        assert caught.value.value == 'cents: "5" is not of type "integer"'
        lab.mesh.people.signal(trace.id, "noted", 5, by="bank")  # no step waits for it: it is kept as it is
        lab.drain()
    lab.mesh.people.signal(trace.id, "paid", {"cents": 5}, by="bank")
    lab.mesh.people.signal(trace.id, "go", by="ann")
    lab.drain()
    assert result(trace) == {"cents": 5}


def test_a_signal_fits_any_step_that_may_wait_for_it_until_one_does(run):
    lab, trace = run({"signal": "go"}, {"signal": "paid", "schema": CENTS}, {"signal": "paid", "id": "any"})
    lab.mesh.people.signal(trace.id, "paid", "cash", by="bank")
    lab.mesh.people.signal(trace.id, "nobody", by="bank")
    assert [one["name"] for one in lab.rows("SELECT name FROM mesh.signals ORDER BY id")] == ["paid", "nobody"]


def test_a_nodes_policy_stands_over_the_agents_and_under_the_intents(run, make_lab):
    chain = {"chain": "c", "steps": [{"tools": ["boom"], "retry": 2}]}
    lab = make_lab(chain=chain, policy={"tool_attempts": 4, "backoff": {"base_s": 0, "cap_s": 0}})
    for policy, attempts in ((None, 2), ({"tool_attempts": 3}, 3)):
        trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {}, policy=policy)
        lab.drain()
        [call] = lab.calls(trace)
        assert call["max_attempts"] == attempts


def test_a_steps_back_off_is_its_calls(run):
    lab, trace = run({"tools": ["boom"], "retry": {"attempts": 2, "backoff": {"base_s": 7, "cap_s": 8}}})
    [call] = lab.calls(trace)
    assert (call["backoff_s"], call["backoff_cap_s"]) == (7, 8)


def test_what_a_callback_remembers_is_there_for_the_next_node(run, monkeypatch):
    monkeypatch.setitem(HANDLERS, "keep", lambda result, _session: {"memory": [{"key": "sum", "value": result}]})
    _, trace = run({"tools": ["fast"]}, {"callback": "keep"}, {"finish": {"=": "memory['long_term:sum']"}})
    assert result(trace) == 1


# --- child traces


@pytest.fixture
def pair(make_lab, shop):
    """pair(*steps, helper=…) -> (lab, trace): a boss with this chain, and agents `helper` and `other` to send."""

    def go(*steps, payload=None, helper=None, policy=None):
        answers = {"helper": helper or (lambda session: {"answer": dict(session.payload)}),
                   "other": lambda _session: {"answer": "other"}}  # fmt: skip
        agents = [
            define_agent(name, reasoner=one, tools=["add", "boom"], grants=["*"]) for name, one in answers.items()
        ]
        lab = make_lab(*agents, chain={"chain": "c", "steps": list(steps)})
        trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload or {}, policy=policy)
        lab.drain()
        return lab, trace

    return go


def children(lab, trace):
    return lab.rows("SELECT * FROM mesh.traces WHERE parent_id = %(id)s ORDER BY id", id=trace.id)


def test_a_delegated_errand_is_waited_for_and_its_result_goes_on(pair):
    lab, trace = pair({"delegate": "helper", "intent": "work", "payload": {"n": {"=": "payload.n + 1"}}},
                      {"finish": {"=": "result.n * 10"}}, payload={"n": 1})  # fmt: skip
    assert result(trace) == 20
    [child] = children(lab, trace)
    assert (child["agent"], child["status"], child["parent_owed"]) == ("helper", "done", False)


def test_an_errand_that_is_not_waited_for_lets_the_chain_go_on(pair):
    lab, trace = pair({"delegate": "helper", "wait": False}, {"finish": "on my way"})
    assert (result(trace), nodes(lab, trace)) == ("on my way", ["start"])
    assert [one["status"] for one in children(lab, trace)] == ["done"]


def test_several_errands_give_their_results_by_name(pair):
    _, trace = pair({"delegate": ["other", {"to": "helper", "payload": {"n": 2}}]})
    assert result(trace) == {"other": "other", "helper": {"n": 2}}


def failing(_session):
    raise ValueError("no")


def test_a_child_that_fails_fails_the_step_with_its_error(pair):
    lab, trace = pair({"delegate": "helper", "on_fail": "sorry"}, {"finish": "fine"}, {"finish": "sorry", "id": "sorry"},
                      helper=failing, policy=None)  # fmt: skip
    lab.shift(1000)
    lab.rows("UPDATE mesh.steps SET wake_at = NULL WHERE status = 'ready'")
    for _ in range(3):
        for row in lab.rows("SELECT id, epoch, queue, agent, trace_id FROM mesh.steps WHERE status = 'ready'"):
            from agentmesh.records import Ring

            lab.bells.ring(
                [Ring("step", row["id"], row["epoch"], row["queue"], f"agent.{row['agent']}", row["trace_id"])]
            )
            lab.rows("UPDATE mesh.steps SET wake_at = NULL WHERE status = 'ready'")
            lab.drain()
    assert result(trace) == "sorry"
    assert lab.steps(trace)[1]["error"]["code"] == "E_REASONER"


def test_with_any_the_first_result_goes_on_and_the_other_child_is_cancelled(pair):
    asked = {"delegate": ["other", {"to": "helper", "intent": "work"}], "require": "any"}
    lab, trace = pair(asked, {"finish": {"=": "result"}}, helper=lambda _session: {"tools": ["add"]})
    owed = between.unwanted(lab.mesh.db, batch=10)
    for call in owed:
        between.drop(lab.mesh.db, call)
    assert result(trace) == {"other": "other"}
    assert {one["agent"]: one["status"] for one in children(lab, trace)}["other"] == "done"
    assert between.unwanted(lab.mesh.db, batch=10) == []


def test_branches_run_as_children_along_their_own_steps(pair):
    branches = {"left": [{"tools": [{"tool": "add", "args": {"n": {"=": "payload.n"}}}]}],
                "right": [{"wait": "1h"}, {"finish": {"=": "payload.n * 100"}}]}  # fmt: skip
    lab, trace = pair({"parallel": branches}, payload={"n": 4})
    assert trace.status() == "running"
    lab.shift(3601)
    lab.bells.ring(signals.wake(lab.mesh.db, signals.due(lab.mesh.db, batch=1)[0]))
    lab.drain()
    assert result(trace) == {"left": 5, "right": 400}


def test_a_parent_that_was_not_told_is_told_by_the_rescuer(pair, monkeypatch):
    monkeypatch.setattr(between, "pay", lambda *_: ())
    lab, trace = pair({"delegate": "helper", "payload": {"n": 1}}, {"finish": {"=": "result.n"}})
    monkeypatch.undo()
    assert trace.status() == "running"
    [owed] = between.owed(lab.mesh.db, batch=10)
    lab.bells.ring(between.pay(lab.mesh.db, owed["id"]))
    lab.drain()
    assert (result(trace), between.pay(lab.mesh.db, owed["id"])) == (1, ())


def test_cancelling_a_parent_cancels_the_children_it_waits_for(pair):
    lab, trace = pair({"parallel": {"slow": [{"wait": "1d"}], "other": [{"signal": "never"}]}})
    steering.cancel(lab.mesh.db, tenant="default", trace_id=trace.id, by="ann")
    for call in between.unwanted(lab.mesh.db, batch=10):
        between.drop(lab.mesh.db, call)
    assert [one["status"] for one in children(lab, trace)] == ["cancelled", "cancelled"]


def test_a_child_has_no_more_permissions_than_its_errand_and_its_parent(pair):
    lab, trace = pair({"delegate": "helper", "permissions": []})
    [child] = children(lab, trace)
    assert child["permissions"] == []


def test_a_child_is_sent_for_each_item_and_their_results_are_a_list(pair):
    errand = {
        "delegate": "helper",
        "for_each": "payload.numbers",
        "payload": {"n": {"=": "item"}, "at": {"=": "index"}},
    }
    lab, trace = pair(errand | {"id": "all"}, {"finish": {"=": "[result, steps.all]"}}, payload={"numbers": [5, 6]})
    each = [{"n": 5, "at": 0}, {"n": 6, "at": 1}]
    assert result(trace) == [each, each]
    assert len(children(lab, trace)) == 2


@pytest.mark.parametrize(("numbers", "ends"), [([], []), (list(range(201)), "E_RULE"), (5, "E_RULE")])
def test_children_for_nothing_too_many_or_no_list(pair, numbers, ends):
    errand = {"delegate": "helper", "for_each": "payload.numbers", "payload": {"n": {"=": "item"}}}
    lab, trace = pair(errand, {"finish": {"=": "result"}}, payload={"numbers": numbers})
    assert children(lab, trace) == []
    assert (lab.trace(trace)["error"] or {}).get("code", lab.trace(trace)["result"]) == ends


def test_a_child_for_an_item_that_failed_is_retried_alone(pair, mending):
    errand = {"delegate": "helper", "for_each": "payload.numbers", "payload": {"n": {"=": "item"}}}
    lab, trace = pair(errand, {"finish": {"=": "result"}}, payload={"numbers": [1, 2]}, helper=mending)
    mending.up.append(1)
    again(lab, trace)
    assert (result(trace), len(children(lab, trace))) == ([1, 2], 2)


@pytest.fixture
def mending():
    """A reasoner that fails until `up` is not empty, with nothing tried twice."""
    up, asked = [], []

    def reason(session):
        asked.append(session.payload.get("n"))
        if not up:
            raise Permanent("down")
        return {"answer": session.payload.get("n")}

    reason.up, reason.asked = up, asked
    return reason


def again(lab, trace):
    lab.bells.ring(retry.retry(lab.mesh.db, tenant="default", trace_id=trace.id, by="ann"))
    lab.drain()


def test_a_retried_step_waits_for_its_failed_children_which_are_retried(pair, mending):
    errands = ["other", {"to": "helper", "payload": {"n": 1}}, {"to": "helper", "payload": {"n": 2}, "as": "second"}]
    lab, trace = pair({"delegate": errands}, {"finish": {"=": "result"}}, helper=mending)
    before = [one["id"] for one in children(lab, trace)]
    assert trace.status() == "failed"
    mending.up.append(1)
    again(lab, trace)
    assert result(trace) == {"other": "other", "helper": 1, "second": 2}
    assert [one["id"] for one in children(lab, trace)] == before  # the same children; what was done stays
    assert sorted(mending.asked) == [1, 1, 2, 2]
    assert lab.step(trace)["pending"] == 0


def test_a_retried_step_gives_its_children_their_time_anew(pair, mending):
    lab, trace = pair({"delegate": "helper", "payload": {"n": 1}, "within": "1h"}, helper=mending)
    lab.shift(2 * 3600)
    retry.retry(lab.mesh.db, tenant="default", trace_id=trace.id, by="ann")
    [left] = lab.rows(
        "SELECT extract(epoch FROM wake_at - mesh.mesh_now())::float8 AS s FROM mesh.steps WHERE kind = 'delegate'"
    )
    assert 3500 < left["s"] <= 3600


def test_a_child_that_was_mended_by_itself_counts_when_its_parent_is_retried(pair, mending):
    lab, trace = pair({"delegate": "helper", "payload": {"n": 1}}, {"finish": {"=": "[result]"}}, helper=mending)
    mending.up.append(1)
    [child] = children(lab, trace)
    again(lab, lab.mesh.trace(child["id"]))
    assert (lab.mesh.trace(child["id"]).status(), trace.status()) == ("done", "failed")
    again(lab, trace)
    assert (result(trace), mending.asked) == ([1], [1, 1])


def test_a_child_that_ends_while_its_parent_is_retried_is_not_missed(pair, mending):
    lab, trace = pair({"delegate": "helper", "payload": {"n": 1}}, helper=mending)
    mending.up.append(1)
    [child] = children(lab, trace)
    lab.bells.ring(retry.retry(lab.mesh.db, tenant="default", trace_id=child["id"], by="bob"))
    with lab.mesh.db.begin() as tx:  # not committed when the child ends, and tells a parent that has failed
        retry.again_in(tx, {"trace": trace.id, "tenant": "default"}, "ann")
        lab.drain()
    assert (lab.mesh.trace(child["id"]).status(), trace.status()) == ("done", "running")
    with pytest.raises(NotRetryable):
        again(lab, trace)  # the rest of the retry
    [owed] = between.owed(lab.mesh.db, batch=10)
    lab.bells.ring(between.pay(lab.mesh.db, owed["id"]))
    lab.drain()
    assert result(trace) == 1


def test_a_retry_that_stopped_half_way_is_gone_on_with(pair, mending):
    lab, trace = pair({"delegate": "helper", "payload": {"n": 1}}, helper=mending)
    mending.up.append(1)
    retry._retry(lab.mesh.db, {"trace": trace.id, "tenant": "default"}, "ann")  # and here the process died
    lab.drain()
    assert trace.status() == "running"
    again(lab, trace)
    assert result(trace) == 1
    with pytest.raises(NotRetryable, match="this trace has not failed"):
        again(lab, trace)


def test_a_child_that_cannot_be_retried_fails_its_parent_anew(pair):
    lab, trace = pair({"delegate": "helper"}, helper=lambda _session: {"tools": ["boom"]})
    for row in lab.rows("UPDATE mesh.calls SET effect = 'once' WHERE tool = 'boom' RETURNING id"):
        with pytest.raises(
            NotRetryable, match="of this one cannot be retried: call boom may have taken effect"
        ) as caught:
            again(lab, trace)
        assert caught.value.next == f"agentmesh resolve {row['id']}"
    [owed] = between.owed(lab.mesh.db, batch=10)
    lab.bells.ring(between.pay(lab.mesh.db, owed["id"]))
    lab.drain()
    assert trace.status() == "failed"


def test_a_step_whose_child_was_cancelled_is_rewound_and_not_retried(pair):
    lab, trace = pair({"parallel": {"slow": [{"wait": "1d"}]}})
    [child] = children(lab, trace)
    steering.cancel(lab.mesh.db, tenant="default", trace_id=child["id"], by="ann")
    lab.bells.ring(between.pay(lab.mesh.db, child["id"]))
    lab.drain()
    assert trace.status() == "failed"
    with pytest.raises(NotRetryable) as caught:
        again(lab, trace)
    assert caught.value.next == f"agentmesh rewind {trace.id} --to 2"


def test_a_step_keeps_its_own_time_however_often_it_is_taken(make_lab, shop):
    left = []

    def think(_session):
        left.append(lab.rows("SELECT extract(epoch FROM deadline - mesh.mesh_now())::float8 AS s FROM mesh.steps"
                             " WHERE status = 'running'")[0]["s"])  # fmt: skip
        if len(left) < 3:
            raise ValueError("once more")
        return {"answer": 1}

    step = {"reasoner": "think", "timeout": "7s", "retry": {"attempts": 3, "backoff": {"base_s": 0, "cap_s": 0}}}
    lab = make_lab(chain={"chain": "c", "steps": [step]}, reasoners={"think": think})
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {})
    for _ in range(3):
        lab.drain()
        lab.mesh.engine.resume(trace.id)
    assert result(trace) == 1
    assert [5 < one <= 7 for one in left] == [True] * 3
