"""What is recorded of an exception."""

from __future__ import annotations

from agentmesh.errors import BadArguments, Permanent
from agentmesh.execution.failures import failure_of


def test_s57_secrets_in_an_exception_are_not_recorded() -> None:
    said = failure_of(RuntimeError("cannot reach amqp://me:hunter2@host/ password=hunter2"), code="E_TOOL")
    assert "hunter2" not in str(said.as_json())
    assert said.message == "RuntimeError: cannot reach amqp://me:***@host/ password=***"


def test_s57_a_secret_value_that_our_own_error_shows_is_not_recorded() -> None:
    said = failure_of(BadArguments("wrong", value={"api_key": "hunter2"}), code="E_TOOL")
    assert "hunter2" not in str(said.as_json())


def test_what_is_no_secret_is_recorded_as_it_was() -> None:
    said = failure_of(Permanent("customer ids start at 1"), code="E_TOOL")
    assert (said.code, said.message, said.permanent) == ("E_TOOL", "customer ids start at 1", True)
