"""The OpenAPI document: the one in the repository is the one that is served, and every answer is as it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmesh.console.gateway import describe
from tests.console.doors import Door, intent

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
EXAMPLES = int(os.environ.get("AGENTMESH_TEST_EXAMPLES", "10"))


def test_the_document_in_the_repository_is_the_one_of_this_code() -> None:
    made = json.dumps(describe(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert made == DOCUMENT.read_text(), "agentmesh gateway --openapi > docs/openapi.json"


def test_the_document_is_served_whatever_the_settings_are(make_door: Callable[..., Door]) -> None:
    door = make_door(gateway__origins=("https://desk.example",), gateway__rate="7/minute")
    assert door.stranger().get("/openapi.json").json() == json.loads(DOCUMENT.read_text())


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("who", "phases", "examples"),
    [
        ("owner", "examples,coverage,fuzzing", EXAMPLES),
        ("stranger", "fuzzing", 3),
        ("other tenant", "fuzzing", EXAMPLES),
    ],
)
def test_schemathesis_finds_nothing(
    make_door: Callable[..., Door], tmp_path: Path, who: str, phases: str, examples: int
) -> None:
    """Valid and invalid requests, made from the document: every answer is as it says, and none is a 500."""
    door = make_door(
        gateway__rate="1000000/minute", gateway__tenant_rate="1000000/minute", gateway__failures="1000000/minute"
    )
    trace_id = door.client().post("/v1/intents", json=intent()).json()["id"]
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", str(DOCUMENT), "--url", door.url, "--checks", "all",
        "--no-color", "--seed", "7", "--max-examples", str(examples), "--phases", phases, "--exclude-path", "/v1/stream",
        "--generation-database", "none", "--request-timeout", "20",
    ]  # fmt: skip
    if who != "stranger":
        token = door.issue("*", owner="fuzzer", tenant="acme" if who == "other tenant" else "default")[1]
        command += ["--header", f"Authorization: Bearer {token}"]
    if who == "stranger":  # nothing it sends can be accepted
        command += ["--exclude-checks", "positive_data_acceptance"]
    # 400: what strict JSON refuses and no schema can say, as integers of more than 20 digits
    (tmp_path / "schemathesis.toml").write_text(
        f'[parameters]\n"path.trace_id" = "{trace_id}"\n[checks.positive_data_acceptance]\n'
        'expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "409", "429", "5xx"]\n'
    )
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=380)
    door.lab.drain()  # what it has dispatched waits no longer than a row may
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
