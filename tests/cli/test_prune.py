"""agentmesh prune: what went, what stayed and why, and what is said of a trace that is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]


def test_what_went_is_told_with_totals_and_found_again(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    trace = lab.start({"tools": ["work"]})
    lab.drain()
    lab.shift(3600)
    wish = ("--before", "10min", "--exact", "--json")
    surveyed = mesh_cli("prune", *wish, "--dry-run").json
    assert (surveyed["dry_run"], surveyed["traces"], surveyed["files"]) == (True, 1, 0)
    assert mesh_cli("trace", "show", trace.id).code == 0
    ran = mesh_cli("prune", *wish, "--archive", tmp_path / "old", "--yes").json
    assert (ran["traces"], ran["files"]) == (1, 1)
    assert {name: ran["rows"][name] for name in surveyed["rows"]} == surveyed["rows"]
    shown = mesh_cli("trace", "show", trace.id, "--json")
    assert (shown.code, shown.problem["code"]) == (3, "E_TRACE_PRUNED")
    assert str(tmp_path / "old") in shown.problem["what"]
    again = mesh_cli("prune", "--before", "10min", "--exact", "--archive", tmp_path / "old", "--yes")
    assert again.out.split() == ["0", "all"]
    assert "0 traces" in again.err


def test_what_stays_is_told_with_its_reason(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    lab.open("work")
    lab.shift(3600)
    ran = mesh_cli("prune", "--before", "10min", "--exact", "--no-archive", "--yes")
    assert "1 stay: open" in ran.err


def test_nothing_goes_without_a_word_about_a_copy_a_yes_and_an_age(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    lab.start()
    lab.drain()
    assert mesh_cli("prune", "--before", "1ms", "--yes").code == 2
    assert mesh_cli("prune", "--before", "1ms", "--no-archive", "--archive", tmp_path, "--yes").code == 2
    assert mesh_cli("prune", "--before", "soon", "--no-archive", "--yes").code == 2
    assert mesh_cli("prune", "--before", "1ms", "--no-archive").code == 4
    assert mesh_cli("prune", "--before", "1ms", "--archive", "/proc/none", "--yes").code == 5
    assert len(lab.rows("SELECT 1 FROM mesh.traces")) == 1
