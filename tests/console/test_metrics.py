"""Figures for Prometheus: what was committed is counted once, and the board and the rules name nothing that is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from ruamel.yaml import YAML

from agentmesh.behavior.agents import define_agent
from agentmesh.execution.tools import ToolRegistry, register_tool
from agentmesh.infrastructure.counts import NAMES
from agentmesh.records import Backoff, Ring
from agentmesh.testing import until
from tests.conftest import do_as_told
from tests.console.doors import Door, intent

DEPLOY = Path(__file__).parents[2] / "deploy"


def figures(door: Door) -> dict[str, float]:
    """Every sample of /metrics, by its name with its labels."""
    page = door.client("metrics:read").get("/metrics").text
    found = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in found}


def test_what_is_committed_is_counted_once_by_agent_and_status(door: Door) -> None:
    figures(door)  # from now on
    for payload in ({}, {"do": [{"tools": [{"tool": "boom"}]}]}):
        door.client().post("/v1/intents", json=intent(payload))
    door.lab.drain()
    wanted = {'agentmesh_traces_finished_total{agent="puppet",status="done"}': 1.0,
              'agentmesh_traces_finished_total{agent="puppet",status="failed"}': 1.0,
              'agentmesh_events_total{event="BIR_DISPATCH"}': 2.0,
              'agentmesh_trace_duration_seconds_count{agent="puppet"}': 2.0}  # fmt: skip
    seen = until(lambda: (found := figures(door)).items() >= wanted.items() and found)
    assert figures(door).items() >= wanted.items()
    assert seen["agentmesh_audit_unsealed"] >= 2


ASKED = {"model": "small", "input_tokens": 100, "output_tokens": 20, "cost_usd": 0.25, "seconds": 1.5}
EXPECTED = {  # as the documents name them, each with its labels
    "agentmesh_intents_accepted_total": {"agent"}, "agentmesh_refused_total": {"reason"},
    "agentmesh_traces_finished_total": {"agent", "status"}, "agentmesh_trace_duration_seconds_count": {"agent"},
    "agentmesh_step_duration_seconds_count": {"kind"}, "agentmesh_calls_total": {"tool", "outcome"},
    "agentmesh_call_duration_seconds_count": {"tool"}, "agentmesh_call_wait_seconds_count": {"queue"},
    "agentmesh_ready": {"queue"}, "agentmesh_oldest_ready_seconds": {"queue"}, "agentmesh_rings_total": {"reason"},
    "agentmesh_leases_lost_total": set(), "agentmesh_fenced_writes_total": set(), "agentmesh_rescued_total": {"kind"},
    "agentmesh_workers": {"state"}, "agentmesh_join_latency_seconds_count": set(), "agentmesh_tokens_total": {"model", "kind"},
    "agentmesh_cost_usd_total": {"model"}, "agentmesh_webhook_deliveries_total": {"outcome"}, "agentmesh_db_pool_in_use": set(),
    "agentmesh_db_round_trips_total": {"transition"},
    "gen_ai_client_operation_duration_count": {"gen_ai_operation_name", "gen_ai_request_model"},
    "gen_ai_client_token_usage_count": {"gen_ai_operation_name", "gen_ai_request_model", "gen_ai_token_type"},
}  # fmt: skip


def test_every_figure_of_the_documents_is_there_with_its_labels(door: Door) -> None:
    """After a run in which everything that is counted has happened."""
    figures(door)
    lab = door.lab
    for tool in ("work", "boom"):
        wanted = {"do": [{"tools": [tool]}]}
        trace = door.client().post("/v1/intents", json=intent(wanted)).json()["id"]
    door.mesh.trace_writer.record(trace, "REASONER_PROMPT", ASKED)
    door.mesh.trace_writer.record(
        trace, "EXEC_ROLLBACK", {"error": ASKED | {"cost_usd": None}}
    )  # failed, and cost tokens
    door.mesh.trace_writer.record(trace, "EXEC_RESCUE", {})
    door.client().get("/v1/nonesuch")
    lab.drain()
    door.client().post("/v1/intents", json=intent())  # and waits
    other = lab.worker()
    counts = json.dumps(dict.fromkeys(NAMES, 3))
    lab.rows("UPDATE mesh.workers SET counts = %(counts)s WHERE id = %(id)s", id=other.worker_id, counts=counts)
    lab.kill(other)
    found = until(lambda: (seen := figures(door)).get('agentmesh_rescued_total{kind="trace"}') and seen)
    labels = {name.partition("{")[0]: set(re.findall(r'(\w+)="', name)) for name in found}
    assert {name: labels.get(name) for name in EXPECTED} == EXPECTED
    assert {name: found[name] for name in found if name.startswith("agentmesh_calls_total")} == {
        'agentmesh_calls_total{outcome="done",tool="work"}': 1.0, 'agentmesh_calls_total{outcome="failed",tool="boom"}': 1.0,
    }  # fmt: skip
    assert found['agentmesh_tokens_total{kind="output",model="small"}'] == 40
    assert found['agentmesh_cost_usd_total{model="small"}'] == 0.25
    assert found["agentmesh_join_latency_seconds_count"] == 1
    assert found["agentmesh_leases_lost_total"] == 1
    assert found['agentmesh_webhook_deliveries_total{outcome="done"}'] == 3
    assert found['agentmesh_rings_total{reason="again"}'] >= 3
    assert (
        found['agentmesh_refused_total{reason="row"}'],
        found['agentmesh_refused_total{reason="E_PAGE_UNKNOWN"}'],
    ) == (3, 1)
    text = (DEPLOY.parent / "docs" / "watching.md").read_text()
    assert [one for one in EXPECTED if re.sub("_(count|total)$", "", one) not in text] == []


def test_a_call_that_was_retried_is_counted_once_by_how_it_ended(
    make_door: Callable[..., Door], tools: ToolRegistry
) -> None:
    """An inline call tells each attempt, and goes on as a leaf."""
    tries: list[int] = []

    def shaky() -> int:
        tries.append(1)
        return 1 // (len(tries) - 1)

    register_tool("shaky", registry=tools, inline=True, attempts=2, backoff=Backoff(base_s=0, cap_s=0))(shaky)
    door = make_door(define_agent("other", reasoner=do_as_told, tools=["shaky"]))
    figures(door)
    made = door.client().post("/v1/intents", json=intent({"do": [{"tools": ["shaky"]}]}, to="other")).json()
    door.lab.drain()
    [call] = door.lab.calls(door.mesh.trace(UUID(made["id"])))
    door.bells.ring([Ring("call", call["id"], call["epoch"], call["queue"], call["task"], call["trace_id"])])
    door.lab.drain()
    until(lambda: figures(door).get('agentmesh_traces_finished_total{agent="other",status="done"}'))
    assert {name: n for name, n in figures(door).items() if "agentmesh_calls_total" in name} == {
        'agentmesh_calls_total{outcome="done",tool="shaky"}': 1.0
    }


def test_no_label_is_of_a_senders_making(door: Door) -> None:
    figures(door)
    trace = door.client().post("/v1/intents", json=intent()).json()["id"]
    door.mesh.trace_writer.record(trace, "MADE_UP_BY_A_USER", {})
    found = until(lambda: (seen := figures(door)).get('agentmesh_events_total{event="other"}') and seen)
    assert not [name for name in found if "MADE_UP" in name or trace in name]


def test_the_board_and_the_rules_name_figures_that_are_there(door: Door) -> None:
    door.client().post("/v1/intents", json=intent())
    door.client().get("/v1/nonesuch")
    there = {name.partition("{")[0] for name in figures(door)}
    page = door.client("metrics:read").get("/metrics").text
    there |= {name for line in page.splitlines() for name in re.findall(r"^# TYPE (\S+)", line)}
    there |= {f"{name}_bucket" for name in there}
    board = json.loads((DEPLOY / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = YAML(typ="safe").load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    asked += [rule["expr"] for rule in rules]
    named = set(re.findall(r"\bagentmesh_\w+", " ".join(asked)))
    assert len(named) >= 10
    assert named - there == set()
    assert len(rules) >= 6
    assert all(rule["annotations"].keys() == {"summary", "next"} for rule in rules)
