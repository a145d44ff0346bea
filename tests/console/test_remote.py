"""ACPClient of a gateway: what the direct client does, with the same answers and the same errors."""

from __future__ import annotations

import asyncio
import http.server
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh import ACPClient, BIRRouter
from agentmesh.errors import GatewayUnreachable, MeshError, Mistake, NoDecision, StillWorking, TraceFailed
from agentmesh.testing import race, until
from tests.console.doors import Door
from tests.console.test_gateway import producer
from tests.faults.proxy import Proxy

WORK = {"do": [{"tools": [{"tool": "work", "args": {"n": 1}}]}]}
INTENT = ("work", "shop", "puppet", "c-1")


@pytest.fixture
def make_router(door: Door) -> Iterator[Callable[..., BIRRouter]]:
    """make_router(url=, **options) -> a producer's router on the gateway, by default with a token of its own."""
    made: list[ACPClient] = []

    def make(url: str | None = None, **options: Any) -> BIRRouter:
        if not {"key", "token"} & set(options):
            options.setdefault("token", door.issue("*")[1])
        made.append(ACPClient(url or door.url, **options))
        return BIRRouter(acp_client=made[-1])

    yield make
    for client in made:
        client.close()


def test_an_intent_goes_through_a_gateway_and_its_result_comes_back(door: Door, make_router: Any) -> None:
    trace = make_router().dispatch(*INTENT, WORK, priority=9, locale="de_CH", permissions=["data:read"])
    assert trace.status() == "queued"
    with pytest.raises(StillWorking):
        trace.result(timeout=0)
    row = door.lab.rows("SELECT id, priority, locale, permissions FROM mesh.traces")[0]
    assert row == {"id": trace.id, "priority": 9, "locale": "de_CH", "permissions": ["data:read"]}
    door.lab.drain()
    assert trace.result(timeout=5) == 2

    async def heard() -> list[str]:
        return [event["name"] async for event in trace.follow()]

    assert asyncio.run(heard()) == door.lab.events(trace)


def test_a_trace_that_failed_raises_as_it_does_directly(door: Door, make_router: Any) -> None:
    boom, policy = {"do": [{"tools": [{"tool": "boom"}]}]}, {"on_fail": "fail"}
    traces = [router.dispatch(*INTENT, boom, policy=policy) for router in (make_router(), door.mesh.router)]
    door.lab.drain()
    raised = []
    for trace in traces:
        with pytest.raises(TraceFailed) as failed:
            trace.result(timeout=5)
        raised.append(failed.value.parts() | {"what": failed.value.what.replace(str(trace), "ID"), "next": ""})
    assert raised[0] == raised[1]


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("agent", {"to_id": "nobody"}),
    ("name", {"to_id": "No Body"}),
    ("reference", {"payload": {"$blob": "00"}}),
    ("permission", {"permissions": ["data:*"]}),
    ("policy", {"policy": {"max_steps": 0}}),
    ("json", {"payload": {"n": float("nan")}}),
]


@pytest.mark.parametrize("wrong", [one for _, one in WRONG], ids=[one for one, _ in WRONG])
def test_errors_are_those_of_the_direct_client(door: Door, make_router: Any, wrong: dict[str, Any]) -> None:
    given = dict(zip(("intent", "from_id", "to_id", "context_id"), INTENT, strict=True)) | {"payload": {}} | wrong
    raised = []
    for router in (make_router(), door.mesh.router):
        with pytest.raises(MeshError) as refused:
            router.dispatch(**given)
        raised.append((type(refused.value), refused.value.parts()))
    assert raised[0] == raised[1]
    assert door.count("traces") == 0


def test_one_key_is_one_trace_over_http_and_directly(door: Door, make_router: Any) -> None:
    routers = [make_router(), door.mesh.router]
    told = race(*[lambda router=router: router.dispatch(*INTENT, WORK, idempotency_key="k") for router in routers * 4])
    assert len({one.id for one in told}) == 1  # type: ignore[union-attr]
    for router in routers:
        with pytest.raises(MeshError) as refused:
            router.dispatch(*INTENT, {"n": 2}, idempotency_key="k")
        assert refused.value.code == "E_IDEMPOTENCY_CONFLICT"


def test_a_producer_may_sign_with_its_own_key(door: Door, make_router: Any, tmp_path: Path) -> None:
    key = producer(door, tmp_path)
    router = make_router(key=tmp_path / "till-default.pem")
    trace = router.dispatch(*INTENT, {"n": 1}, idempotency_key="mine")
    assert router.dispatch(*INTENT, {"n": 1}, idempotency_key="mine").id == trace.id
    assert door.lab.rows("SELECT kid, trace_id FROM mesh.envelopes") == [{"kid": key.kid, "trace_id": trace.id}]
    with pytest.raises(MeshError) as refused:  # a signature sends, and reads nothing
        trace.status()
    assert refused.value.code == "E_UNAUTHENTICATED"


@pytest.fixture
def link(door: Door) -> Any:
    made = Proxy(int(door.url.rpartition(":")[2]))
    yield made
    made.close()


def test_a_post_whose_answer_was_lost_is_repeated_and_makes_one_trace(
    door: Door, make_router: Any, link: Proxy
) -> None:
    router = make_router(f"http://127.0.0.1:{link.port}", timeout_s=1.0)
    link.one_way()  # the request arrives, its answer does not
    told: list[Any] = []
    sender = threading.Thread(target=lambda: told.append(router.dispatch(*INTENT, WORK)))
    sender.start()
    until(lambda: door.count("traces"), what="the trace of the first post")
    link.pass_()
    sender.join(20)
    assert door.lab.rows("SELECT id FROM mesh.traces") == [{"id": told[0].id}]
    assert len(door.bells.waiting) == 1


def test_a_link_that_is_cut_is_tried_again_until_it_carries(door: Door, make_router: Any, link: Proxy) -> None:
    router = make_router(f"http://127.0.0.1:{link.port}")
    link.cut()
    told: list[Any] = []
    sender = threading.Thread(target=lambda: told.append(router.dispatch(*INTENT, WORK)))
    sender.start()
    until(lambda: len(link.opened) >= 2, what="a second try")
    link.pass_()
    sender.join(20)
    assert told[0].status() == "queued"
    assert door.count("traces") == 1


def test_a_rate_that_is_exceeded_is_waited_out_as_the_gateway_says(make_door: Any, make_router: Any) -> None:
    door = make_door(gateway__rate="2/second")
    router = make_router(door.url)
    for n in range(4):
        router.dispatch(*INTENT, {"n": n})
    assert door.count("traces") == 4


def test_what_does_not_answer_is_told_in_time() -> None:
    router = BIRRouter(acp_client=ACPClient("http://127.0.0.1:9", token="t", patience_s=0.5))
    with pytest.raises(GatewayUnreachable) as away:
        router.dispatch(*INTENT, {})
    assert away.value.exit_code == 5


class Page(http.server.BaseHTTPRequestHandler):
    """A web page where a gateway should be."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *args: object) -> None:
        pass


def test_something_else_than_a_gateway_is_told_as_such() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        router = BIRRouter(acp_client=ACPClient(f"http://127.0.0.1:{server.server_port}", token="t", patience_s=0.5))
        with pytest.raises(GatewayUnreachable, match="something else"):
            router.dispatch(*INTENT, {})
        server.shutdown()
        thread.join(5)


@pytest.mark.parametrize("wrong", [{"session": object()}, {}])
def test_what_http_cannot_promise_is_refused(door: Door, make_router: Any, wrong: dict[str, Any]) -> None:
    intents = [dict(zip(("intent", "from_id", "to_id", "context_id"), INTENT, strict=True)) | {"payload": {}}] * 2
    with pytest.raises(Mistake):
        make_router().dispatch_many(intents[: 1 if wrong else 2], **wrong)
    assert door.count("traces") == 0


def test_a_producer_over_http_loads_no_celery_and_no_database() -> None:
    code = """
import json, sys
from agentmesh import ACPClient, BIRRouter
from agentmesh.errors import GatewayUnreachable
try:
    BIRRouter(acp_client=ACPClient("http://127.0.0.1:9", patience_s=0.1)).dispatch("work", "shop", "puppet", "c", {})
except GatewayUnreachable:
    json.dump(sorted(sys.modules), sys.stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded & {"celery", "kombu", "sqlalchemy", "psycopg", "fastapi", "redis", "joserfc"} == set()


def test_a_decision_is_rewarded_once_by_who_may_and_the_audit_says_so(door: Door, make_router: Any) -> None:
    trace = make_router(token=door.issue("*", owner="judge")[1]).dispatch(*INTENT, WORK)
    with pytest.raises(NoDecision):
        trace.feedback(1.0)
    door.lab.drain()
    assert [trace.feedback(0.5, key="k", note="slow") for _ in range(2)] == [1, 1]
    assert [one["reward"] for one in door.lab.rows("SELECT reward FROM mesh.rewards")] == [0.5]
    noted = door.lab.rows("SELECT body::jsonb AS said FROM mesh.audit WHERE body::jsonb->>'action' = 'REWARD'")
    assert [(one["said"]["by"], one["said"]["permission"]) for one in noted] == [("judge", "traces:feedback")]
    refused = door.client("traces:steer").post(f"/v1/traces/{trace.id}/feedback", json={"reward": 1})
    assert (refused.status_code, refused.json()["code"]) == (403, "E_FORBIDDEN")


BARE = ("agentmesh", "annotated_types", "anyio", "certifi", "h11", "httpcore", "httpx", "idna", "pydantic", "pydantic_core",
        "orjson", "rfc8785", "tenacity", "typing_extensions", "typing_inspection")  # fmt: skip
PRODUCER = """
import sys
sys.path.insert(0, sys.argv[1])
from agentmesh import ACPClient, BIRRouter
router = BIRRouter(acp_client=ACPClient(sys.argv[2], token=sys.argv[3]))
trace = router.dispatch("work", "shop", "puppet", "c-1", {"do": []}, idempotency_key="k")
print(trace.id, trace.status(), *([trace.result(timeout=10)] if trace.status() == "done" else []))
"""


def test_a_producer_over_http_needs_httpx_orjson_pydantic_rfc8785_and_tenacity_and_nothing_else(
    door: Door, tmp_path: Path
) -> None:
    """In an environment that holds these alone, with what they need themselves."""
    for name in BARE:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        source = Path(found.origin)
        source = source.parent if source.name == "__init__.py" else source
        (tmp_path / source.name).symlink_to(source)
    command = [sys.executable, "-I", "-S", "-c", PRODUCER, str(tmp_path), door.url, door.issue("*")[1]]

    def run() -> list[str]:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    first = run()
    door.lab.drain()
    assert (first[1], run()) == ("queued", [first[0], "done", "{}"])


def test_the_token_is_found_in_the_environment(door: Door, make_router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTMESH_GATEWAY_TOKEN", door.issue("*")[1])
    assert make_router(token=None).dispatch(*INTENT, {}).status() == "queued"
