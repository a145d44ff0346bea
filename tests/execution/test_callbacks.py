"""Callbacks: what commits with a verdict, and what a handler that raises leaves behind."""

import pytest

from agentmesh import Verdict
from agentmesh.errors import Permanent
from agentmesh.execution.callbacks import HANDLERS, register_callback
from agentmesh.infrastructure import faults
from agentmesh.state import rescue
from agentmesh.testing import broken

AT_ONCE = {"base_s": 0, "cap_s": 0}


@pytest.fixture(autouse=True)
def handlers():
    known = dict(HANDLERS)
    yield HANDLERS
    HANDLERS.clear()
    HANDLERS.update(known)


def run(lab, *actions, **options):
    trace = lab.start(*actions, **options)
    lab.drain()
    while trace.status() not in {"done", "failed"}:
        lab.bells.waiting.append(lab.ring(trace))
        lab.drain()
    return trace


def memory(lab):
    rows = lab.rows("SELECT type, key, version, value FROM mesh.memory ORDER BY type, key, version")
    return [(row["type"], row["key"], row["version"], row["value"]) for row in rows]


def error(lab, trace):
    return lab.trace(trace)["error"]["code"]


# --- defaults


def test_an_answer_finishes_and_is_remembered_with_the_trace(lab):
    trace = run(lab, {"answer": {"a": 1}})
    assert trace.result(0) == {"a": 1}
    assert memory(lab) == [("short_term", "result:reason", 1, {"a": 1})]


def test_tools_that_succeed_finish_with_their_result(lab):
    assert run(lab, {"tools": ["work"]}).result(0) == 1


def test_tools_that_succeed_go_round_again_when_the_policy_says_so(lab):
    trace = run(
        lab, {"tools": ["work"]}, {"tools": [{"tool": "work", "as": "b"}]}, policy={"trigger_next_action": True}
    )
    assert trace.result(0) == {"work": 1, "b": 1}
    assert lab.events(trace).count("EXEC_LOOP") == 2


def test_tools_that_fail_abort_with_the_first_tools_error(lab):
    trace = run(lab, {"tools": ["boom"]})
    assert (trace.status(), error(lab, trace)) == ("failed", "E_TOOL")
    assert lab.events(trace)[-1] == "EXEC_FAIL"


def test_nothing_is_remembered_of_tools_that_failed_or_when_the_policy_says_no(lab):
    run(lab, {"tools": ["boom"]})
    run(lab, {"answer": 1}, policy={"write_memory": False})
    assert memory(lab) == []


# --- handlers


def test_a_handlers_verdict_and_memory_commit_together(lab):
    @register_callback("decides")
    def decides(result, session):
        return {
            "verdict": "finish",
            "result": {"seen": result},
            "memory": [{"key": "k", "value": result, "type": "long_term"}],
        }

    trace = run(lab, {"answer": 7}, policy={"callbacks": ["decides"]})
    assert trace.result(0) == {"seen": 7}
    assert ("long_term", "k", 1, 7) in memory(lab)
    assert lab.rows("SELECT name FROM mesh.effects ORDER BY name") == [{"name": "decides"}, {"name": "write_memory"}]


def test_the_last_handler_that_gives_a_verdict_decides_and_all_of_them_run(lab):
    seen = []
    register_callback("first")(lambda result, session: seen.append(1) or Verdict(kind="abort", reason="no"))
    register_callback("second")(lambda result, session: seen.append(2) or Verdict(kind="finish", result="yes"))
    register_callback("third")(lambda result, session: seen.append(3))
    trace = run(lab, {"answer": 7}, policy={"callbacks": ["first", "second", "third"]})
    assert (trace.result(0), seen) == ("yes", [1, 2, 3])


def test_an_abort_fails_the_trace_with_its_reason(lab):
    register_callback("aborts")(lambda result, session: {"verdict": "abort", "reason": "not today"})
    trace = run(lab, {"answer": 7}, policy={"callbacks": ["aborts"]})
    assert lab.trace(trace)["error"] == {"code": "E_ABORTED", "message": "not today"}


def test_a_handler_that_raises_is_rolled_back_and_retried_and_the_step_is_not_run_again(lab):
    runs = []

    @register_callback("shy")
    def shy(result, session):
        runs.append(result)
        if len(runs) < 3:
            raise ValueError("not yet")
        return {"memory": [{"key": "k", "value": len(runs)}]}

    trace = run(lab, {"tools": ["work"]}, policy={"callbacks": ["shy"], "backoff": AT_ONCE})
    assert (trace.result(0), runs) == (1, [1, 1, 1])
    assert lab.outcomes(trace) == ["won"]
    assert lab.outcomes(trace, "reason") == ["won"]
    assert lab.outcomes(trace, "callback") == ["failed", "failed", "won"]
    assert [one for one in memory(lab) if one[1] == "k"] == [("long_term", "k", 1, 3)]
    assert lab.events(trace).count("EXEC_ROLLBACK") == 2


@pytest.mark.parametrize(("then", "status"), [("fail", "failed"), ("finish", "done")])
def test_a_handler_that_always_raises_ends_as_the_policy_says(lab, then, status):
    runs = []

    @register_callback("never")
    def never(result, session):
        runs.append(1)
        raise ValueError("no")

    policy = {"callbacks": ["never"], "backoff": AT_ONCE, "callback_attempts": 2, "on_callback_fail": then}
    trace = run(lab, {"tools": ["work"]}, policy=policy)
    assert (trace.status(), len(runs)) == (status, 2)
    if then == "finish":
        assert trace.result(0) == 1
    else:
        assert error(lab, trace) == "E_CALLBACK"
    assert lab.outcomes(trace) == ["won"]


@pytest.mark.parametrize("said", [
    5, "finish", {"verdict": "perhaps"}, {"memory": "k"}, {"memory": [{"value": 1}]}, {"unknown": 1},
                                  {"verdict": "finish", "result": float("nan")}, {"memory": [{"key": "k", "value": {1, 2}}]},
                                  {"memory": [{"key": "k", "type": "eternal"}]}])  # fmt: skip
def test_what_is_no_verdict_fails_the_callback_and_writes_nothing(lab, said):
    register_callback("odd")(lambda result, session: said)
    trace = run(lab, {"answer": 1}, policy={"callbacks": ["odd"], "callback_attempts": 1})
    assert trace.status() == "failed"
    assert error(lab, trace).startswith(("E_CALLBACK", "E_JSON"))
    assert memory(lab) == []


def test_a_callback_nobody_registered_fails_the_trace_by_name(lab):
    trace = run(lab, {"answer": 1}, policy={"callbacks": ["nobody"], "callback_attempts": 1})
    assert error(lab, trace) == "E_CALLBACK"


def test_a_handler_may_go_round_again(lab):
    register_callback("again")(lambda result, session: {"verdict": "continue"} if session.iteration == 0 else None)
    trace = run(lab, {"answer": 1}, {"answer": 2}, policy={"callbacks": ["again"]})
    assert trace.result(0) == 2
    assert lab.events(trace).count("CALLBACK_RESULT") == 2


def test_a_loop_without_end_stops_at_max_steps(lab):
    register_callback("again")(lambda result, session: {"verdict": "continue"})
    trace = run(lab, *[{"answer": 1}] * 50, policy={"callbacks": ["again"], "max_steps": 5})
    assert error(lab, trace) == "E_STEP_LIMIT"
    assert len(lab.steps(trace)) == 5


def exits():
    raise SystemExit(3)


def breaks():
    raise ValueError("not now")


def forbids():
    raise Permanent("never")


@pytest.mark.parametrize(("breaking", "tries"), [(breaks, 2), (exits, 2), (forbids, 1)])
@pytest.mark.parametrize("then", ["fail", "finish"])
def test_f25_what_a_callback_wanted_written_is_rolled_back_with_it(lab, breaking, tries, then):
    runs = []
    register_callback("notes")(lambda result, session: {"memory": [{"key": "seen", "value": result}]})
    register_callback("breaks")(lambda result, session: runs.append(1) or breaking())
    policy = {
        "callbacks": ["notes", "breaks"], "callback_attempts": 2, "backoff": AT_ONCE, "on_callback_fail": then,
    }  # fmt: skip
    trace = run(lab, {"tools": ["work"]}, policy=policy)
    assert lab.trace(trace)["status"] == {"fail": "failed", "finish": "done"}[then]
    assert len(runs) == tries
    assert lab.rows("SELECT key FROM mesh.memory") == []
    assert lab.rows("SELECT name FROM mesh.effects") == []
    assert lab.outcomes(trace) == ["won"]  # its step was not run again
    assert broken(lab.url) == {}


def test_f25_a_callback_over_its_time_starts_again_and_writes_once(lab):
    register_callback("notes")(lambda result, session: {"memory": [{"key": "seen", "value": result}]})
    trace = lab.start({"answer": 1}, policy={"callbacks": ["notes"]})
    faults.arm("callback.before", die)
    with pytest.raises(Died):
        lab.drain()
    faults.disarm()
    lab.shift(1000)
    [late] = [row for row in rescue.overdue(lab.mesh.db, batch=10) if row["kind"] == "trace"]
    lab.bells.ring(rescue.give_back(lab.mesh.db, late, "timeout"))
    lab.drain()
    assert lab.trace(trace)["status"] == "done"
    assert lab.outcomes(trace, "callback") == ["timeout", "won"]
    assert [(row["key"], row["version"]) for row in lab.rows("SELECT key, version FROM mesh.memory ORDER BY key")] == [
        ("result:reason", 1), ("seen", 1),
    ]  # fmt: skip
    assert broken(lab.url) == {}


class Died(BaseException):
    """The process is gone in the middle of a handler."""


def die():
    raise Died
