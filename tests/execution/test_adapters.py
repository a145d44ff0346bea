"""Declared tools: what they ask of real servers, what their arguments cannot do, how answers become results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.coordination.rescuer import _ring
from agentmesh.errors import (
    AnswerRefused,
    BadArguments,
    BadJson,
    BadResult,
    BadToolFile,
    Permanent,
    Retry,
    SecretMissing,
    TargetRefused,
)
from agentmesh.execution.adapters import UrlTemplate
from agentmesh.execution.invoke import context, invoke
from agentmesh.execution.toolfiles import load_tools
from agentmesh.execution.tools import Tool
from agentmesh.infrastructure.secrets import secret
from agentmesh.records import Json, new_id
from agentmesh.state import rings
from tests.sites import Site, quietly, saying

CANARY = "canary-5f2a"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.answer = saying('{"name": "Ada"}', kind="application/json; charset=utf-8")
    yield made
    made.close()


def tool(tmp_path: Path, text: str, **secrets: str) -> Tool:
    """The one tool of a file with this text, and these secrets in the environment."""
    path = tmp_path / "tool.yaml"
    path.write_text(text)
    environ = {f"AGENTMESH_SECRET_{name.upper()}": value for name, value in secrets.items()}
    return load_tools([path], lambda name: secret(name, environ))[0]


def run(tool: Tool, **args: Json) -> Json:
    row = {"id": new_id(), "trace_id": new_id(), "tenant_id": "default", "context_id": "c", "intent": "i",
           "tool": tool.name, "epoch": 1, "idem_key": "key-1"}  # fmt: skip
    return invoke(tool, args, context(row, payload={}, results={}, attempt=1))


def find(site: Site, path: str = "/customers/{number}", more: str = "", **at: Any) -> str:
    private = at.get("private", '["127.0.0.1/32"]')
    return f"""
tool: find_customer
timeout: 5
arguments: {{number: {{type: integer}}, name: {{type: string, default: x}}, tags: {{type: array, default: []}}}}
result: {{type: object, required: [name]}}
{more}
http:
  url: "{site.url}{path}"
  private: {private}
  {at.get("http", "")}
"""


def test_a_get_puts_its_arguments_into_path_and_query(site: Site, tmp_path: Path) -> None:
    made = tool(tmp_path, find(site, "/customers/{number}?full=1"))
    assert run(made, number=7, name="a b&c", tags=["x", "y"]) == {"name": "Ada"}
    assert site.seen[0].path == "/customers/7?full=1&name=a+b%26c&tags=x&tags=y"
    assert "idempotency-key" not in site.seen[0].headers


def test_a_post_puts_the_rest_into_its_body_and_says_its_key(site: Site, tmp_path: Path) -> None:
    made = tool(tmp_path, find(site, "/{number}", "effect: keyed", http="method: POST"))
    run(made, number=7, name="Ada", tags=[1])
    asked = site.seen[0]
    assert (asked.method, asked.path, json.loads(asked.body)) == ("POST", "/7", {"name": "Ada", "tags": [1]})
    assert (asked.headers["content-type"], asked.headers["idempotency-key"]) == ("application/json", "key-1")


@pytest.mark.parametrize(("value", "path"), [
    ("a/b", "/of/a%2Fb/end"), ("?x=1#y", "/of/%3Fx%3D1%23y/end"), ("%2e%2e", "/of/%252e%252e/end"), ("é", "/of/%C3%A9/end"),
    ("a@b:1", "/of/a%40b%3A1/end"), ("..", None), (".", None), ("", None),
])  # fmt: skip
def test_s36_an_argument_stays_in_its_place_in_the_path(
    site: Site, tmp_path: Path, value: str, path: str | None
) -> None:
    made = tool(tmp_path, find(site, "/of/{name}/end"))
    if path is None:
        with pytest.raises(BadArguments):
            run(made, number=1, name=value)
        assert site.seen == []
    else:
        run(made, number=1, name=value)
        assert site.seen[0].path == f"{path}?number=1"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_s36_no_text_leaves_its_place_in_a_url(text: str) -> None:
    template = UrlTemplate("https://api.example/a/{x}/b?q={x}&z=1", {"x": {"type": "string"}}, ())
    try:
        made = httpx.URL(template.filled({"x": text}, {"rest": text}))
    except BadArguments:
        assert text in {".", ".."}
        return
    assert (made.scheme, made.host, made.port, made.fragment) == ("https", "api.example", None, "")
    path = made.raw_path.decode().partition("?")[0].split("/")
    assert [unquote(part) for part in path] == ["", "a", text, "b"]
    assert made.params.multi_items() == [("q", text), ("z", "1"), ("rest", text)]


def test_s36_a_private_address_is_called_only_where_the_file_names_its_network(site: Site, tmp_path: Path) -> None:
    with pytest.raises(TargetRefused):
        run(tool(tmp_path, find(site, private='["10.0.0.0/8"]')), number=1)
    assert site.seen == []


def test_s36_an_argument_in_the_host_leads_to_listed_hosts_only(site: Site, tmp_path: Path) -> None:
    text = find(site, http='hosts: ["127.0.0.1"]').replace("127.0.0.1:", "{name}.0.0.1:")
    assert run(tool(tmp_path, text), number=1, name="127") == {"name": "Ada"}
    for name in ("128", "127.0.0.1/", "127.0.0.1@127"):
        with pytest.raises((TargetRefused, BadArguments)):
            run(tool(tmp_path, text), number=1, name=name)
    assert len(site.seen) == 1


@pytest.mark.parametrize(("auth", "header", "value"), [
    ("{bearer: crm}", "authorization", f"Bearer {CANARY}"), ("{header: X-Key, secret: crm}", "x-key", CANARY),
    ("{basic: crm}", "authorization", "Basic Y2FuYXJ5LTVmMmE="),
])  # fmt: skip
def test_s57_a_secret_is_sent_and_its_echo_masked(
    site: Site, tmp_path: Path, auth: str, header: str, value: str
) -> None:
    site.answer = saying(f"unknown key {value.rpartition(chr(32))[2]}", status=401)
    made = tool(tmp_path, find(site, http=f"auth: {auth}"), crm=CANARY)
    with pytest.raises(Permanent, match=r"answered 401: unknown key") as refused:
        run(made, number=1)
    assert site.seen[0].headers[header] == value
    assert value.rpartition(" ")[2] not in str(refused.value)


@pytest.mark.parametrize("value", ["", "two\nlines", "two\r\nX-Evil: 1", "ü"])
def test_s40_a_secret_that_is_no_line_of_ascii_is_refused(site: Site, tmp_path: Path, value: str) -> None:
    with pytest.raises(SecretMissing):
        run(tool(tmp_path, find(site, http="auth: {bearer: crm}"), crm=value), number=1)
    assert site.seen == []


def test_a_secret_is_read_from_the_file_that_a_variable_names(tmp_path: Path) -> None:
    (tmp_path / "crm").write_text(f"{CANARY}\n")
    assert secret("crm-key", {"AGENTMESH_SECRET_CRM_KEY_FILE": str(tmp_path / "crm")}) == CANARY


@pytest.mark.parametrize(("status", "raised", "after"), [
    (400, Permanent, None), (404, Permanent, None), (301, Permanent, None), (429, Retry, 7.0), (500, Retry, None),
    (503, Retry, 7.0),
])  # fmt: skip
def test_what_asking_again_cannot_help_is_permanent(
    site: Site, tmp_path: Path, status: int, raised: type[Exception], after: float | None
) -> None:
    more = {"retry_after": "7"} if after else {"location": f"{site.url}/elsewhere"}
    site.answer = saying("no", status=status, **more)
    with pytest.raises(raised) as refused:
        run(tool(tmp_path, find(site)), number=1)
    assert getattr(refused.value, "after", None) == after
    assert len(site.seen) == 1


def test_a_server_that_hangs_up_or_hangs_is_asked_again_later(site: Site, tmp_path: Path) -> None:
    def hang_up(to: BaseHTTPRequestHandler) -> None:
        to.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        to.close_connection = True

    site.answer = quietly(hang_up)
    with pytest.raises(Retry, match="did not answer"):
        run(tool(tmp_path, find(site)), number=1)


@pytest.mark.parametrize(("answer", "wrong"), [
    ('{"other": 1}', BadResult), ('["name"]', BadResult), ('{"name": 1, "name": 2}', BadJson), ("{", BadJson),
])  # fmt: skip
def test_s16_an_answer_that_breaks_its_schema_is_no_result(
    site: Site, tmp_path: Path, answer: str, wrong: type[Exception]
) -> None:
    site.answer = saying(answer, kind="application/json")
    with pytest.raises(wrong):
        run(tool(tmp_path, find(site)), number=1)


@pytest.mark.parametrize("args", [{}, {"number": "1"}, {"number": True}, {"number": 1, "other": 2}, {"number": 1.5}])
def test_s16_declared_arguments_are_checked_before_anything_is_asked(
    site: Site, tmp_path: Path, args: dict[str, Json]
) -> None:
    with pytest.raises(BadArguments):
        run(tool(tmp_path, find(site)), **args)
    assert site.seen == []


def test_text_is_a_result_where_the_schema_allows_it(site: Site, tmp_path: Path) -> None:
    site.answer = saying("grüße")
    made = tool(tmp_path, find(site).replace("{type: object, required: [name]}", "{type: string}"))
    assert run(made, number=1) == "grüße"


@pytest.mark.parametrize(("text", "said"), [
    ("tool: x", "tool.yaml:1:1: x needs one adapter"),
    ("tool: x\nhttp: {url: 'https://a.example/', methd: GET}", "2:42 .*methd.*; expected .*did you mean method"),
    ("tool: x\nhttp: {url: 'https://a.example/{n}'}", r"tool.yaml:2:7: url: \{n\} is no argument"),
    ("tool: x\narguments: {n: {type: string}}\nhttp: {url: 'https://{n}.example/'}", "3:7: hosts: "),
    ("tool: x\nhttp: {url: 'https://me:pw@a.example/'}", "2:7: url: an http"),
    ("tool: x\nhttp: {url: 'https://a.example/', method: POST}", "2:7: a POST says what doing it again means"),
    ("tool: x\narguments: {n: {type: strin}}\nhttp: {url: 'https://a.example/'}", "arguments: this is no JSON Schema"),
    ("tool: x\nresult: {$ref: 'http://127.0.0.1/s'}\nhttp: {url: 'https://a.example/'}", "2:9.*no JSON Schema"),
    ("tool: x\narguments: {for: {}}\nhttp: {url: 'https://a.example/'}", "another name"),
    ("tool: x\nrpc: {url: 'https://a.example/', method: m}", "2:6: a JSON-RPC method says"),
    ("tool: x\narguments: {n: {}}\nsql: {database: d, query: 'SELECT :m'}", "3:6: query: m, n: each argument is used"),
    ("tool: x\nsql: {query: 'SELECT 1'}", "2:6: database: the name of a secret"),
    ("tool: x\nsql: {database: d, query: 'DELETE FROM t', write: true}", "2:6: what writes says"),
    ("tool: x\nneeds: [Upper]\nhttp: {url: 'https://a.example/'}", "permission"),
    ("tool: x\nhttp: {url: 'https://a.example/', auth: {bearer: a, basic: b}}", "2:41: http.auth .*bearer, basic, or"),
])  # fmt: skip
def test_a_wrong_declaration_says_where_and_what(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadToolFile, match=said):
        tool(tmp_path, text)


def test_a_declared_tool_runs_in_a_trace_and_is_asked_again_under_its_key(
    site: Site, tmp_path: Path, make_lab: Any
) -> None:
    found, site.answer = site.answer, saying("busy", status=503, retry_after="0")
    (tmp_path / "config/tools").mkdir(parents=True)
    (tmp_path / "config/tools/crm.yaml").write_text(find(site, more="effect: keyed"))
    lab = make_lab(tools=["find_customer"])
    trace = lab.start({"tools": [{"tool": "find_customer", "args": {"number": 7}}]})
    lab.drain()
    site.answer = found
    lab.bells.ring([_ring(row) for row in rings.due(lab.mesh.db, again_s=0, cap_s=0, batch=10)])
    lab.drain()
    assert trace.result(1) == {"name": "Ada"}
    assert lab.outcomes(trace) == ["failed", "won"]
    assert len({one.headers["idempotency-key"] for one in site.seen}) == 1


# --- JSON-RPC


RPC = """
tool: add
effect: keyed
timeout: 5
arguments: {{a: {{type: integer}}, b: {{type: integer, default: 1}}}}
result: {{type: integer}}
rpc: {{url: "{url}/rpc", method: math.add, private: ["127.0.0.1/32"]}}
"""


def sums(to: BaseHTTPRequestHandler, said: Any) -> None:
    """Answers a request, or a batch of them in any order."""

    def answer(one: Any) -> Json:
        if one["params"]["a"] < 0:
            return {"jsonrpc": "2.0", "id": one["id"], "error": {"code": one["params"]["a"], "message": "no"}}
        return {"jsonrpc": "2.0", "id": one["id"], "result": sum(one["params"].values())}

    made = [answer(one) for one in reversed(said)] if isinstance(said, list) else answer(said)
    saying(json.dumps(made), kind="application/json")(to)


@pytest.fixture
def rpc(site: Site, tmp_path: Path) -> Tool:
    site.answer = lambda to: sums(to, json.loads(site.seen[-1].body))
    return tool(tmp_path, RPC.format(url=site.url))


def test_a_json_rpc_method_takes_the_arguments_as_params(site: Site, rpc: Tool) -> None:
    assert run(rpc, a=2) == 3
    asked = {"jsonrpc": "2.0", "id": "key-1", "method": "math.add", "params": {"a": 2, "b": 1}}
    assert (site.seen[0].path, json.loads(site.seen[0].body)) == ("/rpc", asked)


def test_a_json_rpc_call_for_many_inputs_is_one_batch_in_order(site: Site, rpc: Tool) -> None:
    assert run(rpc, **{"for": [{"a": 1}, {"a": 5, "b": 5}, {"a": 3}]}) == [2, 10, 4]
    assert len(site.seen) == 1
    with pytest.raises(Permanent):
        run(rpc, **{"for": [{"a": 1}, {"a": -1}]})


@pytest.mark.parametrize(("code", "raised"), [(-32601, Permanent), (-1, Permanent), (-32603, Retry), (-32001, Retry)])
def test_an_error_of_the_server_is_asked_again_and_of_the_method_not(
    rpc: Tool, code: int, raised: type[Exception]
) -> None:
    with pytest.raises(raised, match=str(code)):
        run(rpc, a=code)


def test_an_answer_to_another_question_is_none(site: Site, rpc: Tool) -> None:
    site.answer = saying('{"jsonrpc": "2.0", "id": "other", "result": 3}', kind="application/json")
    with pytest.raises(Retry, match="no JSON-RPC"):
        run(rpc, a=2)


# --- SQL


@pytest.fixture
def customers(own_database: str) -> str:
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE customers (number int PRIMARY KEY, name text, tags text[], more jsonb)")
        connection.execute("INSERT INTO customers VALUES (1, 'Ada', '{x,y}', '{\"k\": 1}'), (2, 'Bob', '{}', NULL)")
    return own_database


def query(tmp_path: Path, database: str, query: str, more: str = "", effect: str = "", **arguments: str) -> Tool:
    declared = ", ".join(f"{name}: {{type: {kind}}}" for name, kind in arguments.items())
    text = f"""
tool: look
{effect}
timeout: 5
arguments: {{{declared}}}
sql: {{database: crm, query: "{query}", {more}}}
"""
    return tool(tmp_path, text, crm=database)


@pytest.mark.parametrize(("rows", "result"), [
    ("all", [{"number": 1, "name": "Ada"}]), ("one", {"number": 1, "name": "Ada"}), ("value", 1), ("count", 1),
])  # fmt: skip
def test_a_statement_answers_rows_a_row_a_value_or_a_count(
    customers: str, tmp_path: Path, rows: str, result: Json
) -> None:
    made = query(
        tmp_path, customers, "SELECT number, name FROM customers WHERE number = :n", f"rows: {rows}", n="integer"
    )
    assert run(made, n=1) == result


def test_a_statement_runs_for_many_inputs_in_order(customers: str, tmp_path: Path) -> None:
    made = query(tmp_path, customers, "SELECT name FROM customers WHERE number = :n", "rows: value", n="integer")
    assert run(made, **{"for": [{"n": 2}, {"n": 9}, {"n": 1}]}) == ["Bob", None, "Ada"]


def test_s33_a_value_is_bound_and_never_read_as_sql(customers: str, tmp_path: Path) -> None:
    made = query(tmp_path, customers, "SELECT number FROM customers WHERE name = :name", name="string")
    assert run(made, name="' OR '1'='1'; DROP TABLE customers --") == []
    assert run(made, name="Ada") == [{"number": 1}]


def test_what_is_not_to_write_cannot(customers: str, tmp_path: Path) -> None:
    made = query(tmp_path, customers, "DELETE FROM customers WHERE number = :n", n="integer")
    with pytest.raises(RuntimeError, match="read-only transaction"):
        run(made, n=1)
    writes = query(tmp_path, customers, "DELETE FROM customers WHERE number = :n", "write: true, rows: count",
                   effect="effect: repeatable", n="integer")  # fmt: skip
    assert run(writes, n=1) == 1
    assert run(writes, n=1) == 0


def test_a_statement_ends_at_its_limits_and_shows_no_password(customers: str, tmp_path: Path) -> None:
    with pytest.raises(AnswerRefused, match="too many rows"):
        run(query(tmp_path, customers, "SELECT number FROM customers", "limit: 1"))
    slow = query(tmp_path, customers, "SELECT pg_sleep(10)").function
    with pytest.raises(RuntimeError, match="statement timeout"):
        replace(slow, declared=slow.declared.model_copy(update={"timeout": 0.2})).many(None, [{}])
    with pytest.raises(RuntimeError) as refused:
        run(query(tmp_path, "postgresql://me:canary@127.0.0.1:1/x", "SELECT 1"))
    assert "canary" not in str(refused.value)


def test_without_a_database_it_writes_in_the_transaction_of_its_result(tmp_path: Path, make_lab: Any) -> None:
    (tmp_path / "config/tools").mkdir(parents=True)
    (tmp_path / "config/tools/note.yaml").write_text("""
tool: note
arguments: {text: {type: string}}
sql: {query: "INSERT INTO noted VALUES (:text)", write: true, rows: count}
""")
    lab = make_lab(tools=["note"])
    lab.rows("CREATE TABLE IF NOT EXISTS noted (text text)")
    trace = lab.start({"tools": [{"tool": "note", "args": {"text": "once"}}]})
    lab.drain()
    assert trace.result(1) == 1
    assert [row["text"] for row in lab.rows("SELECT text FROM noted")] == ["once"]
    assert lab.mesh.tools.get("note").tx
    lab.rows("DROP TABLE noted")
