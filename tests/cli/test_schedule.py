"""`agentmesh schedule`: what it writes, lists and refuses."""

from typing import Any

from tests.cli.test_verbs import Cli


def test_a_schedule_is_added_listed_and_removed(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("schedule", "add", "nightly", "puppet", "work", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin")
    assert ran.code == 0
    (row,) = mesh_cli("schedule", "list", "--json").json["schedules"]
    assert (row["id"], row["timezone"], row["missed"], row["fired"]) == ("nightly", "Europe/Berlin", "once", 0)
    assert mesh_cli("schedule", "remove", "nightly").code == 0
    gone = mesh_cli("schedule", "remove", "nightly", "--json")
    assert (gone.code, gone.problem["code"]) == (3, "E_SCHEDULE_UNKNOWN")


def test_a_schedule_that_could_never_be_fired_is_refused(mesh_cli: Cli, lab: Any) -> None:
    unknown = mesh_cli("schedule", "add", "n", "pupet", "work", "--cron", "0 3 * * *", "--json")
    assert (unknown.code, unknown.problem["code"]) == (3, "E_AGENT_UNKNOWN")
    cron = mesh_cli("schedule", "add", "n", "puppet", "work", "--cron", "every day", "--json")
    assert "this is no cron expression" in cron.problem["what"]
    missed = mesh_cli("schedule", "add", "n", "puppet", "work", "--cron", "0 3 * * *", "--missed", "some", "--json")
    assert missed.code == 2
    assert mesh_cli("schedule", "list", "--json").json["schedules"] == []
