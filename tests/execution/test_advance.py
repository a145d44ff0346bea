"""advance: total, deterministic, never stalls, bounded by max_steps."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.execution.advance import (
    Again,
    Broke,
    CallTools,
    Decided,
    Fail,
    Finish,
    Handle,
    Joined,
    Ruled,
    State,
    Visit,
    advance,
)  # fmt: skip
from agentmesh.execution.plan import BehaviorPlan, default_plan
from agentmesh.records import Action, Failure, Policy, ToolUse, Verdict

PLAN = default_plan()
TOOLS = Action(slots=((ToolUse(tool="t"),),))

actions = st.sampled_from([Action(answer=1), Action(answer=None), TOOLS])
verdicts = st.sampled_from([
    Verdict(kind="continue"), Verdict(kind="finish"), Verdict(kind="finish", result=5), Verdict(kind="abort", reason="no"),
    Verdict(kind="delegate", to="other", intent="i"),
])  # fmt: skip
failures = st.builds(
    Failure, st.just("E_X"), st.just("x"), permanent=st.booleans(), after_s=st.sampled_from([None, 0.0, 3.0])
)
facts = st.one_of(
    st.builds(Decided, actions), st.builds(Joined, st.booleans()), st.builds(Ruled, verdicts),
    st.builds(Broke, failures, st.integers(1, 9), st.booleans()),
)  # fmt: skip
policies = st.builds(
    Policy, max_steps=st.integers(1, 12), reasoner_attempts=st.integers(1, 4), callback_attempts=st.integers(1, 4),
    on_fail=st.sampled_from(["callback", "fail"]), on_callback_fail=st.sampled_from(["fail", "finish"]),
)  # fmt: skip
states = st.builds(
    State, st.sampled_from(["reason", "tools"]), st.integers(1, 20), st.integers(1, 40), policies, facts, st.integers()
)


@settings(max_examples=150, deadline=None)
@given(states)
def test_every_fact_has_one_decision_and_the_same_facts_have_the_same(state):
    decision = advance(PLAN, state)
    assert isinstance(decision, CallTools | Handle | Visit | Again | Finish | Fail)
    assert advance(BehaviorPlan.model_validate_json(PLAN.model_dump_json()), state) == decision


@settings(max_examples=60, deadline=None)
@given(states)
def test_no_step_is_visited_past_the_limit_and_none_is_tried_past_its_attempts(state):
    match advance(PLAN, state):
        case Visit():
            assert state.steps < state.policy.max_steps
        case Again():
            limit = state.policy.callback_attempts if state.fact.callback else state.policy.reasoner_attempts
            assert state.fact.failures < limit
            assert not state.fact.failure.permanent


@dataclass
class Run:
    steps: int = 1
    iteration: int = 1
    failures: int = 0
    decisions: int = 0


@settings(max_examples=60, deadline=None)
@given(st.data(), policies)
def test_any_reasoner_any_tools_and_any_callback_come_to_an_end(data, policy):
    run, at = Run(), "reason"
    while True:
        run.decisions += 1
        assert run.decisions < 20 * policy.max_steps + 40
        broke = st.builds(Broke, failures, st.just(run.failures + 1), st.just(at == "callback"))
        fact = data.draw({
            "reason": st.one_of(st.builds(Decided, actions), broke),
            "tools": st.builds(Joined, st.booleans()),
            "callback": st.one_of(st.builds(Ruled, verdicts), broke),
        }[at])  # fmt: skip
        match advance(PLAN, State("reason", run.iteration, run.steps, policy, fact, 1)):
            case Finish() | Fail():
                break
            case Again():
                run.failures += 1
            case CallTools():
                at, run.steps, run.failures = "tools", run.steps + 1, 0
            case Handle():
                at, run.failures = "callback", 0
            case Visit(iteration=iteration):
                at, run.steps, run.failures = "reason", run.steps + 1, 0
                assert iteration == run.iteration + 1
                run.iteration = iteration
    assert run.steps <= policy.max_steps + 2


def test_a_verdict_without_a_result_finishes_with_the_steps_own():
    state = State("reason", 1, 1, Policy(), Ruled(Verdict(kind="finish")), result=42)
    assert advance(PLAN, state) == Finish(42)


def test_failed_tools_go_to_the_callback_unless_the_policy_says_fail():
    assert isinstance(advance(PLAN, State("tools", 1, 2, Policy(), Joined(ok=False))), Handle)
    assert isinstance(advance(PLAN, State("tools", 1, 2, Policy(on_fail="fail"), Joined(ok=False))), Fail)


def test_the_same_plan_has_the_same_hash_and_another_has_another():
    other = BehaviorPlan(chain="other", nodes=PLAN.nodes)
    assert default_plan().hash == PLAN.hash != other.hash
