"""Settings: precedence, origins, units, secrets, and what a typing error gets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh.errors import BadSettings
from agentmesh.infrastructure import settings

ROOT = Path(__file__).parents[2]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(**given: object) -> BadSettings:
    with pytest.raises(BadSettings) as caught:
        settings.load(**{"environ": {}, "cwd": Path("/nonexistent"), **given})
    return caught.value


def test_nothing_given_is_the_embedded_mesh(tmp_path: Path) -> None:
    made = settings.load(environ={}, cwd=tmp_path)

    assert (made.database_url, made.broker_url, made.mesh.home) == (None, None, Path(".agentmesh"))
    assert made.origin("database.url") == "default"


def test_a_flag_beats_a_variable_beats_the_config_file_beats_the_default(tmp_path: Path) -> None:
    file = write(tmp_path / "my.toml", '[mesh]\nname = "f"\ntenant = "f"\nhome = "f"\n')
    environ = {"AGENTMESH_NAME": "v", "AGENTMESH_TENANT": "v"}

    made = settings.load(config=file, environ=environ, flags={"mesh.name": "g"}, cwd=tmp_path)

    assert (made.mesh.name, made.mesh.tenant, str(made.mesh.home)) == ("g", "v", "f")
    origins = [made.origin(f"mesh.{key}") for key in ("name", "tenant", "home", "environment")]
    assert origins == ["flag", "$AGENTMESH_TENANT", f"{file}:4", "default"]


def test_the_file_here_is_read_before_the_one_in_config(tmp_path: Path) -> None:
    write(tmp_path / "config/agentmesh.toml", '[mesh]\nname = "below"\n')
    assert settings.load(environ={}, cwd=tmp_path).mesh.name == "below"

    write(tmp_path / "agentmesh.toml", '[mesh]\nname = "here"\n')
    assert settings.load(environ={}, cwd=tmp_path).mesh.name == "here"


def test_the_config_flag_replaces_the_other_files(tmp_path: Path) -> None:
    write(tmp_path / "agentmesh.toml", '[mesh]\nname = "here"\n')
    other = write(tmp_path / "other.toml", '[mesh]\ntenant = "other"\n')

    made = settings.load(config=other, environ={}, cwd=tmp_path)

    assert (made.mesh.name, made.mesh.tenant) == ("mesh", "other")


def test_a_flag_that_is_none_was_not_given() -> None:
    made = settings.load(flags={"mesh.name": None}, environ={"AGENTMESH_NAME": "v"})
    assert made.mesh.name == "v"


def test_a_secret_is_read_from_the_file_a_variable_names(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", "postgresql://u:p@h/db\n")

    made = settings.load(environ={"AGENTMESH_DATABASE_URL_FILE": str(secret)}, cwd=tmp_path)

    assert made.database_url == "postgresql://u:p@h/db"
    assert made.origin("database.url") == "$AGENTMESH_DATABASE_URL_FILE"


def test_what_is_no_secret_has_no_file_variable() -> None:
    assert refusal(environ={"AGENTMESH_NAME_FILE": "/etc/hostname"}).value == "AGENTMESH_NAME_FILE"


def test_s57_secrets_are_not_shown() -> None:
    environ = {
        "AGENTMESH_DATABASE_URL": "postgresql://u:canary@h/db",
        "AGENTMESH_FLOWER_BASIC_AUTH": "canary",
    }
    made = settings.load(environ=environ, cwd=Path("/nonexistent"))

    shown = f"{made!r} {made} {made.model_dump_json()} {settings.describe(made)}"

    assert "canary" not in shown
    assert {row["value"] for row in settings.describe(made) if row["name"] == "database.url"} == {"***"}


def test_s57_a_secret_that_is_refused_is_not_shown(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", "[database]\nurl = 815\n")
    assert "815" not in str(refusal(config=file))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("500ms", 0.5), ("2min", 120.0), ("1.5h", 5400.0), (7, 7.0), ("7", 7.0)],
)
def test_times_are_written_with_units(text: object, seconds: float) -> None:
    assert settings.load(flags={"lease.lease": text}, environ={}).lease.lease == seconds


@pytest.mark.parametrize(("text", "size"), [("64KiB", 65536), ("1MB", 1_000_000), ("16MiB", 16 * 1024**2), (100, 100)])
def test_sizes_are_written_with_units(text: object, size: int) -> None:
    assert settings.load(flags={"limits.blob": text}, environ={}).limits.blob == size


@pytest.mark.parametrize("text", ["10 parsecs", "-1s", "0s", "s", "", "nan", "1e9"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    assert "lease.lease" in refusal(flags={"lease.lease": text}).what


def test_described_values_can_be_written_back(tmp_path: Path) -> None:
    flags = {"lease.lease": "2500ms", "limits.blob": 1000}
    rows = {row["name"]: row["value"] for row in settings.describe(settings.load(flags=flags, environ={}))}
    again = settings.load(environ={}, flags={name: rows[name] for name in flags})
    assert (again.lease.lease, again.limits.blob) == (2.5, 1000)


def test_a_misspelt_key_is_refused_with_its_line_and_what_may_be_meant(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", "[database]\n# a comment\npoolsize = 7\n")

    error = refusal(config=file)

    assert f"{file}:3" in error.what
    assert "did you mean database.pool_size?" in error.expected


def test_a_misspelt_section_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", "[databse]\nurl = 'x'\n")
    assert "did you mean database.url?" in refusal(config=file).expected


def test_a_key_outside_a_section_is_refused(tmp_path: Path) -> None:
    assert refusal(config=write(tmp_path / "a.toml", "name = 'x'\n")).value == "name"


def test_a_misspelt_variable_is_refused() -> None:
    error = refusal(environ={"AGENTMESH_DATABSE_URL": "x"})
    assert "did you mean AGENTMESH_DATABASE_URL?" in error.expected


def test_variables_that_others_set_are_left_alone() -> None:
    environ = {
        "AGENTMESH_TEST_POSTGRES_URL": "x",
        "AGENTMESH_PG_BIN": "x",
        "AGENTMESH_SERVICE_HOST": "10.0.0.1",
        "AGENTMESH_PORT_8700_TCP": "tcp://10.0.0.1:8700",
    }
    assert settings.load(environ=environ, cwd=Path("/nonexistent")).mesh.name == "mesh"


def test_an_unknown_flag_is_refused() -> None:
    assert refusal(flags={"mesh.nmae": "x"}).value == "mesh.nmae"


def test_a_value_that_does_not_fit_names_key_and_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", "[worker]\nagents_concurrency = 0\n")

    error = refusal(config=file)

    assert "worker.agents_concurrency" in error.what
    assert f"{file}:2" in error.what
    assert error.value == "0"


def test_a_file_that_is_not_toml_says_where() -> None:
    error = refusal(config=ROOT / "README.md" if (ROOT / "README.md").exists() else Path(__file__))
    assert "not TOML" in error.what


def test_a_config_file_that_is_missing_is_an_error() -> None:
    assert "cannot be read" in refusal(config=Path("/nonexistent/a.toml")).what


def test_cores_are_counted() -> None:
    assert settings.load(environ={}, flags={"worker.tools_concurrency": "cores"}).worker.tools_concurrency >= 1


def test_lists_in_variables_are_separated_by_commas() -> None:
    made = settings.load(environ={"AGENTMESH_TOOLS_IMPORTS": "a.tools, b"}, cwd=Path("/nonexistent"))
    assert made.tools.imports == ("a.tools", "b")


def test_an_unknown_name_has_no_origin() -> None:
    with pytest.raises(BadSettings):
        settings.load(environ={}).origin("mesh.nmae")


def test_the_shipped_file_names_every_setting_with_its_default(tmp_path: Path) -> None:
    shipped = (ROOT / "config/agentmesh.toml").read_text()
    switched_on = write(tmp_path / "on.toml", re.sub(r"(?m)^# (?=\w+ = )", "", shipped))
    plain = {row["name"]: row["value"] for row in settings.describe(settings.load(environ={}, cwd=tmp_path))}

    rows = settings.describe(settings.load(config=switched_on, environ={}))

    assert [row["name"] for row in rows if row["origin"] == "default"] == []
    unset = {"database.url", "broker.url", "audit.anchors", "keys.private", "flower.basic_auth", "gateway.rates_url"}
    unset |= {f"gateway.{name}" for name in ("certificate", "certificate_key", "issuer", "audience", "jwks")}
    unset |= {f"embeddings.{name}" for name in ("embedder", "model", "base_url", "key", "dimensions")}
    unset |= {"llm.base_url", "llm.model", "llm.key", "gateway.url"}
    assert {row["name"] for row in rows if row["value"] != plain[row["name"]]} == unset


def test_every_line_of_the_shipped_file_is_explained() -> None:
    lines = (ROOT / "config/agentmesh.toml").read_text().splitlines()
    assert [line for line in lines if re.match(r"# \w+ = ", line) and line.count("#") < 2] == []


def test_importing_settings_is_light() -> None:
    code = "import sys; import agentmesh.infrastructure.settings; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"celery", "sqlalchemy", "ruamel.yaml", "cel", "structlog"} & set(loaded.stdout.split())
