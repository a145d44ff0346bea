"""Plans as pictures: every way is drawn, and nothing that a chain says is markup."""

import json
import random
import textwrap
from itertools import combinations
from xml.etree import ElementTree

import pytest

from agentmesh.execution import chain
from agentmesh.execution.plan import BehaviorPlan, default_plan
from agentmesh.observation import drawing
from agentmesh.observation.svg import svg
from tests.execution.random_plans import make_plan

STEPS = [
    {"reasoner": "generate_plan"}, {"tools": "chosen"},
    {"tools": ["query_db", "fetch_doc"], "strategy": "parallel", "on_fail": "sorry"},
    {"jump_if": "result.low_confidence", "then": "generate_plan"},
    {"switch": [{"when": "payload.kind == 'a'", "then": "ask"}], "else": "end"},
    {"approval": "ship it?", "id": "ask", "who": ["ann"], "within": "2d", "on_timeout": "sorry", "on_fail": "fail"},
    {"parallel": {"left": [{"tools": ["query_db"]}], "right": [{"wait": "1h"}]}, "when": "payload.many"},
    {"finish": "ok"}, {"finish": {"=": "payload.why"}, "id": "sorry"},
]  # fmt: skip
PLAN = chain.from_values({"chain": "complaint", "on_fail": "compensate", "steps": STEPS})


def test_a_chain_whose_failed_steps_are_skipped_is_drawn():
    plan = chain.from_values({"chain": "c", "on_fail": "skip", "steps": [{"tools": ["a"]}]})
    assert "when a step fails" not in drawing.text(drawing.picture(plan))


def test_a_terminal_sees_each_node_and_rails_for_the_ways_that_do_not_lead_to_the_next():
    assert drawing.text(drawing.picture(PLAN)) == textwrap.dedent("""\
                     ▶ complaint
        ╭────────────╎─  when a step fails
        │       ╭───▸● generate_plan      reasoner generate_plan
        │       │    │   tools ↓
        │       │ ╭──├─  an answer
        │       │ │  ● tools              the tools it chose
        │       │ ╰─▸● tools-2            parallel: query_db, fetch_doc
        │ ╭─────┼────╎─  on failure
        │ │     │    ◇ jump               at most 100 times
        │ │     ╰────├─  result.low_confidence
        │ │          │   else ↓
        │ │          ◇ switch             at most 100 times
        │ │          │   payload.kind == 'a' ↓
        │ │ ╭────────├─  else
        │ │ │        ● ask                approval of ann: approve / reject within 2 d
        │ │ │ ╭──────╎─  on failure
        │ │ │ │ ╭────╎─  on time-out
        │ │ │ │ │    ● parallel           chain parallel-left, chain parallel-right · when payload.many
        │ │ │ │ │    ◇ finish             "ok"
        │ │ │ │ │ ╭──├─
        │ ╰─┼─┼─┴─┼─▸◇ sorry              payload.why
        │   ╰─┼───┴─▸■ end
        │     ╰─────▸■ failed
        ╰───────────▸■ undo, then failed

         ▶ complaint / parallel-left
         ● tools  serial: query_db
         ■ end

         ▶ complaint / parallel-right
         ● wait  wait 1 h
         ■ end
        """)  # fmt: skip


def test_a_terminal_that_knows_ascii_only_gets_the_same_lines():
    drawn = drawing.text(drawing.picture(PLAN))
    plain = drawn.translate(drawing.PLAIN)
    assert plain.isascii()
    assert [len(one) for one in plain.splitlines()] == [len(one) for one in drawn.splitlines()]


def test_mermaid_has_each_box_each_way_and_child_plans_as_subgraphs():
    said = drawing.mermaid(drawing.picture(PLAN))
    assert said.startswith("flowchart TD\n")
    assert '  p0n1["generate_plan<br/>reasoner generate_plan"]\n' in said
    assert '  p0n4 -->|"result.low_confidence"| p0n1\n' in said
    assert '  p0n6 -.->|"on time-out"| p0n9\n' in said
    assert '  subgraph p1["complaint / parallel-left"]\n' in said


def test_what_a_chain_says_is_no_markup():
    words = '</text><script>"]|--> end `x` \x1b[31m'
    plan = chain.from_values({"chain": "c", "steps": [{"finish": words}]})
    said, drawn, flow = (
        drawing.text(drawing.picture(plan)),
        svg(drawing.picture(plan)),
        drawing.mermaid(drawing.picture(plan)),
    )
    assert "\x1b" not in said + drawn + flow
    assert [one.tag.rpartition("}")[2] for one in ElementTree.fromstring(drawn).iter()].count("script") == 0
    assert not any(mark in flow for mark in ("<script", '"]|', "`"))


@pytest.mark.parametrize("seed", range(60))
def test_any_plan_is_drawn_whole_in_svg_and_no_box_lies_on_another(seed):
    plan = make_plan(random.Random(seed).choice)
    drawn = drawing.picture(plan)
    assert {(one.start, one.end) for one in drawn.ways} >= {(0, 1)}
    assert len(drawing.text(drawn).splitlines()) >= len(drawn.boxes)
    root = ElementTree.fromstring(svg(drawn))
    found = [one for one in root.iter() if one.get("class") in {"start", "step", "move", "end"}]
    names = [one.text for one in root.iter() if one.get("class") == "name"]
    ways = [one for one in root.iter() if one.get("class") in {"way", "broken"}]
    assert names == [one.name for one in drawn.boxes]
    assert len(ways) == len(set(drawn.ways))
    for a, b in combinations(found, 2):
        ax, ay, aw, ah = (float(a.get(key)) for key in ("x", "y", "width", "height"))
        bx, by, bw, bh = (float(b.get(key)) for key in ("x", "y", "width", "height"))
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
    assert all(float(one.get("x")) >= 0 for one in found)


@pytest.mark.parametrize("lost", ["n0", "n999"])
def test_a_plan_of_a_thousand_nodes_is_drawn(lost):
    nodes = [{"id": f"n{n}", "kind": "wait", "seconds": 1, "next": f"n{n + 1}" if n < 999 else None, "on_fail": lost}
             for n in range(1000)]  # fmt: skip
    drawn = drawing.picture(BehaviorPlan.model_validate_json(json.dumps({"chain": "c", "nodes": nodes})))
    assert svg(drawn).count('class="broken"') == 1000
    assert len(drawing.mermaid(drawn).splitlines()) > 3000


def test_the_default_plan_shows_where_its_callback_may_send_it():
    said = drawing.text(drawing.picture(default_plan()))
    assert "as its callback says" in said
    assert "an answer" in said


def test_branches_are_drawn_from_what_they_need():
    tools = {"tools": ["work"]}
    plan = chain.from_values({"chain": "c", "steps": [
        {"id": "a", **tools, "needs": []}, {"id": "b", **tools, "needs": []}, {"id": "both", **tools, "needs": ["a", "b"]},
    ]})  # fmt: skip
    found = drawing.picture(plan)
    names = [one.name for one in found.boxes]
    assert [(names[one.start], names[one.end]) for one in found.ways] == [
        ("c", "a"), ("c", "b"), ("a", "both"), ("b", "both"), ("both", "end"),
    ]  # fmt: skip
