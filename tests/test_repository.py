"""What a stranger finds in the repository: files that fit together and say nothing of a machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
# An absolute path of somebody's machine, wherever it stands alone.
MACHINE = re.compile(r"(?<![\w.$}*])/(?:work|root|home|Users)/\w|file:///opt/")
NOT_OURS = ("tests/test_repository.py", "requirements/")


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked() -> list[str]:
    """Every file of the repository, as git knows it or as it lies here without git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return json.loads(json.dumps(loaded))  # type: ignore[no-any-return]


def test_the_compose_file_fits_the_compose_schema(compose: dict[str, Any]) -> None:
    vendored = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    faults = [fault.message for fault in jsonschema.Draft7Validator(schema).iter_errors(compose)]
    assert faults == []


def test_every_compose_service_has_a_health_check_and_restarts(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {
        "postgres", "rabbitmq", "redis", "migrate", "agents", "tools", "gateway", "flower",
    }  # fmt: skip
    for name, service in services.items():
        assert service["restart"], name
        assert name == "migrate" or service["healthcheck"]["test"], name


def test_compose_publishes_nothing_beyond_loopback(compose: dict[str, Any]) -> None:
    ports = [one for service in compose["services"].values() for one in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_workers_of_compose_start_after_the_migration(compose: dict[str, Any]) -> None:
    for name in ("agents", "tools", "flower"):
        condition = compose["services"][name]["depends_on"]["migrate"]["condition"]
        assert condition == "service_completed_successfully"


def test_only_what_signs_sees_the_signing_key_in_compose(compose: dict[str, Any]) -> None:
    holders = {
        name
        for name, service in compose["services"].items()
        if any(volume.startswith("mesh:") for volume in service.get("volumes", []))
    }
    assert holders == {"agents", "gateway"}


def test_the_image_is_not_run_by_root() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in {"root", "0"}
    assert sum(line.startswith("FROM ") for line in lines) == 2


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert "make demo" in "\n".join(lines)
    assert "make test" in "\n".join(lines)


def test_every_test_that_the_guarantees_name_is_there() -> None:
    named = set(re.findall(r"\b[FP]\d\d\b", (ROOT / "docs/guarantees.md").read_text()))
    tests = " ".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 15
    assert {one for one in named if f"def test_{one.lower()}_" not in tests} == set()


def test_every_file_the_documents_link_to_is_there() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_worker_entry_points_are_short() -> None:
    for file in (ROOT / "workers").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 40, file.name


def test_no_file_names_a_machine() -> None:
    named = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if name.startswith(NOT_OURS) or b"\0" in data[:8192]:
            continue
        found = MACHINE.search(data.decode("utf-8"))
        named += [f"{name}: {found[0]}"] if found else []
    assert named == []


def test_locks_pin_the_same_versions_with_hashes_and_name_no_index() -> None:
    pins: dict[str, dict[str, str]] = {}
    for lock in ("dev", "demo", "run"):
        text = (ROOT / f"requirements/{lock}.lock").read_text(encoding="utf-8")
        assert not re.search(r"https?://|file:|--index|--find-links", text), lock
        entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n|^ *#.*\n", "", text, flags=re.M).strip())
        assert all("--hash=sha256:" in entry for entry in entries), lock
        pins[lock] = dict(re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.M))
    assert pins["run"].items() <= pins["demo"].items() <= pins["dev"].items()


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "requirements/run.lock").read_text(encoding="utf-8")
    locked = {canonical(name) for name in re.findall(r"^([\w.-]+)==", text, re.M)}
    asked = {canonical(re.split(r"[\[<>=~! ]", one)[0]) for one in project["dependencies"]}
    assert asked <= locked


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = target.glob("*.whl")
    return made


def test_the_wheel_holds_migrations_and_the_demos_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for needed in (
        "demo/banking77.csv.gz", "demo/BANKING77.md", "demo/report.css",
        "demo/report_agent.yaml", "demo/complaint_analysis_agent.yaml", "demo/with_model/complaint_analysis_agent.yaml",
        "state/invariants.sql",
    ):  # fmt: skip
        assert f"agentmesh/{needed}" in names
    scripts = {
        f"agentmesh/{file.relative_to(ROOT)}" for file in (ROOT / "migrations").rglob("*.*") if file.suffix != ".pyc"
    }
    assert scripts
    assert {name for name in names if name.startswith("agentmesh/migrations/")} == scripts


def test_the_wheel_leaves_workers_and_tests_at_home(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"agentmesh"}


@pytest.mark.timeout(400)
def test_the_wheel_in_an_empty_environment_gives_a_working_command(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    # The lock gives the versions, the wheel's own metadata decides what is installed.
    pins = re.findall(r"^\S+==\S+(?: ;.*?)?(?= \\$)", (ROOT / "requirements/run.lock").read_text(), re.M)
    (tmp_path / "pins.txt").write_text("\n".join(pins), encoding="utf-8")
    subprocess.run(
        [
            python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:",
            "--constraint", str(tmp_path / "pins.txt"), str(wheel),
        ],
        check=True, cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    command = tmp_path / "env/bin/agentmesh"
    said = {
        verb: subprocess.run([command, *verb.split()], cwd=tmp_path, capture_output=True, text=True, check=False)
        for verb in ("--help", "config show")
    }
    for verb, done in said.items():
        assert done.returncode == 0, f"{verb}: {done.stderr}"
    assert "worker" in said["--help"].stdout
    assert "lease.beat" in said["config show"].stdout
