"""Figures for Prometheus: what was committed is counted once, and the board and the rules name nothing that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ruamel.yaml import YAML

from agentmesh.testing import until
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
