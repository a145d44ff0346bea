"""agents, tools, keys, db, config and doctor: what they print, and the codes they exit with."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentmesh.execution.tools import TOOLS, ToolRegistry, register_tool
from agentmesh.records import Later, new_id

Cli = Callable[..., Any]

# --- agents, tools


def test_agents_are_listed_with_their_live_workers(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("agents", "list", "--json")
    assert [one["id"] for one in ran.json["agents"]] == ["puppet"]
    assert mesh_cli("agents", "list").out.split("\t")[0] == "puppet"
    assert "tools\twork, twice" in mesh_cli("agents", "show", "puppet").out


def test_an_agent_says_what_others_may_ask_of_it(mesh_cli: Cli, make_lab: Any) -> None:
    make_lab(capabilities=["translate", "ocr"])
    assert "offers\ttranslate, ocr" in mesh_cli("agents", "show", "puppet").out
    assert mesh_cli("agents", "show", "puppet", "--json").json["spec"]["capabilities"] == ["translate", "ocr"]


def test_an_agent_nobody_announced_is_not_found(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("agents", "show", "pupet", "--json")
    assert (ran.code, ran.problem["code"]) == (3, "E_AGENT_UNKNOWN")
    assert "did you mean puppet?" in ran.problem["expected"]


def test_tools_are_listed_with_what_running_them_again_means(mesh_cli: Cli, lab: Any) -> None:
    tools = {one["id"]: one for one in mesh_cli("tools", "list", "--json").json["tools"]}
    assert tools["twice"]["effect"] == "once"
    assert mesh_cli("tools", "show", "work", "--json").json["id"] == "work"
    assert mesh_cli("tools", "show", "wrok", "--json").problem["code"] == "E_TOOL_UNKNOWN"


SHELF = """
from agentmesh import ToolContext, register_tool
from agentmesh.errors import Permanent

@register_tool("halve")
def halve(ctx: ToolContext, n: int) -> int:
    if n % 2:
        raise Permanent(f"{n} is odd, password=canary")
    return "4" if n == 8 else n // 2

@register_tool("put", tx=True)
def put(ctx: ToolContext, key: str) -> str:
    ctx.tx.exec_driver_sql("CREATE TABLE IF NOT EXISTS put_by_cli (key text)")
    ctx.tx.exec_driver_sql("INSERT INTO put_by_cli VALUES (%(key)s)", {"key": ctx.idempotency_key})
    if key != ctx.idempotency_key:
        raise ValueError("another key")
    return ctx.payload["said"]
"""


@pytest.fixture
def shelf(mesh_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """`mesh_cli` in a project with two tools, whose module nothing but the verb itself finds."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shelf_of_tools.py").write_text(SHELF)
    (tmp_path / "agentmesh.toml").write_text('[tools]\nimports = ["shelf_of_tools"]\n')
    yield mesh_cli
    sys.modules.pop("shelf_of_tools", None)
    for name in ("halve", "put"):
        TOOLS.unregister(name)


def test_a_tool_is_called_alone(shelf: Cli) -> None:
    ran = shelf("tools", "call", "halve", "--args", '{"n": 6}', "--json")
    assert (ran.code, ran.json["result"]) == (0, 3)
    assert shelf("tools", "call", "halve", "--args", '{"n": 6}').out == "3\n"


@pytest.mark.parametrize(("tool", "args", "code", "exit_code"), [
    ("halve", '{"n": "6"}', "E_ARGUMENTS", 1), ("halve", "[]", "E_ARGUMENTS", 1), ("halve", '{"n": 7}', "E_TOOL", 1),
    ("halve", '{"n": 8}', "E_RESULT", 1), ("halv", "{}", "E_TOOL_UNKNOWN", 3),
])  # fmt: skip
def test_a_tool_called_alone_is_checked_like_any_other(
    shelf: Cli, tool: str, args: str, code: str, exit_code: int
) -> None:
    ran = shelf("tools", "call", tool, "--args", args, "--json")
    assert (ran.code, ran.problem["code"]) == (exit_code, code)
    assert "canary" not in ran.err


def test_a_transactional_tool_called_alone_commits_unless_it_fails(shelf: Cli, database_url: str) -> None:
    def called(key: str) -> Any:
        given = ("--args", f'{{"key": "{key}"}}', "--payload", '{"said": "yes"}')
        return shelf("tools", "call", "put", *given, "--key", "k-1", "--json")

    assert called("k-1").json["result"] == "yes"
    assert called("k-2").problem["code"] == "E_TOOL"
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert connection.execute("SELECT key FROM put_by_cli").fetchall() == [("k-1",)]
        connection.execute("DROP TABLE put_by_cli")


# --- calls that wait


def test_a_waiting_call_is_finished_by_hand(mesh_cli: Cli, make_lab: Any, tools: ToolRegistry) -> None:
    @register_tool("ask", registry=tools)
    def ask() -> int | Later:
        return Later()

    lab = make_lab()
    first, second = (lab.start({"tools": ["ask"]}) for _ in range(2))
    lab.drain()
    call, other = (lab.calls(trace)[0]["id"] for trace in (first, second))
    assert mesh_cli("call", "finish", call, "--result", '"five"', "--json").problem["code"] == "E_RESULT"
    assert mesh_cli("call", "finish", call).code == 2
    assert mesh_cli("call", "finish", call, "--result", "5", "--json").json["status"] == "done"
    again = mesh_cli("call", "finish", call, "--result", "5", "--json")
    assert (again.code, again.problem["code"]) == (4, "E_CALL_ENDED")
    assert mesh_cli("call", "finish", other, "--failed", "sold out").code == 0
    assert mesh_cli("call", "finish", new_id(), "--failed", "sold out").code == 3
    for trace in (first, second):
        lab.bells.ring([lab.ring(trace)])
    lab.drain()
    assert (first.result(1), second.status()) == (5, "failed")


# --- deliveries


def test_deliveries_are_listed_and_what_failed_is_sent_again(mesh_cli: Cli, lab: Any) -> None:
    hook = {"url": "https://hooks.example/in", "secret": "hooks"}
    trace = lab.start({"answer": 1}, policy={"webhook": hook})
    lab.drain()
    [row] = mesh_cli("webhooks", "list", "--json").json["deliveries"]
    assert (row["trace_id"], row["type"], row["status"]) == (str(trace.id), "trace.done", "ready")
    assert mesh_cli("webhooks", "retry", row["id"]).code == 3
    lab.rows("UPDATE mesh.deliveries SET status = 'failed'")
    checks = {one["name"]: one for one in mesh_cli("doctor", "--json").json["checks"]}
    assert (checks["webhooks"]["ok"], checks["webhooks"]["cure"]) == (False, "agentmesh webhooks list --failed")
    assert row["id"] in mesh_cli("webhooks", "list", "--failed").out
    assert mesh_cli("webhooks", "retry", row["id"], "--json").json["count"] == 1
    assert mesh_cli("webhooks", "list", "--failed", "--json").json["deliveries"] == []
    assert mesh_cli("webhooks", "retry").code == 2


# --- keys


def test_a_new_key_is_a_private_file_and_a_registered_fingerprint(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    made = mesh_cli("keys", "new", "mine.pem", "--grant", "data:*", "--owner", "shop", "--json").json
    file = tmp_path / "mine.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = {one["kid"]: one for one in mesh_cli("keys", "list", "--json").json["keys"]}
    assert (listed[made["kid"]]["owner"], listed[made["kid"]]["grants"]) == ("shop", ["data:*"])
    assert "PRIVATE" not in str(made)


def test_a_key_file_is_never_overwritten(mesh_cli: Cli, lab: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.pem").write_text("precious")
    assert mesh_cli("keys", "new", "mine.pem").code == 2
    assert (tmp_path / "mine.pem").read_text() == "precious"


def test_a_revoked_key_stays_listed_as_revoked(mesh_cli: Cli, lab: Any) -> None:
    kid = mesh_cli("keys", "new", "mine.pem", "--json").json["kid"]
    assert mesh_cli("keys", "revoke", kid[:12], "--json").json == {
        "schema": "agentmesh.key/1", "kid": kid, "revoked": True, "changed": True,
    }  # fmt: skip
    assert next(one for one in mesh_cli("keys", "list", "--json").json["keys"] if one["kid"] == kid)["revoked_at"]
    assert mesh_cli("keys", "revoke", "nobody").code == 3


def test_production_without_a_key_says_how_to_make_one(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("submit", "puppet", "work", "--json", AGENTMESH_ENVIRONMENT="production")
    assert (ran.code, ran.problem["code"], ran.problem["next"]) == (2, "E_NO_SIGNING_KEY", "agentmesh keys new")


# --- db


def test_a_bare_database_is_upgraded_once(cli: Cli, bare_database: str) -> None:
    where = {"AGENTMESH_DATABASE_URL": bare_database}
    assert cli("db", "status", **where).code == 1
    assert cli("db", "upgrade", "--dry-run", "--json", **where).json["applied"] == []
    assert cli("db", "upgrade", "--json", **where).json["applied"]
    assert cli("db", "upgrade", "--json", **where).json["applied"] == []
    assert cli("db", "status", **where).code == 0


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE mesh.traces DROP COLUMN locale",
        "DROP INDEX mesh.calls_ready",
        "ALTER TABLE mesh.steps DROP CONSTRAINT countdown",
        "CREATE OR REPLACE FUNCTION mesh.mesh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT now()'",
        "ALTER TABLE mesh.calls ALTER COLUMN priority SET DEFAULT 6",
        "CREATE OR REPLACE VIEW inv.workers AS SELECT id::text, beat_at FROM mesh.workers",
        "CREATE TABLE mesh.mine (id int)",
    ],
)
def test_a_schema_that_was_changed_exits_6(cli: Cli, own_database: str, change: str) -> None:
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute(change.encode())
    ran = cli("db", "check", "--json", AGENTMESH_DATABASE_URL=own_database)
    assert (ran.code, ran.problem["code"]) == (6, "E_DRIFT")
    assert ran.json["differences"]


def test_a_schema_as_it_was_made_is_the_declared_one(cli: Cli, own_database: str) -> None:
    ran = cli("db", "check", "--json", AGENTMESH_DATABASE_URL=own_database)
    assert (ran.code, ran.json["same"], ran.json["differences"]) == (0, True, [])
    with psycopg.connect(own_database) as connection:
        left = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE '%declared'").fetchall()
    assert left == []


# --- config


def test_a_typo_in_the_settings_file_names_its_line_and_what_was_meant(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agentmesh.toml").write_text('[database]\nulr = "x"\n')
    ran = cli("config", "show", "--json")
    assert (ran.code, ran.problem["code"]) == (2, "E_SETTINGS")
    assert "agentmesh.toml:2" in ran.problem["what"]
    assert "did you mean database.url?" in ran.problem["expected"]


def test_settings_say_where_they_come_from_and_hide_secrets(cli: Cli) -> None:
    ran = cli("config", "show", "--origin", AGENTMESH_DATABASE_URL="postgresql://me:hunter2@db/mesh")
    assert "database.url\t***\t$AGENTMESH_DATABASE_URL" in ran.out
    assert "hunter2" not in ran.out + ran.err


def test_a_settings_file_named_before_the_verb_is_read(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('[lease]\nbeat = "2s"\n')
    rows = {one["name"]: one for one in cli("--config", "other.toml", "config", "show", "--json").json["settings"]}
    assert rows["lease.beat"] == {"name": "lease.beat", "value": "2s", "origin": "other.toml:2"}


# --- doctor


def checks(ran: Any) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for one in ran.json["checks"]:
        found[one["name"]] = found.get(one["name"], True) and one["ok"]
    return found


def test_a_mesh_whose_work_has_no_worker_is_red_and_says_the_cure(mesh_cli: Cli, lab: Any) -> None:
    assert mesh_cli("doctor", "--json").code == 0  # agents nobody asks for are no trouble
    lab.start({"answer": 1})
    ran = mesh_cli("doctor", "--json")
    assert ran.code == 1
    assert checks(ran) == {
        "settings": True, "database": True, "broker": True, "key": True, "agents": False, "tools": False,
        "workers": True, "waiting": True, "webhooks": True, "gateway": True, "production": True,
    }  # fmt: skip
    assert "agentmesh worker agents" in {one["cure"] for one in ran.json["checks"]}


def test_a_mesh_whose_agents_and_tools_have_workers_is_well(mesh_cli: Cli, lab: Any) -> None:
    lab.rows("UPDATE mesh.workers SET agents = '{puppet}', tools = ARRAY(SELECT id FROM mesh.tools)")
    ran = mesh_cli("doctor", "--deep", "--json")
    assert (ran.code, ran.json["well"]) == (0, True)
    assert [one for one in checks(ran) if one.startswith("I")] == [f"I{n}" for n in range(1, 13)]


def test_a_broken_invariant_exits_6(cli: Cli, own_database: str) -> None:
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO mesh.envelopes (id, tenant_id, trace_id, kid, jws)"
            " VALUES (gen_random_uuid(), 'default', gen_random_uuid(), 'k', 'j')"
        )
    ran = cli("doctor", "--deep", "--json", AGENTMESH_DATABASE_URL=own_database)
    assert ran.code == 6
    assert checks(ran)["I1"] is False


def test_a_broker_that_is_down_exits_5_and_the_rest_is_still_examined(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("doctor", "--json", AGENTMESH_BROKER_URL="redis://127.0.0.1:1/0")
    assert ran.code == 5
    assert checks(ran)["broker"] is False
    assert "workers" in checks(ran)


def test_a_database_that_is_down_has_a_cure_other_than_to_ask_again(cli: Cli) -> None:
    ran = cli("doctor", "--json", AGENTMESH_DATABASE_URL="postgresql://127.0.0.1:1/x")
    assert ran.code == 5
    assert "agentmesh doctor" not in {one["cure"] for one in ran.json["checks"]}


def test_fault_points_are_listed(cli: Cli) -> None:
    assert "call.after_effect" in cli("doctor", "--points").out.splitlines()


def test_flower_open_to_the_network_without_a_password_is_refused(mesh_cli: Cli, lab: Any) -> None:
    ran = mesh_cli("flower", "--address", "0.0.0.0:5599", "--json")
    assert (ran.code, ran.problem["code"]) == (4, "E_UNSAFE")


def test_doctor_says_what_a_configured_model_lacks(mesh_cli: Cli, lab: Any) -> None:
    def found(**environ: str) -> Any:
        checks = mesh_cli("doctor", "--json", **environ).json["checks"]
        return next((one for one in checks if one["name"] == "model"), None)

    url = {"AGENTMESH_LLM_BASE_URL": "http://127.0.0.1:1/v1"}
    keyed = url | {"AGENTMESH_LLM_MODEL": "small", "AGENTMESH_LLM_KEY": "shop"}
    assert found() is None
    assert (found(**url)["ok"], found(**url)["cure"]) == (False, "llm.model in the settings")
    assert "E_SECRET" in found(**keyed)["says"]
    told = found(**keyed, AGENTMESH_SECRET_SHOP="sk-canary-0123456789")
    assert (told["ok"], told["says"]) == (True, "small at http://127.0.0.1:1/v1, with its key")
