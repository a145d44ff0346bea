"""`agentmesh gateway`, its keys, and what doctor says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentmesh.communication.keys import api_key, new_key
from agentmesh.records import new_id


def test_an_api_key_is_shown_once_and_only_its_digest_is_kept(mesh_cli: Any) -> None:
    made = mesh_cli("keys", "issue", "shop", "--grant", "traces:read", "--json").json
    assert api_key(made["token"])[0] == made["kid"]  # type: ignore[index]
    listed = mesh_cli("keys", "list", "--json")
    (row,) = [one for one in listed.json["keys"] if one["kid"] == made["kid"]]
    assert (row["owner"], row["grants"], row["revoked_at"]) == ("shop", ["traces:read"], None)
    assert made["token"].rpartition("_")[2] not in listed.out
    assert mesh_cli("keys", "revoke", made["kid"], "--json").json["changed"]


def test_a_producers_public_key_is_registered_from_a_file(mesh_cli: Any, tmp_path: Path) -> None:
    key = new_key(tmp_path / "till.pem")
    (tmp_path / "till.pub").write_bytes(key.private.as_pem(private=False))
    made = mesh_cli("keys", "register", tmp_path / "till.pub", "--owner", "till", "--grant", "data:read", "--json").json
    assert (made["kid"], made["grants"]) == (key.kid, ["data:read"])
    assert mesh_cli("keys", "register", tmp_path / "none.pub", "--owner", "till").code == 2


def test_s46_a_gateway_for_strangers_that_knows_nobody_is_refused(mesh_cli: Any) -> None:
    refused = mesh_cli("gateway", "--address", "0.0.0.0:0", "--json")
    assert (refused.code, refused.problem["code"]) == (4, "E_UNSAFE")


def test_the_document_is_printed_without_a_database(cli: Any) -> None:
    assert json.loads(cli("gateway", "--openapi").out)["openapi"] == "3.1.0"


def test_doctor_says_what_a_gateway_lacks_for_strangers(mesh_cli: Any, database_url: str) -> None:
    def said(**environ: str) -> list[tuple[bool, str]]:
        ran = mesh_cli("doctor", "--json", AGENTMESH_BROKER_URL=database_url, **environ)
        return [(one["ok"], one["says"]) for one in ran.json["checks"] if one["name"] == "gateway"]

    strangers = {"AGENTMESH_GATEWAY_ADDRESS": "0.0.0.0:8700", "AGENTMESH_GATEWAY_INSECURE": "true"}
    assert said() == [(True, "would listen on 127.0.0.1:8700")]
    assert [(ok, "E_UNSAFE" in says) for ok, says in said(**strangers)] == [(False, True)]
    mesh_cli("keys", "issue", f"shop-{new_id().hex[:8]}")
    open_to_all = [says.partition(": ")[2].partition(":")[0] for ok, says in said(**strangers) if not ok]
    assert open_to_all == ["it answers to any name", "requests are counted in each gateway alone"]
    named = {"AGENTMESH_GATEWAY_HOSTS": "mesh.example", "AGENTMESH_GATEWAY_RATES_URL": "redis://127.0.0.1:6379/9"}
    assert said(**strangers, **named) == [(True, "would listen on 0.0.0.0:8700")]
