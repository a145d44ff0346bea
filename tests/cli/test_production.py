"""What doctor says is lacking for production: every line of the list, silenced by its cure; and who does not start."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from agentmesh.cli import production
from agentmesh.infrastructure.database import ROLE_SETTINGS
from agentmesh.infrastructure.settings import load
from agentmesh.records import new_id

FINE = {
    "mesh.environment": "production", "database.url": "postgresql://mesh:ponies@127.0.0.1/mesh", "keys.private": "key.pem",
    "broker.url": "amqps://mesh:ponies@mq.example//", "audit.anchors": "anchors.jws",
}  # fmt: skip
BY_SETTINGS = [
    ("environment", {"mesh.environment": "development"}),
    ("keys", {"keys.private": None}),
    ("database", {"database.url": None}),
    ("broker", {"database.url": None, "broker.url": None}),
    ("broker-login", {"broker.url": "amqps://guest:guest@mq.example//"}),
    ("broker-login", {"broker.url": "amqps://mesh:mesh@mq.example//"}),
    ("broker-login", {"broker.url": "redis://127.0.0.1:6379/0"}),
    ("broker-tls", {"broker.url": "amqp://mesh:ponies@mq.example//"}),
    ("broker-tls", {"broker.url": "redis://:ponies@redis.example/0"}),
    ("debug", {"log.level": "debug"}),
    ("gateway-origins", {"gateway.origins": "*"}),
    ("gateway-proxies", {"gateway.proxies": "0.0.0.0/0"}),
    ("flower-login", {"flower.basic_auth": "mesh:mesh"}),
    ("webhooks", {"webhooks.private": "169.254.0.0/16"}),
    ("webhooks", {"webhooks.private": "0.0.0.0/0"}),
    ("model-tls", {"llm.base_url": "http://models.example/v1", "llm.key": "llm"}),
    ("audit", {"audit.anchors": None}),
]
SERVER = {"tls": True, "role": "mesh", "powers": [], "fsync": "on", "pages": "on", "archive": "on", "standbys": 0,
          "exports": 1, "old": None}  # fmt: skip
URL = "postgresql://mesh:ponies@db.example/mesh?sslmode=verify-full"
BY_SERVER = [
    ("database-tls", {"tls": False}, URL, True),
    ("database-tls", {}, URL.replace("verify-full", "require"), True),
    ("database-trust", {}, URL, False),
    ("database-login", {}, URL.replace("ponies", "mesh"), True),
    ("database-disk", {"fsync": "off"}, URL, True),
    ("database-disk", {"pages": "off"}, URL, True),
    ("export", {"exports": 0}, URL, True),
    ("backup", {"archive": "off"}, URL, True),
    ("retention", {"old": True}, URL, True),
]


def named(found: Iterator[production.Lack]) -> list[str]:
    told = list(found)
    assert all(one.cure and one.says and one.name in production.NAMES for one in told)
    return [one.name for one in told]


@pytest.mark.parametrize(("name", "changes"), BY_SETTINGS)
def test_a_setting_is_named_until_it_is_as_its_cure_says(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    def found(**more: Any) -> list[str]:
        return named(production.of_settings(load(environ={}, cwd=tmp_path, flags=FINE | more)))

    assert name in found(**changes)
    assert found() == []


@pytest.mark.parametrize(("name", "changes", "url", "with_password"), BY_SERVER)
def test_a_server_is_named_until_it_is_as_its_cure_says(
    name: str, changes: dict[str, Any], url: str, with_password: bool
) -> None:  # fmt: skip
    assert named(production.of_server(url, SERVER | changes, with_password=with_password)) == [name]
    assert named(production.of_server(URL, SERVER, with_password=True)) == []


def test_files_that_others_may_read_or_write_are_named_until_their_cure_has_run(tmp_path: Path) -> None:
    config, key = tmp_path / "agentmesh.toml", tmp_path / "key.pem"
    config.write_text(f'[broker]\nurl = "amqp://mesh:canary@mq//"\n[keys]\nprivate = "{key}"\n')
    key.write_text("-")
    config.chmod(0o644)
    key.chmod(0o640)
    settings = load(environ={}, cwd=tmp_path)
    found = list(production.of_files(settings, uid=1000))
    assert [one.name for one in found] == ["key-files", "config-files"]
    assert "canary" not in str(found)
    for one in found:
        verb, mode, path = one.cure.split()
        assert verb == "chmod"
        Path(path).chmod(int(mode, 8))
    assert list(production.of_files(settings, uid=1000)) == []
    assert named(production.of_files(settings, uid=0)) == ["root"]


def test_a_settings_file_without_a_secret_may_be_read_but_not_written_by_others(tmp_path: Path) -> None:
    config = tmp_path / "agentmesh.toml"
    config.write_text('[mesh]\nname = "m"\n')
    seen = []
    for mode in (0o644, 0o664, 0o646):
        config.chmod(mode)
        seen.append(named(production.of_files(load(environ={}, cwd=tmp_path), uid=1000)))
    assert seen == [[], ["config-files"], ["config-files"]]


def test_a_role_that_may_do_more_than_it_must_is_cured_by_what_is_said(mesh_cli: Any, own_database: str) -> None:
    role = f"amtest_{new_id().hex[:12]}"
    url = sa.make_url(own_database).set(username=role, password="ponies")
    with psycopg.connect(own_database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'ponies' SUPERUSER CREATEDB".encode())
        for name, value in ROLE_SETTINGS.items():
            admin.execute(f"ALTER ROLE {role} SET {name} = '{value}'".encode())
        admin.execute(
            f"GRANT USAGE ON SCHEMA mesh TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA mesh TO {role}".encode()
        )

        def cure() -> str | None:
            at = {"AGENTMESH_DATABASE_URL": url.render_as_string(hide_password=False)}
            checks = mesh_cli("doctor", "--production", "--json", **at).json["checks"]
            return next((one["cure"] for one in checks if one["name"] == "database-role"), None)

        try:
            said = cure()
            assert said == f'ALTER ROLE "{role}" NOSUPERUSER NOCREATEDB'
            admin.execute(said.encode())
            assert cure() is None
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_every_name_has_its_test_and_its_line_in_the_documents() -> None:
    tested = {one[0] for one in (*BY_SETTINGS, *BY_SERVER)} | {"key-files", "config-files", "root", "database-role"}
    assert tested == set(production.NAMES)
    text = (Path(__file__).parents[2] / "docs" / "production.md").read_text()
    assert [one for one in production.NAMES if f"`{one}`" not in text] == []


def test_doctor_names_what_is_lacking_and_what_is_accepted_no_more(mesh_cli: Any, lab: Any) -> None:
    def said(*flags: str, **environ: str) -> dict[str, Any]:
        return {one["name"]: one for one in mesh_cli("doctor", "--json", *flags, **environ).json["checks"]}

    told = said()["production"]
    assert (told["ok"], told["cure"]) == (True, "agentmesh doctor --production")
    assert {"environment", "keys", "audit", "export"} <= set(told["says"].partition(": ")[2].split(", "))
    red = said("--production")
    assert [(red[name]["ok"], bool(red[name]["cure"])) for name in ("environment", "keys", "audit")] == [
        (False, True)
    ] * 3
    every = ",".join(production.NAMES)
    assert said("--production", AGENTMESH_ACCEPTED=every)["production"]["says"] == "configured for it"
    refused = mesh_cli("doctor", "--json", AGENTMESH_ACCEPTED="nonesuch")
    assert "nonesuch" in {one["name"]: one for one in refused.json["checks"]}["production"]["says"]


@pytest.mark.parametrize("verb", ["gateway", "flower"])
def test_s60_whoever_listens_to_strangers_with_defaults_does_not_start_unless_they_are_named(
    mesh_cli: Any, lab: Any, tmp_path: Path, verb: str
) -> None:  # fmt: skip
    taken = socket.create_server(("0.0.0.0", 0))
    address = f"0.0.0.0:{taken.getsockname()[1]}"
    mesh_cli("keys", "issue", "shop")
    environ = {"AGENTMESH_GATEWAY_INSECURE": "true", "AGENTMESH_FLOWER_BASIC_AUTH": "desk:ponies",
               "AGENTMESH_BROKER_URL": "amqp://guest:guest@mq.example//", "AGENTMESH_LOG_LEVEL": "debug"}  # fmt: skip
    refused = mesh_cli(verb, "--address", address, "--json", **environ)
    assert (refused.code, refused.problem["code"]) == (4, "E_UNSAFE")
    names = refused.problem["value"].split(", ")
    assert {"environment", "keys", "broker-login", "broker-tls", "debug"} <= set(names)
    some = mesh_cli(verb, "--address", address, "--json", "--insecure", "debug,keys", **environ)
    assert (some.code, {"debug", "keys"} & set(some.problem["value"].split(", "))) == (4, set())
    if verb == "gateway":  # with all of them named it goes as far as its socket
        started = mesh_cli(verb, "--address", address, "--json", "--insecure", ",".join(names), **environ)
        assert (started.code, started.problem["what"]) == (2, "the gateway cannot listen there")
    taken.close()
