"""Attacks on running workers by whoever can write to the broker, install a package, or read what we leave behind."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import kombu
import psycopg
import pytest
import redis
import sqlalchemy as sa

from agentmesh.communication.envelope import Envelope, audience, sign
from agentmesh.records import Ring, new_id
from agentmesh.testing import race, until
from agentmesh.wiring import now_s

pytestmark = pytest.mark.story
RATE = {"tools": [{"tool": "rate", "args": {"text": "calm"}}]}


def envelope_of(story: Any, trace: Any) -> str:
    return str(story.value("SELECT jws FROM mesh.envelopes WHERE trace_id = %s", trace.id))


def ring_of(story: Any, trace: Any, *, agent: str = "runner", **fields: Any) -> Ring:
    name = story.agent(agent)
    given = {"kind": "trace", "id": trace.id, "epoch": 1, "queue": f"agent.{name}", "task": f"agent.{name}",
             "trace_id": trace.id}  # fmt: skip
    return Ring(**given | fields)


def answered(story: Any) -> None:
    """Every message that the test put on the runner's queue has been taken and dealt with."""
    queue = f"agent.{story.agent('runner')}"
    until(lambda: story.mesh.broker.depths([queue])[queue] == 0, what="an empty queue")
    assert story.dispatch("runner", {"last": True}, priority=0).result(timeout=20) == {"last": True}


@pytest.mark.parametrize("kind", ["amqp", "redis"])
def test_s04_one_envelope_rung_200_times_runs_once(make_story: Any, kind: str) -> None:
    story = make_story(kind)
    story.workers(("agents", "threads"), ("all", "threads"))
    trace = story.dispatch("runner", RATE)
    again = ring_of(story, trace, envelope=envelope_of(story, trace))
    race(*[lambda: story.mesh.broker.ring([again] * 25) for _ in range(4)])  # while it runs, from four connections
    assert trace.result(timeout=20) == {"rate": "calm"}
    assert story.mesh.broker.ring([again] * 100) == []  # and after its end
    answered(story)
    assert Counter(story.events(trace.id))["RUN_ONCE_START"] == 1
    assert [line["tool"] for line in story.ledger()] == ["rate"]
    assert story.value("SELECT count(*) FROM mesh.envelopes") == 2


@pytest.mark.parametrize("forged", ["byte", "readdressed", "other trace", "garbage"])
def test_s01_s05_a_forged_envelope_is_refused_and_the_row_still_finishes(make_story: Any, forged: str) -> None:
    story = make_story("amqp")
    story.worker("agents").kill()  # it has announced; nobody consumes until the attacker has rung
    trace, other = story.dispatch("runner", {"n": 1}), story.dispatch("archivist", {"customer": 1}, delay=600)
    token = envelope_of(story, trace)
    attack = {
        "byte": ring_of(story, trace, envelope=token[:200] + ("A" if token[200] != "A" else "B") + token[201:]),
        "readdressed": ring_of(story, other, envelope=envelope_of(story, other)),
        "other trace": ring_of(story, other, envelope=token),
        "garbage": ring_of(story, trace, envelope="a.b.c"),
    }[forged]
    with kombu.Connection(story.broker_url) as connection:
        assert connection.default_channel.queue_purge(attack.queue) == 1  # the attacker takes the genuine one
    assert story.mesh.broker.ring([attack]) == []
    worker = story.worker("agents")
    assert trace.result(timeout=20) == {"n": 1}
    assert "refused" in worker.text()
    received = story.value("SELECT body->>'envelope' FROM mesh.events WHERE name = 'ACP_RECEIVE'")
    assert received == "false"  # the rescuer rang it by its id; the forged message claimed nothing
    assert story.value("SELECT status FROM mesh.traces WHERE id = %s", other.id) == "queued"
    story.rows("UPDATE mesh.traces SET wake_at = NULL WHERE id = %s RETURNING id", other.id)
    assert until(lambda: other.status() in {"running", "done"}, what="the other trace's own start")
    story.worker("tools")
    story.quiet()


@pytest.mark.parametrize("kind", ["amqp", "redis"])
def test_s04_an_envelope_whose_row_nobody_made_is_refused_counted_and_audited(make_story: Any, kind: str) -> None:
    """Signed by the mesh's own key, for this very queue: still a message makes no row."""
    story = make_story(kind)
    worker = story.worker("agents")
    made = Envelope.model_validate_json(json.dumps({
        "meta": {"trace_id": str(new_id()), "timestamp": now_s(), "from": "story", "to": story.agent("runner")},
        "context": {"context_id": "c"}, "command": {"intent": "work", "payload": {"n": 1}},
    }))  # fmt: skip
    queue = f"agent.{story.agent('runner')}"
    aud = audience(story.mesh.settings.mesh.name, queue)
    token = sign(made, story.mesh.key, aud=aud, jti=new_id(), now_s=now_s())
    forged = Ring("trace", made.meta.trace_id, 1, queue, queue, made.meta.trace_id, envelope=token)
    assert story.mesh.broker.ring([forged] * 3) == []
    answered(story)
    assert story.value("SELECT count(*) FROM mesh.traces WHERE id = %s", made.meta.trace_id) == 0
    assert worker.text().count("reason=row") == 3
    noted = story.rows("SELECT body::jsonb AS said FROM mesh.audit WHERE body::jsonb->>'action' = 'ENVELOPE_REFUSED'")
    assert [(one["said"]["reason"], one["said"]["last"]["row"]) for one in noted] == [("row", str(made.meta.trace_id))]
    counted = "SELECT counts->>'refused.row' FROM mesh.workers WHERE state = 'alive'"
    assert until(lambda: story.value(counted) == "3", what="the worker's count")


def test_s11_guessed_ids_and_forged_canvas_move_nothing(make_story: Any) -> None:
    story = make_story("amqp")
    agents, tools = story.workers(("agents", "threads"), ("tools", "threads"))
    trace = story.dispatch("runner", RATE)
    assert trace.result(timeout=20) == {"rate": "calm"}
    before = story.rows("SELECT id, epoch, status FROM mesh.calls") + story.rows("SELECT id, epoch FROM mesh.steps")
    call = story.rows("SELECT id, epoch FROM mesh.calls")[0]
    step = story.value("SELECT id FROM mesh.steps LIMIT 1")
    queues = {"agent": f"agent.{story.agent('runner')}", "tools": f"tools.{story.tag}"}
    guessed = [
        ring_of(story, trace, kind=kind, id=row, epoch=epoch, queue=queue, task=task)
        for kind, row in (("trace", trace.id), ("trace", new_id()), ("step", step), ("call", call["id"]))
        for epoch in (0, 1, 2, 2**31 - 1)
        for queue, task in ((queues["agent"], f"agent.{story.agent('runner')}"), (queues["tools"], "tool.rate"))
    ]
    assert story.mesh.broker.ring(guessed) == []
    app = story.mesh.app
    rate = app.signature("tool.rate", args=("call", str(call["id"]), 2), queue=queues["tools"])
    args = ("trace", str(trace.id), 1)
    with app.producer_pool.acquire() as producer:
        sent = {"queue": queues["agent"], "producer": producer}
        app.send_task(
            f"agent.{story.agent('runner')}", args, link=rate, link_error=rate, chain=[rate], chord=rate, **sent
        )
        for name in (
            "celery.starmap",
            "celery.chunks",
            "celery.chord",
            "celery.group",
            "os.system",
            "celery.backend_cleanup",
        ):
            app.send_task(name, (["tool.rate", [args]],), **sent)
        app.send_task(f"agent.{story.agent('runner')}", ({"$gt": 0}, [1] * 100, "1"), {"envelope": {}}, **sent)
    for order in ("shutdown", "pool_restart", "revoke", "terminate", "cancel_consumer", "rate_limit"):
        app.control.broadcast(order, arguments={"task_id": "x", "queue": queues["agent"], "signal": "KILL"})
    answered(story)
    assert (agents.running, tools.running) == (True, True)
    steps = story.rows("SELECT id, epoch FROM mesh.steps WHERE trace_id = %s", trace.id)
    after = story.rows("SELECT id, epoch, status FROM mesh.calls") + steps
    assert after == before
    assert [line["tool"] for line in story.ledger()] == ["rate"]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("kind", ["amqp", "redis"])
def test_s31_messages_that_are_not_json_are_not_decoded(make_story: Any, kind: str) -> None:
    story = make_story(kind)
    worker = story.worker("agents")
    trace = story.dispatch("runner", {"n": 1})
    queue = f"agent.{story.agent('runner')}"
    headers = {"lang": "py", "task": queue, "id": str(new_id()), "root_id": None, "parent_id": None, "group": None}
    body = pickle.dumps(((Bomb(story.home / "exploded"),), {}, {}))
    text = b"!!python/object/apply:os.mkdir [" + str(story.home / "exploded").encode() + b"]"
    types = [("application/x-python-serialize", "binary", body), ("application/x-yaml", "utf-8", text),
             ("application/x-msgpack", "binary", b"\x93\x90\x80\x80"), ("application/data", "binary", body),
             ("application/json", "binary", body), ("application/json", "utf-16", b"\xff\xfe["),
             ("text/plain", "utf-8", b"[[], {}, {}]"), (None, None, b"[[], {}, {}]")]  # fmt: skip
    with story.mesh.app.connection_for_write() as connection:
        producer = kombu.Producer(connection.channel(), auto_declare=False)
        for content_type, encoding, payload in types:
            producer.publish(payload, routing_key=queue, exchange="", headers=headers, serializer=None,
                             content_type=content_type, content_encoding=encoding)  # fmt: skip
    assert trace.result(timeout=20) == {"n": 1}
    answered(story)
    assert worker.running
    assert not (story.home / "exploded").exists()


# --- S55


def plugin(site: Path, canary: Path) -> None:
    """An installed distribution that registers itself in every group we have, and says when it was imported."""
    info = site / "evil-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    groups = ("agentmesh.plugins", "agentmesh.tools", "agentmesh.agents")
    (info / "entry_points.txt").write_text("".join(f"[{group}]\nevil = evil_plugin\n" for group in groups))
    (site / "evil_plugin.py").write_text(f"open({str(canary)!r}, 'w').close()\ndef go(*_): pass\n")


def test_s55_an_unlisted_plugin_is_never_imported(make_story: Any) -> None:
    story = make_story("embedded")
    canary = story.home / "imported"
    plugin(story.home / "site", canary)
    story.env["PYTHONPATH"] = f"{story.environ()['PYTHONPATH']}{os.pathsep}{story.home / 'site'}"
    story.worker("all")
    named = [
        story.dispatch("runner", {"tools": [{"tool": tool, "args": {}}]})
        for tool in ("evil_plugin:go", "evil_plugin.go", "evil", "evil_plugin")
    ]
    policies = [{"callbacks": ["evil_plugin"]}, {"callbacks": ["evil"]}]
    named += [story.dispatch("runner", {"reasoner": "evil_plugin:go"}, policy=policy) for policy in policies]
    queue = f"agent.{story.agent('runner')}"
    with story.mesh.app.producer_pool.acquire() as producer:
        for task in ("evil_plugin.go", "evil_plugin:go"):
            story.mesh.app.send_task(task, ("trace", str(new_id()), 1), queue=queue, producer=producer)
    story.quiet()
    assert {trace.status() for trace in named} == {"failed"}
    assert not canary.exists()


def test_s55_a_listed_plugin_is_imported_at_its_version_only(make_story: Any) -> None:
    story = make_story("embedded")
    canary = story.home / "imported"
    plugin(story.home / "site", canary)
    story.env["PYTHONPATH"] = f"{story.environ()['PYTHONPATH']}{os.pathsep}{story.home / 'site'}"
    other = story.worker("all", wait=False, AGENTMESH_TOOLS_PLUGINS="evil==2.0")
    assert other.wait(30) != 0
    assert not canary.exists()
    story.worker("all", AGENTMESH_TOOLS_PLUGINS="evil==1.0")
    assert canary.exists()


# --- S57


def leaks(story: Any, canaries: dict[str, str]) -> dict[str, list[str]]:
    """Where in the database each canary stands, as table.column; payloads and arguments as handed in are left out."""
    handed_in = {("traces", "payload"), ("calls", "args"), ("envelopes", "jws")}
    columns = story.rows(
        "SELECT c.table_name AS t, c.column_name AS c FROM information_schema.columns c JOIN information_schema.tables t"
        " USING (table_schema, table_name) WHERE c.table_schema = 'mesh' AND t.table_type = 'BASE TABLE'"
    )
    found: dict[str, list[str]] = {}
    for one in columns:
        table, column = one["t"], one["c"]
        rows = (
            [] if (table, column) in handed_in else story.rows(f'SELECT "{column}"::text AS said FROM mesh."{table}"')
        )
        text = "\n".join(str(row["said"]) for row in rows)
        for name in [name for name, canary in canaries.items() if canary in text]:
            found.setdefault(name, []).append(f"{table}.{column}")
    return found


def test_s57_planted_secrets_are_found_nowhere(make_story: Any, own_redis: Any) -> None:
    canaries = {name: f"canary{new_id().hex}" for name in ("broker", "database", "payload", "url", "argument", "error")}
    broker = own_redis(canaries["broker"])
    story = make_story("redis", broker_url=broker.url)
    url = sa.make_url(story.database_url).set(password=canaries["database"]).render_as_string(hide_password=False)
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        canaries.pop("database")  # this server asks for its password; the other canaries remain
    else:
        story.env["AGENTMESH_DATABASE_URL"] = url
    story.env["STORY_CANARY"] = canaries["error"]
    workers = story.workers(("agents", "threads"), ("tools", "prefork"))
    inspected = story.mesh.app.control.inspect(timeout=1.0)
    gate = {"tool": "slow", "args": {"gate": "gate"}, "as": "slow"}
    payload = {
        "password": canaries["payload"], "note": f"see postgresql://me:{canaries['url']}@db.example/x",
        "tools": [gate, {"tool": "rude", "args": {"api_key": canaries["argument"]}}],
    }  # fmt: skip
    trace = story.dispatch("runner", payload)
    until(lambda: any(line["tool"] == "slow" for line in story.ledger()), what="a running tool")
    seen = {
        "inspect": repr([inspected.active(), inspected.reserved(), inspected.stats(), inspected.conf()]),
        "status": "".join(Path(f"/proc/{worker.pid}/cmdline").read_text() for worker in workers),
    }
    with redis.Redis.from_url(broker.url) as client:
        seen["broker"] = repr([client.dump(key) for key in client.scan_iter()])
    story.open("gate")
    until(lambda: trace.status() in {"done", "failed"}, what="its end")
    # a worker that can reach neither says so without the passwords
    broker.stop()
    story.dispatch("runner", {"n": 1})
    until(lambda: any("onnect" in worker.text() for worker in workers), what="a word about the lost broker")
    workers[1].signal(signal.SIGTERM)

    key = next((story.home / ".agentmesh" / "keys").glob("*.pem")).read_text().splitlines()[1]
    everything = canaries | {"key": key}
    assert leaks(story, everything) == {}
    for worker in workers:
        seen[worker.name] = worker.text()
    hits = {(name, where) for name, canary in everything.items() for where, text in seen.items() if canary in text}
    assert hits == set()
    broker.start()
    story.quiet()
