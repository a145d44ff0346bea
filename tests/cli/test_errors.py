"""Every error: all its parts are filled, what it tells to do can be done, and no secret is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import typer

import agentmesh
from agentmesh import errors
from agentmesh.cli.main import app
from agentmesh.cli.output import report
from agentmesh.errors import DatabaseUnreachable, EnvelopeRefused, MeshError, Mistake

ROOT = typer.main.get_command(app)
NEXT = re.compile(r"next=f?(['\"])(agentmesh.*?)\1")


def classes(base: type[MeshError] = MeshError) -> Iterator[type[MeshError]]:
    yield base
    for one in base.__subclasses__():
        yield from classes(one)


EVERY = sorted((one for one in classes() if one.__module__ == errors.__name__), key=lambda one: one.__name__)


def problem_with(command: str) -> str | None:
    """Why this command line is none; None when it is."""
    words = command.split()
    if words[0] != "agentmesh":
        return f"{words[0]} is not agentmesh"
    here: Any = ROOT
    for word in words[1:]:
        if word.startswith("-"):
            known = {name for one in here.params for name in one.opts} | {"--help"}
            if word not in known:
                return f"{here.name} has no option {word}"
        elif getattr(here, "commands", None):
            if word not in here.commands:
                return f"{here.name} has no verb {word}"
            here = here.commands[word]
    return f"{here.name} is a group" if getattr(here, "commands", None) and words[1:2] != ["--help"] else None


@pytest.mark.parametrize("error", EVERY, ids=lambda one: one.__name__)
def test_every_part_of_every_error_is_filled(error: type[MeshError]) -> None:
    made = error("forged") if error is EnvelopeRefused else error("it went wrong", value="x")
    parts = made.parts()
    assert re.fullmatch(r"E_[A-Z_]+", parts["code"])
    assert all(parts[name] for name in ("code", "what", "expected", "next"))
    assert 1 <= made.exit_code <= 7


@pytest.mark.parametrize("error", EVERY, ids=lambda one: one.__name__)
def test_what_an_error_tells_to_do_next_can_be_done(error: type[MeshError]) -> None:
    assert problem_with(error.next) is None


def test_codes_are_not_shared() -> None:
    codes = [one.code for one in EVERY]
    assert len(codes) == len(set(codes))


def test_every_documented_exit_code_belongs_to_some_error() -> None:
    assert {one.exit_code for one in EVERY} == set(range(1, 8))


def test_commands_written_where_errors_are_raised_exist() -> None:
    wrong = {}
    for file in Path(agentmesh.__file__).parent.rglob("*.py"):
        for found in NEXT.finditer(file.read_text()):
            command = re.sub(r"\{[^}]*\}", "X", found[2])
            if "X --help" not in command and (why := problem_with(command)):
                wrong[f"{file.name}: {found[2]}"] = why
    assert wrong == {}


def test_a_password_in_an_error_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    url = "postgresql://me:hunter2@db/mesh"
    for as_json in (True, False):
        report(DatabaseUnreachable(f"no answer from {url}", value=url), as_json=as_json, debug=False)
    said = capsys.readouterr()
    assert "hunter2" not in said.err
    assert said.out == ""


def test_s35_what_comes_from_outside_is_printed_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    report(Mistake("evil \x1b[2J\r\n name", value="\x07\u202e"), as_json=False, debug=False)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert r"\x1b[2J\r\n" in said


GONE = [
    psycopg.OperationalError("server closed the connection"), psycopg.InterfaceError("the connection is closed"),
    psycopg.errors.AdminShutdown("terminating connection"), psycopg.errors.CannotConnectNow("starting up"),
    psycopg.errors.CrashShutdown("crash of another server process"), psycopg.errors.QueryCanceled("statement timeout"),
]  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("gone", GONE, ids=lambda one: type(one).__name__)
def test_a_database_that_goes_away_is_unreachable_and_no_error_of_ours(
    gone: psycopg.Error, wrapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    exc = sa.exc.OperationalError("SELECT", None, gone) if wrapped else gone
    assert report(exc, as_json=True, debug=False) == 5
    problem = json.loads(capsys.readouterr().err)
    assert (problem["code"], problem["value"]) == ("E_DATABASE", None)


def test_a_wrong_statement_is_an_error_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(psycopg.errors.UndefinedTable("no such table"), as_json=True, debug=False) == 1
    problem = json.loads(capsys.readouterr().err)
    assert problem["code"] == "E_INTERNAL"
    Path(problem["value"]).unlink()
