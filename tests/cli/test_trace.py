"""trace list and trace show: tables, trees, events, and ids by their beginnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agentmesh.behavior.agents import define_agent
from agentmesh.execution.tools import register_tool

Cli = Callable[..., Any]


def worked(lab: Any, *tools: str, **options: Any) -> Any:
    trace = lab.start({"tools": list(tools)}, **options)
    lab.drain()
    return trace


def test_traces_are_listed_newest_first_one_tab_separated_line_each(mesh_cli: Cli, lab: Any) -> None:
    first, second = worked(lab, "work"), worked(lab, "boom")
    ran = mesh_cli("trace", "list")
    cells = [line.split("\t") for line in ran.out.splitlines()]
    assert [row[0] for row in cells] == [str(second.id), str(first.id)]
    assert [row[1] for row in cells] == ["failed", "done"]
    assert cells[0][6].endswith("Z")


def test_a_filter_and_a_limit_narrow_the_list(mesh_cli: Cli, lab: Any) -> None:
    first, second = worked(lab, "work"), worked(lab, "work")
    worked(lab, "boom")
    ran = mesh_cli("trace", "list", "--filter", "status:done agent:puppet", "--limit", 1, "--json")
    assert ran.json["schema"] == "agentmesh.traces/1"
    assert [one["id"] for one in ran.json["traces"]] == [str(second.id)]
    older = mesh_cli("trace", "list", "--filter", "status:done", "--before", second.id, "--json")
    assert [one["id"] for one in older.json["traces"]] == [str(first.id)]


def test_a_filter_that_is_none_says_which_there_are(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("trace", "list", "--filter", "colour:red", "--json")
    assert (ran.code, ran.problem["code"]) == (2, "E_USAGE")
    assert "status:" in ran.problem["expected"]


def test_a_status_that_does_not_exist_says_which_there_are(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("trace", "list", "--filter", "status:nope", "--json")
    assert (ran.code, ran.problem["code"], ran.problem["value"]) == (2, "E_USAGE", "nope")
    assert "cancelled" in ran.problem["expected"]


def test_an_empty_list_says_what_fills_it(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("trace", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "agentmesh submit" in ran.err


def test_a_trace_is_drawn_with_its_steps_calls_attempts_and_errors(mesh_cli: Cli, lab: Any) -> None:
    worked(lab, "work", "boom")
    ran = mesh_cli("trace", "show", "@last")
    lines = ran.out.splitlines()
    assert lines[0].startswith("✗ puppet · work · failed")
    assert any(line.startswith("    ✓ work") and "→ 1" in line for line in lines)
    assert any(line.startswith("    ✗ boom") and "E_TOOL" in line for line in lines)


def test_a_step_that_asked_a_model_shows_what_it_cost(mesh_cli: Cli, make_mesh: Any) -> None:
    def decide(session: Any) -> Any:
        session.note("REASONER_PROMPT", {"model": "small", "input_tokens": 11, "output_tokens": 7, "cost_usd": 0.0005})
        session.note("REASONER_PROMPT", {"model": "small", "input_tokens": 9, "output_tokens": "x", "cost_usd": 1e300})
        session.note("REASONER_PROMPT", {"prompt": "no model was asked"})
        return {"answer": 1}

    mesh, bells = make_mesh(define_agent("asker", reasoner=decide))
    trace = mesh.router.dispatch("ask", "shop", "asker", "c-1", {})
    bells.drain(mesh)
    assert " · small · 20 + 7 tokens · $1e+15 → " in mesh_cli("trace", "show", trace.id).out
    (step,) = mesh_cli("trace", "show", trace.id, "--json").json["step_rows"]
    assert (step["model"], step["input_tokens"], step["output_tokens"]) == ("small", 20, 7)


def test_an_attempt_that_runs_is_drawn_with_its_worker_and_progress(mesh_cli: Cli, lab: Any) -> None:
    trace = lab.open("work")
    other = lab.worker("elsewhere")
    lab.claim(lab.calls(trace)[0], other)
    lab.rows("UPDATE mesh.attempts SET progress = '{\"done\": 3}' WHERE call_id IS NOT NULL")
    ran = mesh_cli("trace", "show", "@last")
    assert any(
        "attempt 1 · running" in line and "elsewhere" in line and '{"done": 3}' in line for line in ran.out.splitlines()
    )


def test_ids_may_be_shortened_to_a_unique_beginning(mesh_cli: Cli, lab: Any) -> None:
    first, second = worked(lab, "work"), worked(lab, "work")
    common = len([1 for a, b in zip(str(first.id), str(second.id), strict=True) if a == b])
    assert str(first.id) in mesh_cli("trace", "show", str(first.id)[:-1]).out
    ran = mesh_cli("trace", "show", str(first.id)[:4], "--json")
    assert (ran.code, ran.problem["code"]) == (2, "E_AMBIGUOUS")
    assert common > 4


def test_an_id_that_nobody_has_is_not_found(mesh_cli: Cli, lab: Any) -> None:
    for given in ("ffff", "not-an-id", "@last"):
        ran = mesh_cli("trace", "show", given, "--json")
        assert (ran.code, ran.problem["code"]) == (3, "E_TRACE_UNKNOWN")


def test_events_are_one_line_each(mesh_cli: Cli, lab: Any) -> None:
    trace = worked(lab, "work")
    ran = mesh_cli("trace", "show", trace.id, "--events")
    names = [line.split("\t")[2] for line in ran.out.splitlines()]
    assert names == lab.events(trace)


def test_json_has_everything_under_the_trace(mesh_cli: Cli, lab: Any) -> None:
    trace = worked(lab, "work")
    seen = mesh_cli("trace", "show", "@last", "--json").json
    assert seen["schema"] == "agentmesh.trace/1"
    assert seen["id"] == str(trace.id)
    assert [one["tool"] for one in seen["calls"]] == ["work"]
    assert [one["outcome"] for one in seen["attempts"] if one["call_id"]] == ["won"]
    assert [one["name"] for one in seen["events"]] == lab.events(trace)


def test_following_a_trace_that_has_ended_ends(mesh_cli: Cli, lab: Any) -> None:
    trace = worked(lab, "work")
    ran = mesh_cli("trace", "show", "@last", "--follow", "--json")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert {one["schema"] for one in lines} == {"agentmesh.event/1"}
    assert [one["name"] for one in lines] == lab.events(trace)


def test_s35_control_characters_in_what_tools_say_are_escaped(mesh_cli: Cli, lab: Any) -> None:
    lab.start({"answer": "\x1b]0;owned\x07\u202etext"}, payload={"text": "\x1b[2J"})
    lab.drain()
    for extra in ([], ["--events"], ["--json"]):
        ran = mesh_cli("trace", "show", "@last", *extra)
        assert ran.code == 0
        assert not {"\x1b", "\x07", "\u202e"} & set(ran.out + ran.err)


CANARY = "canary-7f3a91"


def test_a_dump_holds_everything_but_secrets_and_says_what_is_decided_next(
    mesh_cli: Cli, make_lab: Any, tools: Any
) -> None:
    @register_tool("ask", registry=tools)
    def ask(url: str, api_key: str) -> int:
        return 1

    lab = make_lab(chain={"chain": "c", "steps": [
        {"set": {"token": {"=": "payload.password"}}},
        {"tools": [{"tool": "ask", "args": {"url": f"https://u:{CANARY}@shop", "api_key": {"=": "payload.password"}}}],
         "on_fail": "next"},
        {"signal": "paid", "within": "1d", "id": "paid"}, {"wait": "3d", "id": "pause"}, {"finish": {"=": "payload.n"}},
    ]})  # fmt: skip
    given = {"password": CANARY, "note": f"Authorization: Bearer {CANARY}{CANARY}"}
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", given)
    lab.answer()
    dumped = [mesh_cli("trace", "dump", "@last")]
    body = dumped[0].json
    assert (body["schema"], body["trace"]["id"], body["plan"]["chain"]) == ("agentmesh.dump/1", str(trace.id), "c")
    assert [one["tool"] for one in body["pending_calls"]] == ["ask"]
    assert body["next"] == [{
        "step": 2, "node": "tools", "decision": None, "why": "0 of the 1 it needs have succeeded, 1 are open: ask (ready)",
    }]  # fmt: skip
    assert body["session"]["command"]["payload"]["password"] == "***"
    lab.answer()  # the call is done, and its step has joined
    dumped.append(mesh_cli("trace", "dump", str(trace.id)))
    found = dumped[1].json["next"][0]
    assert (found["decision"]["kind"], found["decision"]["node"], found["why"]) == ("Rest", "paid", "it has its result")
    steps = lab.rows("SELECT count(*) AS n FROM mesh.steps WHERE status = 'running'")[0]["n"]
    assert (steps, lab.trace(trace)["worker_id"]) == (0, None)  # it was a look, nothing more
    lab.drain()
    lab.mesh.people.signal(trace.id, "paid", {"secret": CANARY}, by="ann")
    lab.drain()
    dumped.append(mesh_cli("trace", "dump", str(trace.id)))
    late = dumped[2].json
    assert late["next"][0]["decision"]["failure"]["code"] == "E_RULE"  # there is no payload.n: told three days before
    assert [one["name"] for one in late["signals"]] == ["paid"]
    assert {"short_term:result:tools", "short_term:result:paid"} <= {
        f"{one['type']}:{one['key']}" for one in late["memory"]
    }
    assert not [one for one in dumped if CANARY in one.out]


def test_a_dump_says_why_an_ended_and_a_paused_trace_stand(mesh_cli: Cli, lab: Any) -> None:
    ended = worked(lab, "work")
    assert mesh_cli("trace", "dump", str(ended.id)).json["next"][0]["why"] == "the trace is done"
    waiting = lab.start({"answer": 1})
    mesh_cli("pause", str(waiting.id))
    body = mesh_cli("trace", "dump", str(waiting.id)).json
    assert body["next"][0]["why"] == "the trace is queued: it has not begun"
    assert body["held_up_by"][0].startswith("it is paused since ")
    assert mesh_cli("trace", "dump", "0123456789").err.startswith("E_TRACE_UNKNOWN")


def test_a_session_shows_what_the_reasoner_saw_at_each_decision(mesh_cli: Cli, make_mesh: Any) -> None:
    session = {"strategy": "dialogue", "options": {"most": 1, "memory_keys": ["long_term:tier"]}}
    mesh, bells = make_mesh(define_agent("talker", reasoner=lambda session: {"answer": "ok"}, session=session))
    for key in ("tier", "other"):
        mesh.memory("c-1").store(key, "gold")
    for n in range(3):
        mesh.router.dispatch("say", "ann", "talker", "c-1", {"n": n})
        bells.drain(mesh)
    mesh.memory("c-1").store("tier", "lead")  # later than what it saw
    [seen] = mesh_cli("trace", "show", "@last", "--session", "--json").json["decisions"]
    assert seen["values"]["payload"] == {"n": 2}
    assert seen["values"]["memory"] == {"long_term:tier": "gold"}
    assert [one["payload"] for one in seen["values"]["turns"]] == [{"n": 1}]
    assert seen["action"]["answer"] == "ok"
    told = mesh_cli("trace", "show", "@last", "--session").out
    assert 'memory        {"long_term:tier": "gold"}' in told
    assert told.startswith("step 1  reason  dialogue, ")


def test_a_trace_that_decided_nothing_has_no_session_to_show(mesh_cli: Cli, lab: Any) -> None:
    lab.start({"answer": 1})
    assert mesh_cli("trace", "show", "@last", "--session", "--json").problem["code"] == "E_DECISION_UNKNOWN"
