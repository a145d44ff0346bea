"""Executors on real rows: every way a step may go, event by event."""

import itertools
import random
import string

import psycopg
import pytest

from agentmesh import Verdict, define_agent, register_tool
from agentmesh.errors import DatabaseUnreachable, Permanent, Retry
from agentmesh.execution.callbacks import HANDLERS, register_callback
from agentmesh.infrastructure import faults
from agentmesh.records import Ring
from agentmesh.state import rescue

AT_ONCE = {"base_s": 0, "cap_s": 0}


@pytest.fixture(autouse=True)
def handlers():
    known = dict(HANDLERS)
    yield HANDLERS
    HANDLERS.clear()
    HANDLERS.update(known)


def bodies(lab, trace, name):
    return [one["body"] for one in lab.mesh.trace_writer.get(trace.id) if one["name"] == name]


def error(lab, trace):
    return (lab.trace(trace)["error"] or {}).get("code")


def done(lab, *actions, **options):
    trace = lab.start(*actions, **options)
    lab.drain()
    return trace


# --- events


OPENING = ["BIR_DISPATCH", "ACP_RECEIVE", "RUN_ONCE_START", "EXEC_START"]
CLOSING = ["REASONER_FEEDBACK", "MEMORY_WRITE", "CALLBACK_RESULT", "CALLBACK_NEXT_ACTION", "EXEC_DONE"]


def test_an_answer_is_these_events_in_this_order(lab):
    trace = done(lab, {"answer": 1})
    assert lab.events(trace) == [*OPENING, "REASONER_ACTION", *CLOSING]


def test_a_fan_out_is_these_events_in_this_order(lab):
    trace = done(lab, {"tools": ["work", {"tool": "work", "as": "b"}], "strategy": "parallel"})
    assert lab.events(trace) == [*OPENING, "REASONER_ACTION", "TOOL_DISPATCH", "TOOL_EXEC", "TOOL_EXEC", *CLOSING]


def test_an_inline_step_is_the_same_events(lab):
    trace = done(lab, {"tools": ["quick"]})
    assert lab.events(trace) == [*OPENING, "REASONER_ACTION", "TOOL_DISPATCH", "TOOL_EXEC", *CLOSING]
    assert not lab.bells.waiting


def test_a_result_of_an_inline_round_is_told_once_when_its_step_goes_on_elsewhere(lab):
    trace = done(lab, {"tools": ["quick", "shaky"], "strategy": "parallel"})
    again = lab.calls(trace)[1]
    assert again["status"] == "ready"
    lab.bells.ring([Ring("call", again["id"], again["epoch"], again["queue"], again["task"], trace.id)])
    lab.drain()
    told = [name for name in lab.events(trace) if name.startswith("TOOL_")]
    assert told == ["TOOL_DISPATCH", "TOOL_EXEC", "TOOL_FAIL", "TOOL_FAIL"]
    assert trace.status() == "failed"


def test_a_failed_fallback_is_told_with_what_replaced_it(lab):
    trace = done(lab, {"tools": ["boom", "work"], "strategy": "fallback"})
    assert lab.events(trace)[5:8] == ["TOOL_DISPATCH", "TOOL_FAIL", "TOOL_EXEC"]
    [fail] = bodies(lab, trace, "TOOL_FAIL")
    assert (fail["tool"], fail["error"]["code"]) == ("boom", "E_TOOL")


def test_record_trace_false_drops_payloads_and_never_an_event(lab):
    action = {"tools": [{"tool": "work", "args": {"n": 41}}]}
    loud, quiet = done(lab, action), done(lab, action, policy={"record_trace": False})
    assert lab.events(quiet) == lab.events(loud)
    assert "action" in bodies(lab, loud, "REASONER_ACTION")[0]
    assert bodies(lab, quiet, "REASONER_ACTION") == [{}]
    assert "41" not in str([bodies(lab, quiet, name) for name in set(lab.events(quiet))])
    assert bodies(lab, quiet, "CALLBACK_NEXT_ACTION") == [{"verdict": "finish"}]


@pytest.mark.parametrize("on_fail", ["callback", "fail"])
@pytest.mark.parametrize("tool", ["boom", "shaky"])
def test_a_trace_that_failed_leaves_no_attempt_open(lab, tool, on_fail):
    HANDLERS["nothing"] = lambda _result, _session: None
    trace = done(lab, {"tools": [tool]}, policy={"on_fail": on_fail, "callbacks": ["nothing"], "tool_attempts": 1})
    assert trace.status() == "failed"
    assert lab.rows("SELECT kind FROM mesh.attempts WHERE outcome IS NULL") == []


# --- strategies and results


@pytest.mark.parametrize(("action", "result"), [
    ({"tools": ["work", {"tool": "work", "as": "b", "args": {"n": 4}}], "strategy": "serial"}, 5),
    ({"tools": ["work", {"tool": "work", "as": "b", "args": {"n": 4}}], "strategy": "parallel"}, {"work": 1, "b": 5}),
    ({"tools": ["boom", {"tool": "work", "args": {"n": 4}}], "strategy": "fallback"}, 5),
    ({"tools": [["boom", "work"], [{"tool": "work", "as": "c", "args": {"n": 2}}]]}, {"work": 1, "c": 3}),
    ({"tools": ["quick", {"tool": "quick", "as": "b", "args": {"n": 4}}], "strategy": "serial"}, 5),
    ({"tools": ["quick", {"tool": "quick", "as": "b", "args": {"n": 4}}], "strategy": "parallel"}, {"quick": 1, "b": 5}),
    ({"tools": ["shaky", {"tool": "quick", "args": {"n": 4}}], "strategy": "fallback"}, 5),
    ({"tools": ["quick", {"tool": "work", "as": "b", "args": {"n": 4}}], "strategy": "parallel"}, {"quick": 1, "b": 5}),
    ({"tools": ["boom", "work"], "strategy": "parallel", "require": "any"}, {"work": 1}),
    ({"tools": ["boom", "work", {"tool": "work", "as": "b"}], "strategy": "parallel", "require": 2}, {"work": 1, "b": 1}),
])  # fmt: skip
def test_a_step_results_in_what_its_strategy_says(lab, action, result):
    from agentmesh.records import Ring

    trace = done(lab, action)
    for _ in range(3):
        waiting = [one for one in lab.calls(trace) if one["status"] == "ready"]
        lab.bells.ring([Ring("call", one["id"], one["epoch"], one["queue"], one["task"], trace.id) for one in waiting])
        lab.drain()
    assert trace.result(0) == result


def test_the_executor_chooses_the_strategy_of_an_action_that_names_none(make_lab, tools):
    register_tool("work", registry=tools)(lambda: 1)
    lab = make_lab(executor="parallel")
    assert done(lab, {"tools": ["work"]}).result(0) == {"work": 1}
    assert lab.steps(lab.mesh.trace(lab.rows("SELECT id FROM mesh.traces")[0]["id"]))[1]["action"] == {
        "strategy": "parallel"
    }


def test_results_too_large_for_a_row_arrive_whole(make_lab, tools):
    @register_tool("large", registry=tools)
    def large() -> str:
        return "x" * 100_000

    @register_tool("length", registry=tools)
    def length(ctx) -> int:
        return len(ctx.results["large"])

    lab = make_lab()
    trace = done(lab, {"tools": ["large", "length"], "strategy": "serial"}, {"tools": ["large"]},
                 policy={"trigger_next_action": True})  # fmt: skip
    assert trace.result(0) == {"large": "x" * 100_000, "length": 100_000}
    assert lab.calls(trace)[0]["result"].keys() == {"$blob"}


# --- what a reasoner may not do (each fails the trace with its own code; neighbours finish)


@pytest.mark.parametrize(("action", "code"), [
    ({"tools": ["wrok"]}, "E_TOOL_UNKNOWN"), ({"tools": ["other"]}, "E_FORBIDDEN"),
    ({"tools": [{"tool": "work", "args": {"n": "1"}}]}, "E_ARGUMENTS"), ({"answer": 1, "tools": ["work"]}, "E_ACTION"),
    ({}, "E_ACTION"), ({"tools": []}, "E_ACTION"), ({"tools": ["work"], "goto": "x"}, "E_ACTION"), ("finish", "E_ACTION"),
    ({"tools": ["work"], "strategy": "best"}, "E_ACTION"), ({"tools": ["work"], "require": 2}, "E_ACTION"),
    ({"tools": ["work", "work"], "strategy": "parallel"}, "E_ACTION"), ({"tools": ["needs-more"]}, "E_FORBIDDEN"),
    (None, "E_ACTION"),
])  # fmt: skip
def test_s15_an_action_out_of_bounds_fails_its_trace_alone(make_lab, tools, action, code):
    @register_tool("work", registry=tools)
    def work(n: int = 0) -> int:
        return n

    register_tool("other", registry=tools)(lambda: 1)
    register_tool("needs-more", registry=tools, needs=["money:spend"])(lambda: 1)
    lab = make_lab(tools=["work", "needs-more"], grants=[])
    bad, good = lab.start(action), lab.start({"tools": ["work"]})
    lab.drain()
    assert (bad.status(), error(lab, bad)) == ("failed", code)
    assert good.result(0) == 0
    assert lab.calls(bad) == []
    assert lab.events(bad)[-1] == "EXEC_FAIL"


def test_too_many_calls_are_refused(make_lab, tools):
    register_tool("work", registry=tools)(lambda: 1)
    lab = make_lab()
    trace = done(lab, {"tools": [{"tool": "work", "as": f"r{n}"} for n in range(10_001)], "strategy": "parallel"})
    assert error(lab, trace) == "E_ACTION"


def reasoner_of(outcomes):
    left = list(outcomes)

    def decide(session):
        one = left.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    return decide


def again(lab, trace):
    while trace.status() == "running":
        lab.bells.waiting.append(lab.ring(trace))
        lab.drain()


def test_a_reasoner_that_raises_is_asked_again_and_then_fails_the_trace(make_lab, tools):
    lab = make_lab(reasoner=reasoner_of([ValueError("1"), ValueError("2"), {"answer": "at last"}]))
    trace = done(lab, policy={"backoff": AT_ONCE})
    again(lab, trace)
    assert trace.result(0) == "at last"
    assert lab.outcomes(trace, "reason") == ["failed", "failed", "won"]
    assert lab.events(trace).count("EXEC_ROLLBACK") == 2


@pytest.mark.parametrize(("raised", "asked"), [(ValueError("x"), 3), (Permanent("never"), 1)])
def test_a_reasoner_that_always_raises_fails_after_its_attempts(make_lab, tools, raised, asked):
    lab = make_lab(reasoner=reasoner_of([raised] * 9))
    trace = done(lab, policy={"backoff": AT_ONCE})
    again(lab, trace)
    assert (trace.status(), error(lab, trace)) == ("failed", "E_REASONER")
    assert len(lab.attempts(trace, "reason")) == asked


def test_a_reasoner_that_says_when_is_asked_then(make_lab, tools):
    lab = make_lab(reasoner=reasoner_of([Retry("busy", after=300), {"answer": 1}]))
    trace = done(lab)
    left = lab.rows("SELECT extract(epoch FROM wake_at - clock_timestamp()) AS s FROM mesh.steps")[0]["s"]
    assert 290 < left <= 300
    assert lab.trace(trace)["worker_id"] is None
    lab.shift(301)
    again(lab, trace)
    assert trace.result(0) == 1


# --- policies


def test_policies_merge_in_rising_order_and_the_result_is_recorded(make_lab, tools):
    lab = make_lab(policy={"reasoner_attempts": 7, "callback_attempts": 6}, max_steps=50)
    trace = done(lab, {"answer": 1}, policy={"callback_attempts": 2})
    recorded = lab.trace(trace)["policy"]
    assert (recorded["reasoner_attempts"], recorded["callback_attempts"], recorded["max_steps"]) == (7, 2, 50)
    assert recorded["reasoner_timeout_s"] == 120.0


def test_tool_limits_of_the_policy_override_the_tools_own_but_never_for_once(lab):
    trace = lab.open("fallible", "twice", strategy="parallel", policy={"tool_attempts": 9, "tool_timeout_s": 5})
    by_tool = {one["tool"]: one for one in lab.calls(trace)}
    assert (by_tool["fallible"]["max_attempts"], by_tool["fallible"]["timeout_s"]) == (9, 5)
    assert by_tool["twice"]["max_attempts"] == 1


# --- delegation


@pytest.fixture
def relay(make_mesh, tools, database_url):
    """relay(hops, grants) -> (lab, trace): agents a0 … an, each handing on to the next and asking for more."""

    def make(hops, needs, **options):
        @register_callback("hand-on")
        def hand_on(result, session):
            at = int(session.agent[1:])
            if at < hops:
                return Verdict(kind="delegate", to=f"a{at + 1}", intent="go", payload={"at": at + 1})
            return None

        for name, need in needs.items():
            register_tool(name, registry=tools, needs=[need])(lambda: 1)
        agents = [
            define_agent(f"a{n}", reasoner=lambda s: {"answer": s.agent}, tools=list(needs),
                         grants=["*"] if n % 2 == 0 else ["data:read", "more:write"], policy={"callbacks": ["hand-on"]})
            for n in range(min(hops, 20) + 1)
        ]  # fmt: skip
        mesh, bells = make_mesh(*agents)
        trace = mesh.router.dispatch("go", "tester", "a0", "c-1", {}, **options)
        bells.drain(mesh)
        return mesh, trace

    return make


@pytest.fixture
def rows(database_url):
    import psycopg
    from psycopg.rows import dict_row

    def read(sql):
        with psycopg.connect(database_url, row_factory=dict_row) as connection:
            return connection.execute(sql).fetchall()

    return read


def test_a_delegated_trace_is_a_child_in_the_same_context_that_nobody_waits_for(relay, rows):
    mesh, trace = relay(1, {})
    parent, child = rows("SELECT * FROM mesh.traces ORDER BY depth")
    assert (child["parent_id"], child["root_id"], child["context_id"]) == (parent["id"], parent["id"], "c-1")
    assert (child["from_id"], child["agent"], child["payload"]) == ("a0", "a1", {"at": 1})
    assert trace.result(0) == "a0"
    assert child["result"] == "a1"
    names = [one["name"] for one in mesh.trace_writer.get(trace.id)]
    assert names[-2:] == ["EXEC_DELEGATE", "EXEC_DONE"]
    assert len(rows("SELECT 1 FROM mesh.envelopes")) == 2


def test_s12_permissions_only_shrink_over_five_hops(relay, rows):
    needs = {"reader": "data:read", "writer": "more:write", "admin": "root:all"}
    relay(5, needs)
    held = [set(row["permissions"]) for row in rows("SELECT permissions FROM mesh.traces ORDER BY depth")]
    assert len(held) == 6
    assert held[0] == {"data:read", "more:write", "root:all"}
    assert all(later <= earlier for earlier, later in itertools.pairwise(held))
    assert held[2] == {"data:read", "more:write"}


def test_s12_a_child_gets_no_permission_that_the_producer_withheld(relay, rows):
    relay(2, {"reader": "data:read", "writer": "more:write"}, permissions=["data:read"])
    assert {tuple(row["permissions"]) for row in rows("SELECT permissions FROM mesh.traces")} == {("data:read",)}


def test_a_delegation_past_sixteen_hops_is_refused(relay, rows):
    relay(18, {})
    traces = rows("SELECT depth, status, error FROM mesh.traces ORDER BY depth")
    assert traces[-1]["depth"] == 16
    assert (traces[-1]["status"], traces[-1]["error"]["code"]) == ("failed", "E_DEPTH")


def test_a_delegation_to_an_unknown_agent_fails_and_leaves_no_child(lab):
    register_callback("lost")(lambda result, session: Verdict(kind="delegate", to="nobody", intent="go"))
    trace = done(lab, {"answer": 1}, policy={"callbacks": ["lost"]})
    assert error(lab, trace) == "E_AGENT_UNKNOWN"
    assert len(lab.rows("SELECT 1 FROM mesh.traces")) == 1


# --- a deploy changes no running trace


def test_a_trace_follows_the_plan_it_is_pinned_to(lab):
    trace = lab.open("work")
    assert lab.trace(trace)["plan_hash"] == lab.mesh.runtime("puppet").agent.plan.hash
    assert lab.rows("SELECT count(*) AS n FROM mesh.plans")[0]["n"] == 1


# --- what nobody foresaw ends the trace; our own database being away does not


class Away:
    """A database that is not there."""

    def once(self, *_):
        raise psycopg.OperationalError("away")

    read = once


@pytest.fixture
def big(make_lab, tools):
    """A lab whose tool `large` returns what is put aside."""
    register_tool("large", registry=tools)(lambda: "x" * 100_000)
    return make_lab()


def joined(lab, *tools):
    """A trace whose tools have run and whose callback is the next to run; the doorbells that wait are its."""
    trace = lab.open(*tools)
    lab.answer()
    assert lab.step(trace)["status"] == "joined"
    return trace


def ended(lab, trace):
    """How it ended, told once in its history."""
    assert lab.events(trace).count("EXEC_FAIL") == 1
    assert lab.events(trace)[-1] == "EXEC_FAIL"
    return trace.status(), error(lab, trace)


def test_a_result_that_is_no_longer_there_ends_the_trace_and_is_not_tried_for_ever(big):
    trace = joined(big, "large")
    big.rows("DELETE FROM mesh.blobs")
    big.drain()
    assert ended(big, trace) == ("failed", "E_BLOB")
    assert big.outcomes(trace, "callback") == ["failed"]


def test_a_pinned_plan_that_nobody_kept_ends_the_trace(lab):
    trace = joined(lab, "work")
    lab.rows("UPDATE mesh.traces SET plan_hash = 'gone'")
    lab.drain()
    assert ended(lab, trace) == ("failed", "E_PLAN_UNKNOWN")


def test_a_recorded_policy_that_cannot_be_read_ends_the_trace(lab):
    trace = joined(lab, "work")
    lab.rows("""UPDATE mesh.traces SET policy = policy || '{"of_another_release": 1}'""")
    lab.drain()
    assert ended(lab, trace) == ("failed", "E_INTERNAL")


def test_f16_what_no_code_can_read_is_parked_with_its_traceback(lab):
    trace = joined(lab, "work")
    lab.rows("""UPDATE mesh.traces SET policy = policy || '{"of_another_release": 1}'""")
    lab.drain()
    [letter] = lab.rows("SELECT trace_id, fingerprint, evidence FROM mesh.dead_letters")
    assert (letter["trace_id"], letter["fingerprint"]) == (trace.id, "E_INTERNAL:puppet:tools")
    assert "of_another_release" in letter["evidence"]["traceback"]


def test_what_is_beyond_the_servers_limits_ends_the_trace(lab):
    key = "".join(random.Random(0).choices(string.ascii_letters, k=9000))  # too long for an index, however compressed
    register_callback("verbose")(lambda result, session: {"memory": [{"key": key, "value": 1}]})
    trace = done(lab, {"answer": 1}, policy={"callbacks": ["verbose"]})
    assert ended(lab, trace) == ("failed", "E_INTERNAL")


def test_an_inline_step_that_breaks_down_leaves_no_call_open(make_lab, tools):
    register_tool("large", registry=tools, inline=True)(lambda: "x" * 100_000)

    @register_tool("fails", registry=tools, inline=True, attempts=1)
    def fails() -> int:
        raise ValueError("no")

    @register_tool("loses", registry=tools, inline=True)
    def loses() -> int:
        lab.rows("DELETE FROM mesh.blobs")
        return 1

    lab = make_lab()
    trace = done(lab, {"tools": [["fails", "loses"], ["large"]]})
    assert ended(lab, trace) == ("failed", "E_BLOB")
    assert {one["tool"]: one["status"] for one in lab.calls(trace)} == {
        "fails": "failed", "large": "done", "loses": "cancelled",
    }  # fmt: skip


def test_our_own_database_that_is_away_ends_no_trace(big):
    trace = joined(big, "large")
    big.mesh.blobs._db = Away()
    with pytest.raises(psycopg.OperationalError):
        big.answer()
    big.mesh.blobs._db = big.mesh.db
    given_back(big, trace)
    assert trace.result(0) == "x" * 100_000
    assert big.outcomes(trace, "callback") == ["released", "won"]


def given_back(lab, trace):
    """What a heart does with a trace that nothing runs; then it goes on."""
    row = lab.trace(trace)
    assert (row["status"], row["worker_id"]) == ("running", lab.hand.worker_id)
    lab.bells.ring(rescue.give_back(lab.mesh.db, row | {"kind": "trace"}, "released"))
    lab.drain()


def test_memory_that_cannot_be_read_is_no_failure_of_the_reasoner(make_lab, tools):
    lab = make_lab(reasoner=lambda session: {"answer": len(session.memory)})
    trace = lab.start()
    sessions = lab.mesh.parts.sessions
    sessions._db = Away()
    with pytest.raises(DatabaseUnreachable):
        lab.answer()
    sessions._db = lab.mesh.db
    given_back(lab, trace)
    assert trace.result(0) == 0
    assert lab.outcomes(trace, "reason") == ["released", "won"]


def test_an_answer_that_cannot_be_put_aside_is_no_failure_of_the_reasoner(make_lab, tools):
    lab = make_lab(reasoner=lambda _: {"answer": "x" * 100_000})
    trace = lab.start()
    lab.mesh.blobs._db = Away()
    with pytest.raises(psycopg.OperationalError):
        lab.answer()
    lab.mesh.blobs._db = lab.mesh.db
    given_back(lab, trace)
    assert lab.outcomes(trace, "reason") == ["released", "won"]


@pytest.mark.parametrize(("raised", "code"), [
    (psycopg.OperationalError("theirs"), "E_REASONER"), (DatabaseUnreachable("theirs"), "E_DATABASE"),
    (SystemExit(3), "E_REASONER"),
])  # fmt: skip
def test_whatever_a_reasoner_raises_is_its_failure(make_lab, tools, raised, code):
    lab = make_lab(reasoner=thrower(raised), policy={"reasoner_attempts": 1})
    trace = done(lab)
    assert ended(lab, trace) == ("failed", code)


@pytest.mark.parametrize("raised", [psycopg.OperationalError("theirs"), SystemExit(3)])
def test_whatever_a_handler_raises_is_its_failure(lab, raised):
    register_callback("raises")(lambda result, session: thrower(raised)(session))
    trace = done(lab, {"answer": 1}, policy={"callbacks": ["raises"], "callback_attempts": 1})
    assert ended(lab, trace) == ("failed", "E_CALLBACK")


def thrower(raised):
    def throw(_):
        raise raised

    return throw


def test_a_breakdown_after_a_commit_does_not_end_the_trace_at_the_step_before(lab):
    register_callback("calm")(lambda result, session: None)
    trace = lab.start({"answer": 1}, policy={"callbacks": ["calm"]})

    def broken():
        faults.disarm()
        raise ZeroDivisionError

    faults.arm("reason.after_commit", broken)
    with pytest.raises(ZeroDivisionError):
        lab.answer()
    given_back(lab, trace)
    assert trace.result(0) == 1


@pytest.mark.parametrize("after", [float("nan"), float("inf"), -5, 1e300])
def test_a_reasoner_that_names_no_time_is_asked_again_after_the_usual_back_off(make_lab, tools, after):
    lab = make_lab(reasoner=reasoner_of([Retry("busy", after=after), {"answer": 1}]))
    trace = done(lab, policy={"backoff": AT_ONCE})
    again(lab, trace)
    assert trace.result(0) == 1


@pytest.mark.parametrize("asked", ["the agent", "the intent", "the plan"])
def test_no_policy_lets_a_trace_take_more_steps_than_its_worker_allows(make_mesh, asked):
    spare = {"policy": {"max_steps": 1_000_000}}
    chain = {"chain": "patient", "steps": [{"wait": 60}]} | (spare if asked == "the plan" else {})
    agent = define_agent("patient", chain=chain, **(spare if asked == "the agent" else {}))
    mesh, bells = make_mesh(agent, limits__steps=1)
    options = spare if asked == "the intent" else {}
    trace = mesh.router.dispatch("work", "tester", "patient", "c-1", {}, **options)
    bells.drain(mesh)
    [row] = mesh.db.once("SELECT error->>'code' AS code FROM mesh.traces WHERE id = %(id)s", {"id": trace.id})
    assert row["code"] == "E_STEP_LIMIT"
