"""Live streams: every event once, in order, over any number of reconnections; and an end for whoever may not look."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from agentmesh.console import stream, threshold
from agentmesh.testing import until
from tests.console.doors import Door, intent, problem

WORK = {"do": [{"tools": [{"tool": "work", "args": {"n": 1}}]}]}


def posted(door: Door, payload: dict[str, Any] | None = None) -> str:
    return str(door.client().post("/v1/intents", json=intent(payload)).json()["id"])


def heard(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream as they come: event, id, data."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    said: dict[str, Any] = {}
    for line in answer.iter_lines():
        if not line and said:
            yield said
            said = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            said[name] = json.loads(value) if name == "data" else value


@contextmanager
def listening(client: httpx.Client, trace: str, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
    with client.stream("GET", f"/v1/stream?trace={trace}", headers=headers) as answer:
        yield heard(answer)


def test_a_stream_tells_every_event_as_it_comes_and_then_ends(door: Door) -> None:
    trace = posted(door, WORK)
    with listening(door.client(), trace) as events:
        first = next(events)
        assert (first["event"], first["id"], first["data"]["seq"]) == ("BIR_DISPATCH", "1", 1)
        door.lab.drain()
        *rest, end = list(events)
    names = [row["name"] for row in door.lab.rows("SELECT name FROM mesh.events ORDER BY seq")]
    assert [first["event"], *[one["event"] for one in rest]] == names
    assert (end["event"], end["data"]) == ("end", {"status": "done"})


def test_a_stream_resumes_exactly_behind_the_last_event(door: Door) -> None:
    trace = posted(door, WORK)
    door.lab.drain()
    client = door.client()
    with listening(client, trace) as events:
        whole = list(events)
    for at in range(len(whole) - 1):
        with listening(client, trace, **{"Last-Event-ID": whole[at]["id"]}) as events:
            assert list(events) == whole[at + 1 :]
    problem(client.get(f"/v1/stream?trace={trace}", headers={"Last-Event-ID": "x"}), 422, "E_REQUEST")


def test_missing_events_are_a_gap_with_a_link(door: Door) -> None:
    trace = posted(door)
    door.lab.rows("DELETE FROM mesh.events WHERE seq = 1")
    door.client().post(f"/v1/traces/{trace}/cancel")
    try:
        with listening(door.client(), trace) as events:
            gap, cancelled, end = list(events)
        assert (gap["event"], gap["data"]) == ("gap", {"url": f"/v1/traces/{trace}/events?after=0"})
        assert (cancelled["event"], end["event"]) == ("EXEC_CANCEL", "end")
    finally:
        door.lab.rows("DELETE FROM mesh.events")
        door.lab.rows("DELETE FROM mesh.envelopes")
        door.lab.rows("DELETE FROM mesh.traces")


def test_s21_a_stream_of_another_tenant_does_not_exist(door: Door) -> None:
    trace = posted(door)
    problem(
        door.client(tenant="acme").get(f"/v1/stream?trace={trace}", headers={"Last-Event-ID": "0"}),
        404,
        "E_TRACE_UNKNOWN",
    )


@pytest.mark.parametrize("lost", ["key", "role", "tenant"])
def test_s21_a_stream_ends_soon_after_its_reader_may_look_no_more(
    door: Door, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    assert stream.AGAIN_S + door.mesh.key_table._fresh_s <= 30
    monkeypatch.setattr(stream, "AGAIN_S", 0.2)
    kid, token = door.issue("*")
    changes = {"role": "grants = '{data:read}'", "tenant": "tenant_id = 'acme'", "key": "revoked_at = mesh.mesh_now()"}
    with listening(door.client(token=token), posted(door)) as events:
        assert next(events)["event"] == "BIR_DISPATCH"
        door.lab.rows(f"UPDATE mesh.keys SET {changes[lost]} WHERE kid = %(kid)s", kid=kid)
        door.mesh.key_table._seen.clear()  # what time does
        assert list(events) == []


def test_s48_streams_of_one_principal_and_one_tenant_are_counted(make_door: Any) -> None:
    door = make_door(gateway__streams=2, gateway__tenant_streams=3)
    trace, client = posted(door), door.client()
    with ExitStack() as stack:
        heard_by = [stack.enter_context(listening(one, trace)) for one in (client, client, door.client(owner="other"))]
        assert [next(events)["event"] for events in heard_by] == ["BIR_DISPATCH"] * 3
        problem(client.get(f"/v1/stream?trace={trace}"), 429, "E_RATE")
        answer = door.client(owner="third").get(f"/v1/stream?trace={trace}")
        assert problem(answer, 429, "E_RATE")["expected"] == "at most 3 of one tenant"
    until(lambda: not door.mesh.gateway.parts.streams._open, what="closed streams, given back")
    with listening(client, trace) as events:
        assert next(events)["event"] == "BIR_DISPATCH"


def raw(door: Door) -> socket.socket:
    host, _, port = door.url.removeprefix("http://").rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=15)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return made


def test_s48_a_reader_that_does_not_read_is_dropped(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "DRAIN_S", 0.5)
    trace = posted(door)
    door.lab.rows(
        "INSERT INTO mesh.events (trace_id, seq, tenant_id, name, body) SELECT %(id)s, n, 'default', 'REASONER_PROMPT',"
        " jsonb_build_object('text', repeat('x', 60000)) FROM generate_series(2, 401) n",
        id=trace,
    )
    door.lab.rows("UPDATE mesh.traces SET seq = 401 WHERE id = %(id)s", id=trace)
    token = door.issue("*")[1]
    with raw(door) as slow:
        slow.sendall(
            f"GET /v1/stream?trace={trace} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        streams = door.mesh.gateway.parts.streams
        until(lambda: streams._open, what="an open stream")
        until(lambda: not streams._open, what="the end of it")


@pytest.mark.parametrize(
    "begun", [b"", b"GET /v1/traces HTTP/1.1\r\nHost: local", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGE"]
)
def test_s48_headers_that_do_not_come_close_the_connection(
    door: Door, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(threshold, "HEADERS_S", 0.5)
    with raw(door) as slow:
        slow.sendall(begun)
        said = b""
        while piece := slow.recv(4096):
            said += piece
    assert said.count(b"HTTP/1.1 200") == begun.count(b"/livez")


def test_s48_headers_that_trickle_do_not_buy_time(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "HEADERS_S", 0.5)
    stop = threading.Event()
    with raw(door) as slow:

        def trickle() -> None:
            slow.sendall(b"GET /livez HTTP/1.1\r\nX-Long: ")
            while not stop.wait(0.05):
                try:
                    slow.sendall(b"x")
                except OSError:
                    return

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            assert slow.recv(4096) == b""
        except ConnectionResetError:
            pass
        finally:
            stop.set()
            sender.join(5)


def test_s48_a_body_that_does_not_come_is_not_waited_for(make_door: Any) -> None:
    door = make_door(gateway__timeout="500ms")
    token = door.issue("*")[1]
    head = f"POST /v1/intents HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    with raw(door) as slow:
        slow.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        said = slow.recv(65536)
    assert said.startswith(b"HTTP/1.1 503")
    assert door.count("traces") == 0


def test_s48_headers_beyond_16_kib_are_refused(door: Door) -> None:
    with raw(door) as greedy:
        greedy.sendall(b"GET /livez HTTP/1.1\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n")
        assert greedy.recv(65536).startswith(b"HTTP/1.1 4")


def test_s48_many_idle_streams_and_connections_do_not_stand_in_the_way(make_door: Any) -> None:
    door = make_door(gateway__streams=200, gateway__tenant_streams=200)
    trace, token = posted(door), door.issue("*")[1]
    ask = f"GET /v1/stream?trace={trace} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    with ExitStack() as stack:
        idle = [stack.enter_context(raw(door)) for _ in range(300)]
        for one in idle[:150]:
            one.sendall(ask)
        until(lambda: door.mesh.gateway.parts.streams._open[("default",)] == 150, what="150 streams")
        client = door.client()
        took = sorted(client.get("/v1/traces").elapsed.total_seconds() for _ in range(40))
        threads = threading.active_count()
        assert took[20] < 0.25
        assert threads < 100
