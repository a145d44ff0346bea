"""Tools: strict arguments and results, declarations that are refused, Celery tasks that are adopted."""

import math
from typing import Annotated, Any, Literal

import pytest
from celery import Celery
from pydantic import BaseModel, Field

from agentmesh.errors import BadArguments, BadName, BadPermission, BadResult, BadTool, UnknownTool
from agentmesh.execution.tools import ToolContext, ToolRegistry, register_tool
from agentmesh.records import Backoff


def made(registry, function, **keys):
    register_tool("it", registry=registry, **keys)(function)
    return registry.get("it")


@pytest.fixture
def registry():
    return ToolRegistry()


# --- arguments, as S16 attacks them


@pytest.fixture
def add(registry):
    def it(
        ctx: ToolContext,
        n: int,
        x: float = 0.0,
        flag: bool = False,
        kind: Literal["a", "b"] = "a",
        either: int | str = 1,
    ) -> float:
        return n + x

    return made(registry, it)


@pytest.mark.parametrize("args", [
    {"n": 1, "extra": 2}, {"n": "1"}, {"n": True}, {"n": 1.0}, {"n": None}, {}, {"n": 10**400}, {"n": 1, "x": math.nan},
    {"n": 1, "x": math.inf}, {"n": 1, "x": "1"}, {"n": 1, "flag": 1}, {"n": 1, "flag": "true"}, {"n": 1, "kind": "c"},
    {"n": 1, "either": True}, {"n": 1, "either": 1.5}, {"n": 1, "self": 1}, {"n": 1, "ctx": {}}, {"n": 1, "__class__": "x"},
    {"n": 1, "model_config": {}}, {"n": 1, "": 1}, {"n": [1]}, {"n": {"$blob": "x"}}, {"N": 1}, {"n ": 1},
])  # fmt: skip
def test_s16_arguments_that_do_not_fit_exactly_are_refused(add, args):
    with pytest.raises(Exception, match=r"E_ARGUMENTS|E_JSON"):
        add.check(args)


def test_s16_arguments_that_fit_arrive_as_they_are(add):
    assert add.check({"n": 2, "x": 1.5, "either": "1"}) == {"n": 2, "x": 1.5, "flag": False, "kind": "a", "either": "1"}


def test_s16_bad_arguments_from_a_reasoner_never_reach_the_tool(make_lab, tools):
    ran = []

    @register_tool("strict", registry=tools)
    def strict(n: int) -> int:
        ran.append(n)
        return n

    lab = make_lab()
    for args in ({"n": "1"}, {"n": 1, "ctx": 1}, {"n": 1, "self": 1}, {"n": True}):
        trace = lab.start({"tools": [{"tool": "strict", "args": args}]}, policy={"reasoner_attempts": 1})
        lab.drain()
        assert lab.trace(trace)["error"]["code"] == "E_ARGUMENTS"
    assert ran == []


def test_a_model_as_argument_is_checked_inside_as_strictly(registry):
    class Order(BaseModel):
        count: int

    def it(order: Order) -> int:
        return order.count

    tool = made(registry, it)
    assert tool.check({"order": {"count": 2}})["order"].count == 2
    with pytest.raises(BadArguments, match=r"order\.count"):
        tool.check({"order": {"count": "2"}})
    with pytest.raises(BadArguments, match=r"order\.extra"):
        tool.check({"order": {"count": 2, "extra": 1}})


def test_bounds_in_annotations_hold(registry):
    def it(n: Annotated[int, Field(ge=1, le=5)]) -> int:
        return n

    tool = made(registry, it)
    with pytest.raises(BadArguments):
        tool.check({"n": 6})


# --- results


@pytest.mark.parametrize("value", ["1", 1.5, None, [1], True])
def test_a_result_that_breaks_the_annotation_is_refused(registry, value):
    def it() -> int:
        return value

    with pytest.raises(BadResult):
        made(registry, it).output(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1: 2}, {"a": {1, 2}}, "\ud800", b"x", 10**400])
def test_a_result_that_is_no_json_is_refused_whatever_the_annotation(registry, value):
    def it() -> Any:
        return value

    with pytest.raises(Exception, match=r"E_RESULT|E_JSON"):
        made(registry, it).output(value)


def test_a_result_that_breaks_its_schema_fails_the_call_and_is_never_passed_on(make_lab, tools):
    @register_tool("liar", registry=tools, attempts=3)
    def liar() -> int:
        return "not a number"

    lab = make_lab()
    trace = lab.open("liar")
    lab.drain()
    [call] = lab.calls(trace)
    assert (call["status"], call["result"], call["error"]["code"], call["n"]) == ("failed", None, "E_RESULT", 1)


def test_a_tool_that_returns_no_number_is_not_run_again(make_lab, tools):
    @register_tool("nan", registry=tools, attempts=3)
    def nan() -> float:
        return math.nan

    lab = make_lab()
    trace = lab.open("nan")
    lab.drain()
    assert (lab.calls(trace)[0]["status"], lab.outcomes(trace)) == ("failed", ["failed"])


def test_a_model_as_result_becomes_json(registry):
    class Found(BaseModel):
        n: int

    def it() -> Found:
        return Found(n=1)

    assert made(registry, it).output(Found(n=1)) == {"n": 1}


# --- declarations


def one(n: int) -> int:
    return n


async def later(n: int) -> int:
    return n


def starred(*args: int) -> int:
    return 1


def unhinted(n) -> int:
    return n


@pytest.mark.parametrize(("function", "keys", "error"), [
    (one, {"effect": "once", "inline": True}, BadTool), (one, {"effect": "once", "attempts": 2}, BadTool),
    (one, {"effect": "sometimes"}, BadTool), (one, {"tx": True, "timeout": 6}, BadTool), (later, {"tx": True}, BadTool),
    (starred, {}, BadTool), (unhinted, {}, BadTool), (one, {"needs": ["DB:READ"]}, BadPermission),
    (one, {"needs": ["db:*"]}, BadPermission), (one, {"queue": "a.b"}, BadName),
])  # fmt: skip
def test_a_declaration_that_cannot_be_kept_is_refused(registry, function, keys, error):
    with pytest.raises(error):
        made(registry, function, **keys)
    assert registry.list() == []


@pytest.mark.parametrize("name", ["Upper", "a.b", "a*", "", "../x", "a\n", "x" * 65])
def test_s24_a_name_outside_the_grammar_is_refused(registry, name):
    with pytest.raises(BadName):
        register_tool(name, registry=registry)(one)


def test_two_functions_of_one_name_are_refused_and_one_function_twice_is_not(registry):
    made(registry, one)
    made(registry, one)
    with pytest.raises(BadTool):
        made(registry, later)


def test_an_unknown_name_comes_with_the_nearest(registry):
    made(registry, one)
    with pytest.raises(UnknownTool, match="did you mean it"):
        registry.get("itt")
    registry.unregister("it")
    registry.unregister("it")
    assert "it" not in registry


def test_the_function_itself_is_unchanged(registry):
    assert register_tool("it", registry=registry)(one) is one
    assert one(3) == 3


# --- adopted Celery tasks


@pytest.fixture
def app():
    made = Celery("theirs", broker="memory://", set_as_current=False)
    yield made
    made.close()


def test_an_adopted_task_runs_with_its_own_request_and_stays_a_task(app, make_lab, tools):
    seen = []

    @app.task(bind=True, name="theirs.add", max_retries=2)
    def add(self, a: int, b: int = 1) -> int:
        seen.append((self.request.id, self.request.retries, self.request.called_directly))
        return a + b

    register_tool("add", task=add, registry=tools)
    lab = make_lab()
    trace = lab.start({"tools": [{"tool": "add", "args": {"a": 2}}]})
    lab.drain()
    assert trace.result(0) == 3
    assert seen[0][1:] == (0, True)
    assert add(1, 2) == 3
    assert lab.mesh.tools.get("add").attempts == 3


def test_an_adopted_tasks_autoretry_is_our_retry(app, make_lab, tools):
    runs = []

    @app.task(
        bind=True,
        name="theirs.flaky",
        autoretry_for=(ValueError,),
        max_retries=3,
        retry_backoff=False,
        default_retry_delay=0,
    )
    def flaky(self) -> int:
        runs.append(self.request.retries)
        if len(runs) < 3:
            raise ValueError("again")
        return len(runs)

    from agentmesh.records import Backoff

    register_tool("flaky", task=flaky, registry=tools, backoff=Backoff(base_s=0, cap_s=0))
    lab = make_lab()
    trace = lab.start({"tools": ["flaky"]})
    lab.drain()
    for _ in range(3):
        [call] = lab.calls(trace)
        if call["status"] != "ready":
            break
        from agentmesh.records import Ring

        lab.bells.waiting.append(Ring("call", call["id"], call["epoch"], call["queue"], call["task"], trace.id))
        lab.drain()
    assert trace.result(0) == 3
    assert runs == [0, 1, 2]


# --- what a tool sees


def test_a_tool_sees_its_call_and_the_earlier_results_of_its_slot(make_lab, tools):
    seen = {}

    @register_tool("first", registry=tools)
    def first() -> int:
        return 5

    @register_tool("second", registry=tools)
    def second(ctx: ToolContext) -> int:
        seen.update(
            results=dict(ctx.results), attempt=ctx.attempt, tenant=ctx.tenant, key=ctx.idempotency_key, word=ctx["word"]
        )
        return 6

    lab = make_lab()
    trace = lab.start({"tools": ["first", "second"], "strategy": "serial"}, payload={"word": "hello"})
    lab.drain()
    assert trace.result(0) == 6
    assert seen == {
        "results": {"first": 5}, "attempt": 1, "tenant": "default", "key": lab.calls(trace)[1]["idem_key"], "word": "hello",
    }  # fmt: skip


# --- one call for many inputs


def test_a_call_for_many_inputs_returns_their_results_in_order(make_lab, tools):
    keys = []

    @register_tool("double", registry=tools, attempts=2, backoff=Backoff(base_s=0, cap_s=0))
    def double(ctx: ToolContext, n: int, plus: int = 0) -> int:
        keys.append(ctx.idempotency_key.rpartition(".")[2])
        return 2 * n + plus

    lab = make_lab()
    trace = lab.start({"tools": [{"tool": "double", "for": [{"n": 3}, {"n": 1, "plus": 5}], "args": {"plus": 1}}]})
    lab.drain()
    assert trace.result(1) == [7, 7]
    assert (len(lab.calls(trace)), keys) == (1, ["0", "1"])


def test_a_tool_may_take_many_inputs_at_once(make_lab, tools):
    def doubles(ctx: ToolContext, inputs: list[dict]) -> list[int]:
        return [2 * one["n"] for one in inputs][:2]

    @register_tool("double", registry=tools, attempts=1, many=doubles)
    def double(n: int) -> int:
        raise AssertionError("one after the other")

    lab = make_lab()
    both, short = (
        lab.start({"tools": [{"tool": "double", "for": [{"n": n} for n in range(size)]}]}) for size in (2, 3)
    )
    lab.drain()
    assert both.result(1) == [0, 2]
    assert lab.calls(short)[0]["error"]["code"] == "E_RESULT"


@pytest.mark.parametrize("given", [
    {"for": [{"n": 1}, {"n": "2"}]}, {"for": [1]}, {"for": {"n": 1}}, {"for": None}, {"for": [{"n": 1}], "n": 2},
    {"for": [{"n": 1}] * 1001}, {"for": [{"n": 1, "for": [{"n": 1}]}]},
])  # fmt: skip
def test_s16_every_input_of_many_is_checked(add, given):
    with pytest.raises(BadArguments):
        add.check(given)
