"""submit: what is accepted, and what each kind of bad input gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

Cli = Callable[..., Any]
SAME = ("--key", "k-1", "--context", "c-1", "--from", "tester")


def count(lab: Any) -> int:
    return int(lab.rows("SELECT count(*) AS n FROM mesh.traces")[0]["n"])


def test_an_accepted_intent_is_a_row_and_its_id_is_printed(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("submit", "puppet", "work", "--data", '{"n": 1}', "--priority", 7)
    assert ran.code == 0
    row = lab.rows("SELECT * FROM mesh.traces")[0]
    assert ran.out.strip() == str(row["id"])
    assert (row["status"], row["priority"], row["payload"]) == ("queued", 7, {"n": 1})


def test_the_payload_may_come_from_a_file(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text('{"order": 12}')
    assert mesh_cli("submit", "puppet", "work", "--data", "@order.json").code == 0
    assert lab.rows("SELECT payload FROM mesh.traces") == [{"payload": {"order": 12}}]


def test_an_unknown_agent_is_not_found_and_a_near_one_is_named(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("submit", "pupet", "work", "--json")
    assert (ran.code, ran.problem["code"]) == (3, "E_AGENT_UNKNOWN")
    assert "did you mean puppet?" in ran.problem["expected"]
    assert count(lab) == 0


def test_an_unknown_intent_is_not_found(mesh_cli: Cli, make_mesh: Any) -> None:
    from agentmesh.behavior.agents import define_agent

    make_mesh(define_agent("clerk", reasoner=lambda _session: {"answer": 1}, intents=["file", "find"]))
    ran = mesh_cli("submit", "clerk", "fnid", "--json")
    assert (ran.code, ran.problem["code"]) == (3, "E_INTENT_UNKNOWN")
    assert "file, find" in ran.problem["expected"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("{oops", "E_JSON"), ("[1]", "E_PAYLOAD"), ('{"n": NaN}', "E_JSON_NUMBER"), ('{"n": 1e999}', "E_JSON_NUMBER"),
        ('{"n": 1, "n": 2}', "E_JSON_DUPLICATE_KEY"), ("@nowhere.json", "E_USAGE"), ('{"$blob": "x"}', "E_PAYLOAD"),
    ],
)  # fmt: skip
def test_a_bad_payload_is_refused_before_anything_is_written(mesh_cli: Cli, lab: Any, data: str, code: str) -> None:
    ran = mesh_cli("submit", "puppet", "work", "--data", data, "--json")
    assert (ran.code, ran.problem["code"]) == (2, code)
    assert ran.out == ""
    assert count(lab) == 0


def test_an_oversized_payload_is_refused(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    (tmp_path / "big.json").write_text('{"text": "' + "x" * (17 << 20) + '"}')
    ran = mesh_cli("submit", "puppet", "work", "--data", "@big.json", "--json")
    assert (ran.code, ran.problem["code"]) == (2, "E_PAYLOAD_TOO_LARGE")
    assert count(lab) == 0


def test_a_dry_run_writes_nothing(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("submit", "puppet", "work", "--dry-run", "--json")
    assert (ran.code, ran.json["accepted"], ran.json["queue"]) == (0, False, "agent.puppet")
    assert count(lab) == 0


def test_the_same_key_is_the_same_trace_and_another_payload_is_refused(mesh_cli: Cli, lab: Any) -> None:
    first = mesh_cli("submit", "puppet", "work", *SAME)
    again = mesh_cli("submit", "puppet", "work", *SAME)
    other = mesh_cli("submit", "puppet", "work", "--data", '{"n": 2}', *SAME, "--json")
    assert first.out == again.out
    assert (other.code, other.problem["code"]) == (4, "E_IDEMPOTENCY_CONFLICT")
    assert count(lab) == 1


def test_a_broker_that_is_down_does_not_stop_an_intent(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("submit", "puppet", "work", AGENTMESH_BROKER_URL="redis://127.0.0.1:1/0")
    assert ran.code == 0
    row = lab.rows("SELECT status, rung_at FROM mesh.traces")[0]
    assert row == {"status": "queued", "rung_at": None}  # the rescuer rings it


def test_waiting_too_long_exits_7_with_the_id_and_the_work_goes_on(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("submit", "puppet", "work", "--wait", "--timeout", 0.2, "--json")
    assert (ran.code, ran.problem["code"]) == (7, "E_STILL_WORKING")
    trace = lab.rows("SELECT id, status FROM mesh.traces")[0]
    assert trace["status"] == "queued"
    assert str(trace["id"]) in ran.problem["next"]


def test_waiting_for_a_trace_that_ends_well_prints_its_result(mesh_cli: Cli, lab: Any) -> None:
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", {}, idempotency_key="k-1")
    lab.bells.ring([lab_ring(trace)])
    lab.drain()
    ran = mesh_cli("submit", "puppet", "work", *SAME, "--wait")
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "{}"
    assert "EXEC_DONE" in ran.err


def test_waiting_for_a_trace_that_fails_exits_1(mesh_cli: Cli, lab: Any) -> None:
    payload = {"do": [{"tools": ["boom"]}]}
    trace = lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload, idempotency_key="k-1")
    lab.bells.ring([lab_ring(trace)])
    lab.drain()
    ran = mesh_cli("submit", "puppet", "work", "--data", '{"do": [{"tools": ["boom"]}]}', *SAME, "--wait", "--json")
    assert ran.code == 1
    assert ran.json["status"] == "failed"
    assert UUID(ran.json["id"]) == trace.id


def lab_ring(trace: Any) -> Any:
    from agentmesh.records import Ring

    return Ring("trace", trace.id, 1, "agent.puppet", "agent.puppet", trace.id)


def test_a_database_that_is_not_migrated_says_how_to(cli: Cli, bare_database: str) -> None:
    ran = cli("submit", "puppet", "work", "--json", AGENTMESH_DATABASE_URL=bare_database)
    assert (ran.code, ran.problem["code"], ran.problem["next"]) == (5, "E_SCHEMA", "agentmesh db upgrade")


def test_a_database_that_does_not_answer_exits_5_without_its_password(cli: Cli) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/mesh"
    ran = cli("submit", "puppet", "work", "--json", AGENTMESH_DATABASE_URL=url)
    assert (ran.code, ran.problem["code"]) == (5, "E_DATABASE")
    assert "hunter2" not in ran.err


def test_without_a_database_the_embedded_one_is_named(cli: Cli) -> None:
    ran = cli("submit", "puppet", "work", "--json")
    assert (ran.code, ran.problem["next"]) == (5, "agentmesh dev")
