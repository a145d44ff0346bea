"""S57, S59: what `agentmesh flower` shows of real tasks, what an auth_token leaves behind, and that Flower takes no orders."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from typing import Any
from urllib.parse import urlencode

import pytest
from joserfc import jws

from agentmesh.communication.envelope import ALGORITHM, TYPE, Envelope, audience, parts, sign
from agentmesh.records import Ring, new_id
from agentmesh.testing import until
from agentmesh.wiring import now_s

pytestmark = pytest.mark.story
Said = tuple[int, str]  # status and body
PASSWORD = "ada:long-and-secret"
PAGES = ("/", "/workers", "/tasks", "/broker", "/metrics")
API = ("/api/tasks", "/api/workers?refresh=1", "/api/task/types", "/api/queues/length")
COLUMNS = ("name", "uuid", "state", "args", "kwargs", "result", "exception", "traceback", "root_id")
ORDERS = (
    "worker/shutdown/{worker}", "worker/pool/restart/{worker}", "worker/pool/grow/{worker}?n=1",
    "worker/pool/shrink/{worker}?n=1", "worker/pool/autoscale/{worker}?min=1&max=1",
    "worker/queue/add-consumer/{worker}?queue=stolen", "worker/queue/cancel-consumer/{worker}?queue={queue}",
    "task/revoke/{task}?terminate=true", "task/abort/{task}", "task/timeout/tool.rate?workername={worker}&soft=1",
    "task/rate-limit/tool.rate?workername={worker}&ratelimit=1", "task/apply/tool.rate",
    "task/async-apply/tool.rate", "task/send-task/tool.rate",
)  # fmt: skip


def spellings(canary: str) -> set[str]:
    """The canary as it is, and as it reads inside Base64, wherever in a group of three bytes it begins."""
    found = {canary}
    for before in range(3):
        encoded = base64.urlsafe_b64encode(b"\0" * before + canary.encode()).decode()
        found.add(encoded[(0, 2, 3)[before] : len(canary) * 4 // 3 - 1])
    return found


def shown(text: str, canaries: dict[str, str]) -> set[str]:
    return {name for name, canary in canaries.items() if any(one in text for one in spellings(canary))}


class Watch:
    """`agentmesh flower` of a story, asked over HTTP."""

    def __init__(self, story: Any, *, password: str | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self._password = password
        given = {"AGENTMESH_FLOWER_BASIC_AUTH": password} if password else {}
        self.process = story.run(
            ["-m", "agentmesh", "flower", "--address", f"127.0.0.1:{self._port}"], "flower", **given
        )
        until(self._answers, within=40, what="an answer from Flower")

    def _answers(self) -> bool:
        assert self.process.running, self.process.text()
        try:
            return self.ask("/workers")[0] == 200
        except OSError:
            return False

    def ask(self, path: str, method: str = "GET", body: str = "") -> Said:
        wire = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            secret = base64.b64encode((self._password or "").encode()).decode()
            wire.request(method, path, body, {"Authorization": f"Basic {secret}"} if self._password else {})
            answer = wire.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            wire.close()

    def table(self) -> str:
        """Every row and column that the tasks page draws."""
        wanted = {f"columns[{number}][data]": name for number, name in enumerate(COLUMNS)}
        asked = {"draw": 1, "start": 0, "length": 1000, "order[0][column]": 0, "order[0][dir]": "asc"}
        return self.ask(f"/tasks/datatable?{urlencode(wanted | asked)}")[1]

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.table())["data"]
        return rows

    def named(self, traces: list[Any]) -> set[tuple[str, Any]]:
        """Which task names stand beside which of these traces."""
        return {(row["name"], one) for row in self.rows() for one in traces if str(one.id) in (row["args"] or "")}

    def everything(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Said], dict[str, Said]]:
        """Every page, those of these tasks and their workers too, and every answer of the API."""
        paths = {*PAGES, *(f"/task/{row['uuid']}" for row in rows), *(f"/worker/{row['worker']}" for row in rows)}
        pages = {path: self.ask(path) for path in paths} | {"the table": (200, self.table())}
        return pages, {path: self.ask(path) for path in API}


def envelopes(story: Any, trace: Any, secret: str) -> tuple[str, str]:
    """The trace's envelope with this auth_token handed to `sign`, and one whose signer signed the token with it."""
    mesh = story.mesh
    row = story.rows("SELECT queue, agent, intent, payload, context_id FROM mesh.traces WHERE id = %s", trace.id)[0]
    made = Envelope.model_validate_json(json.dumps({
        "meta": {"trace_id": str(trace.id), "timestamp": now_s(), "from": "story", "to": row["agent"]},
        "context": {"context_id": row["context_id"], "auth_token": secret, "permissions": ["data:read"]},
        "command": {"intent": row["intent"], "payload": row["payload"]},
    }))  # fmt: skip
    aud, now = audience(mesh.settings.mesh.name, row["queue"]), now_s()
    ours = sign(made, mesh.key, aud=aud, jti=new_id(), now_s=now)
    said = parts(made)
    said["context"]["auth_token"] = secret  # type: ignore[index, call-overload]
    claims = {"aud": aud, "jti": str(new_id()), "iat": now, "exp": now + 60, "tenant": mesh.key.tenant, **said}
    header = {"alg": ALGORITHM, "kid": mesh.key.kid, "typ": TYPE}
    registry = jws.JWSRegistry(algorithms=[ALGORITHM])
    return ours, jws.serialize_compact(header, json.dumps(claims), mesh.key.private, registry=registry)


def ring(story: Any, trace: Any, envelope: str) -> Ring:
    name = f"agent.{story.agent('runner')}"
    return Ring("trace", trace.id, 1, name, name, trace.id, 5, envelope)


def everything(story: Any) -> str:
    """Every row of every table, as text."""
    tables = story.rows("SELECT tablename AS t FROM pg_tables WHERE schemaname = 'mesh'")
    return "\n".join(str(row) for one in tables for row in story.rows(f'SELECT x::text FROM mesh."{one["t"]}" x'))


def offer(story: Any, worker: Any, trace: Any, secret: str) -> None:
    """Both envelopes have been rung, and the one with the secret in it was refused."""
    for one in envelopes(story, trace, secret):
        assert story.mesh.broker.ring([ring(story, trace, one)]) == []
    until(lambda: "reason=auth_token" in worker.text(), what="a refusal")
    story.rows("UPDATE mesh.traces SET wake_at = NULL WHERE id = %s RETURNING id", trace.id)


def prepared(make_story: Any, own_redis: Any, kind: str) -> tuple[Any, dict[str, str]]:
    """A story whose agent has a canary among its grants and whose broker (where it is Redis) one as its password."""
    names = ("payload", "argument", "policy", "permission", "auth_token", "error", "broker")
    canaries = {name: f"canary{new_id().hex}" for name in names}
    story = make_story(kind, broker_url=own_redis(canaries["broker"]).url) if kind == "redis" else make_story(kind)
    story.env["STORY_CANARY"] = canaries["error"]
    agent = story.home / "agents" / "runner.yaml"
    agent.write_text(agent.read_text().replace('"data:*"', f'"data:*", "{canaries["permission"]}:read"'))
    return story, canaries


@pytest.mark.parametrize(("kind", "password"), [("redis", PASSWORD), ("amqp", PASSWORD), ("amqp", None)])
def test_s57_flower_names_tasks_and_traces_shows_no_canary_and_takes_no_order(
    make_story: Any, own_redis: Any, kind: str, password: str | None
) -> None:
    story, canaries = prepared(make_story, own_redis, kind)
    workers = story.workers(("agents", "threads"), ("tools", "prefork"))
    flower = Watch(story, password=password)

    def dispatch(*tools: dict[str, Any], **options: Any) -> Any:
        given = {"permissions": ["data:read", f"{canaries['permission']}:read"]} | options
        policy = {"callbacks": [canaries["policy"]], "on_callback_fail": "finish"}
        return story.dispatch("runner", {"note": canaries["payload"], "tools": [*tools]}, policy=policy, **given)

    rate = {"tool": "rate", "args": {"text": canaries["argument"]}}
    rude = {"tool": "rude", "args": {"api_key": canaries["argument"]}}
    slow = {"tool": "slow", "args": {"gate": "gate"}}

    def heard() -> bool:  # Flower knows only what ran after it had asked the workers for their events
        probe = dispatch(rate)
        until(lambda: probe.status() == "done", what="the probe's end")
        return str(probe.id) in flower.table()

    until(heard, what="a trace in Flower")
    signed = dispatch(rate, delay=600)
    offer(story, workers[0], signed, canaries["auth_token"])
    dispatch(rude)  # alone: its failure would end what runs beside it
    working = dispatch(rate, slow)
    until(lambda: any(line["tool"] == "slow" for line in story.ledger()), what="a running tool")

    wanted = {("tool.slow", working), ("tool.rate", working), ("tool.rate", signed)}
    wanted |= {(f"agent.{story.agent('runner')}", trace) for trace in (working, signed)}
    until(lambda: wanted <= flower.named([working, signed]), what="our tasks with their traces in Flower")
    rows = flower.rows()
    pages, told = flower.everything(rows)
    assert {code for code, _ in pages.values()} == {200}
    assert {code for code, _ in told.values()} == {200 if password else 401}
    assert not password or all(name in told["/api/tasks"][1] and str(trace.id) in told["/api/tasks"][1]
                               for name, trace in wanted)  # fmt: skip
    texts = {path: text for path, (_, text) in (pages | told).items()}
    assert {path: found for path, text in texts.items() if (found := shown(text, canaries))} == {}

    busy = next(row for row in rows if row["name"] == "tool.slow")
    orders = [one.format(worker=busy["worker"], task=busy["uuid"], queue=f"tools.{story.tag}") for one in ORDERS]
    answers = {one: flower.ask(f"/api/{one}", "POST", '{"args": []}')[0] for one in orders}
    assert set(answers.values()) == {403 if password else 401}, answers
    story.open("gate")
    story.quiet()
    assert dispatch(rate).result(timeout=20) == {"rate": "calm"}
    assert all(worker.running for worker in workers)

    logs = "\n".join(process.text() for process in story.processes)
    assert shown(everything(story), {"auth_token": canaries["auth_token"], "error": canaries["error"]}) == set()
    assert shown(logs, canaries) <= {"policy"}  # what no worker knows is named, so that somebody can correct it
