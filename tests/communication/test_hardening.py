"""Attacks of somebody who can write to the broker, made on a real worker behind Redis, RabbitMQ and PostgreSQL."""

from __future__ import annotations

import bz2
import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amqp
import kombu
import pytest
import redis

from agentmesh.communication import pgq
from agentmesh.communication.broker import Broker
from agentmesh.communication.lines import headers_of
from agentmesh.infrastructure.pgq_store import Put, Session
from agentmesh.records import Ring
from tests.communication.conftest import Site, Worker


def forge(
    broker: Broker,
    ring: Ring,
    *,
    body: Any = None,
    embed: dict[str, Any] | None = None,
    headers: dict[str, Any] | None = None,
    **message: Any,
) -> None:
    """A message written by hand: by default the genuine one of `ring`."""
    body = json.dumps([["call", str(ring.id), 1], {}, embed or {}]) if body is None else body
    made = {"content_type": "application/json", "content_encoding": "utf-8"} | message
    with broker.app.connection_for_write() as connection:
        channel = connection.channel()
        broker.app.amqp.queues[ring.queue](channel).declare()
        parts = {k: made[k] for k in ("content_type", "content_encoding") if made[k] is not None}
        raw = channel.prepare_message(
            body, 5, parts.get("content_type"), parts.get("content_encoding"),
            headers_of(ring, "forged") | (headers or {}), {"correlation_id": "x", "reply_to": ""},
        )  # fmt: skip
        channel.basic_publish(raw, exchange="", routing_key=ring.queue)


def after_it_a_neighbour_runs(site: Site, broker: Broker, worker: Worker) -> list[dict[str, Any]]:
    """What the worker said until a genuine ring, rung behind the forged message, had run."""
    seen = len(worker.said)
    ring = site.ring()
    assert broker.ring([ring]) == []
    worker.ran(ring)
    return worker.said[seen:]


def ran(lines: list[dict[str, Any]]) -> list[str]:
    return [line["id"] for line in lines if line["what"] == "ran"]


def test_s11_forged_callbacks_errbacks_and_chain_are_dropped(site: Site, broker: Broker, worker: Worker) -> None:
    foreign = {"task": "agent.echo", "args": ["trace", "stolen", 1], "kwargs": {}, "options": {
        "queue": site.queue("agent"), "task_id": "stolen"}, "subtask_type": None, "immutable": True}  # fmt: skip
    canvas = {"callbacks": [foreign], "errbacks": [foreign], "chain": [foreign], "chord": None}
    good, bad = site.ring(), site.ring(kind="call")
    forge(broker, good, embed=canvas)
    forge(broker, bad, body=json.dumps([["fail", str(bad.id), 1], {}, canvas]))
    worker.ran(good)
    worker.ran(bad)
    assert "stolen" not in ran(after_it_a_neighbour_runs(site, broker, worker))
    assert broker.depths([site.queue("agent")]) == {site.queue("agent"): 0}


def test_s11_delay_in_a_message_is_not_believed(site: Site, broker: Broker, worker: Worker) -> None:
    ring = site.ring()
    forge(broker, ring, headers={"eta": "2999-01-01T00:00:00+00:00", "expires": "2001-01-01T00:00:00+00:00"})
    assert worker.ran(ring)["eta"] is None


@pytest.mark.parametrize("task", ["celery.starmap", "celery.chunks", "celery.chord_unlock", "celery.backend_cleanup"])
def test_s11_celerys_own_tasks_are_not_there(site: Site, broker: Broker, worker: Worker, task: str) -> None:
    ring = site.ring(task=task)
    foreign = {"task": "agent.echo", "args": [], "kwargs": {}}
    forge(broker, ring, body=json.dumps([[], {"task": foreign, "it": [["trace", "stolen", 1]]}, {}]))
    lines = after_it_a_neighbour_runs(site, broker, worker)
    assert len(ran(lines)) == 1
    assert "stolen" not in json.dumps([line for line in lines if line["what"] == "ran"])


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("shutdown", {}),
        ("pool_restart", {"modules": ["os"]}),
        ("pool_shrink", {"n": 2}),
        ("revoke", {"task_id": "x", "terminate": True}),
        ("rate_limit", {"task_name": "tool.echo", "rate_limit": "1/h"}),
        ("time_limit", {"task_name": "tool.echo", "hard": 1}),
        ("cancel_consumer", {"queue": "tools"}),
        ("add_consumer", {"queue": "elsewhere"}),
        ("memdump", {}),
    ],
)
def test_s11_remote_control_can_only_look(
    site: Site, broker: Broker, worker: Worker, command: str, arguments: dict[str, Any]
) -> None:
    control = broker.app.control
    control.broadcast(command, arguments=arguments, destination=[worker.name], reply=True, timeout=0.3)
    after_it_a_neighbour_runs(site, broker, worker)
    assert worker.running()


def test_s11_flower_still_sees_the_worker(site: Site, broker: Broker, worker: Worker) -> None:
    seen = broker.app.control.inspect(destination=[worker.name], timeout=5)
    assert seen.ping() == {worker.name: {"ok": "pong"}}
    assert seen.registered() == {worker.name: ["agent.echo", "tool.echo"]}


class Bang:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("/tmp/amtest-pickled"),)


ODD = {
    "pickle": {
        "body": pickle.dumps(Bang()), "content_type": "application/x-python-serialize", "content_encoding": "binary"},
    "yaml": {"body": "!!python/object/apply:os.getpid []", "content_type": "application/x-yaml"},
    "msgpack": {"body": b"\x93\x90\x80\x80", "content_type": "application/x-msgpack", "content_encoding": "binary"},
    "no type": {"content_type": None},
    "data": {"content_type": "application/data"},
    "text": {"content_type": "application/text"},
    "odd encoding": {"content_encoding": "unicode_escape"},
    "codec that inflates": {
        "body": zlib.compress(b"0" * 50_000_000), "content_type": "application/data", "content_encoding": "zlib"},
    "not JSON": {"body": "{"},
    "not arguments": {"body": '{"args": []}'},
    "deep": {"body": "[" * 100_000},
    "large": {"body": json.dumps([["x" * 300_000], {}, {}])},
    "no headers": {"headers": {"task": None}},
    "protocol 1": {
        "body": json.dumps({"task": "tool.echo", "id": "x", "args": []}), "headers": {"task": None, "id": None}},
}  # fmt: skip


@pytest.mark.parametrize("message", ODD.values(), ids=ODD)
def test_s31_what_is_not_plain_json_is_refused_before_decoding(
    site: Site, broker: Broker, worker: Worker, message: dict[str, Any]
) -> None:
    ring = site.ring()
    forge(broker, ring, **message)
    refused = worker.until(lambda line: line["what"] == "refused")
    assert refused["reason"]
    lines = after_it_a_neighbour_runs(site, broker, worker)
    assert ring.task_id not in ran(lines)
    assert not Path("/tmp/amtest-pickled").exists()


GARBAGE = ("", "{", "[]", "null", '{"body": 1}', '{"body": "x", "properties": {}}', "[" * 5000, "\\u0000")


def test_s31_what_is_no_message_at_all_does_not_end_the_worker(site: Site, broker: Broker, worker: Worker) -> None:
    throw = {"redis": throw_redis, "pgq": throw_pgq, "amqp": throw_amqp}[site.kind]
    for body in GARBAGE:
        throw(site, body)
    after_it_a_neighbour_runs(site, broker, worker)
    assert worker.running()


def throw_redis(site: Site, body: str) -> None:
    with redis.Redis.from_url(site.url) as client:
        client.lpush(f"{site.tag}:{site.queue()}", body)


def throw_pgq(site: Site, body: str) -> None:
    session = Session(pgq.database_url(site.url))
    session.put([Put(site.queue(), 9, body)])
    session.close()


def throw_amqp(site: Site, body: str) -> None:
    with kombu.Connection(site.url) as connection:
        connection.default_channel.basic_publish(amqp.Message(body), routing_key=site.queue())


@pytest.mark.parametrize("kind", ["application/x-gzip", "application/x-bz2", "zlib", "bzip2", "application/x-lzma"])
def test_s32_compressed_message_is_not_decompressed(site: Site, broker: Broker, worker: Worker, kind: str) -> None:
    bomb = (bz2.compress if "bz" in kind else zlib.compress)(b"0" * 200_000_000)
    before = peak_rss(worker)
    forge(broker, site.ring(), body=bomb, headers={"compression": kind})
    assert worker.until(lambda line: line["what"] == "refused")["reason"]
    after_it_a_neighbour_runs(site, broker, worker)
    assert peak_rss(worker) - before < 100 * 1024


def peak_rss(worker: Worker) -> int:
    """KiB."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def test_s57_neither_inspection_nor_logs_show_an_envelope(site: Site, broker: Broker, worker: Worker) -> None:
    ring = site.ring(kind="fail", envelope="canary-envelope")
    broker.ring([ring])
    worker.ran(ring)
    lines = after_it_a_neighbour_runs(site, broker, worker)
    shown = [line for line in worker.said + lines if line["what"] != "ran"]
    assert "canary" not in json.dumps(shown)
