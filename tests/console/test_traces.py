"""Reading and steering over HTTP: pages that stay stable, orders that tell the truth."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from agentmesh.state import memory
from tests.console.doors import Door, intent, problem

WORK = {"do": [{"tools": [{"tool": "work", "args": {"n": 1}}]}]}
BOOM = {"do": [{"tools": [{"tool": "boom"}]}]}


def posted(door: Door, payload: dict[str, Any] | None = None, **fields: Any) -> str:
    """The path of a trace that waits for its agent."""
    return str(door.client().post("/v1/intents", json=intent(payload, **fields)).headers["location"])


def test_pages_are_complete_and_stable_under_inserts(door: Door) -> None:
    reader = door.client("traces:read")
    urls = [posted(door) for _ in range(5)]
    page = reader.get("/v1/traces", params={"limit": 2}).json()
    assert (page["count"], page["more"]) == (5, False)
    seen = [one["id"] for one in page["items"]]
    while page["next"]:
        posted(door)  # newer than every page
        page = reader.get(page["next"]).json()
        seen += [one["id"] for one in page["items"]]
    assert seen == [url.rpartition("/")[2] for url in reversed(urls)]


def test_a_filter_is_applied_on_the_server_and_kept_by_the_cursor(door: Door) -> None:
    reader = door.client("traces:read")
    wanted = {posted(door, context_id="mine").rpartition("/")[2] for _ in range(3)}
    posted(door, context_id="theirs")
    page = reader.get("/v1/traces", params={"filter": "context:mine status:queued", "limit": 2}).json()
    rest = reader.get(page["next"]).json()
    assert {one["id"] for one in page["items"] + rest["items"]} == wanted
    assert page["count"] == 3
    cursor = page["next"].partition("cursor=")[2].partition("&")[0]
    for params in ({"filter": "context:theirs", "cursor": cursor}, {"cursor": cursor}):  # it is for its own list
        problem(reader.get("/v1/traces", params=params), 404, "E_PAGE_UNKNOWN")


def test_counts_are_capped(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentmesh.console import traces

    monkeypatch.setattr(traces, "COUNTED", 2)
    for _ in range(3):
        posted(door)
    page = door.client().get("/v1/traces").json()
    assert (page["count"], page["more"], len(page["items"])) == (2, True, 3)


@pytest.mark.parametrize(
    "params",
    [
        {"filter": "status:failed' OR 1=1 --"}, {"filter": "id;DROP TABLE mesh.traces:1"}, {"filter": "payload->>'a':b"},
        {"filter": "t.status:failed"}, {"cursor": "eyJhIjoxfQ.AAAA"}, {"cursor": "x' OR 1=1"}, {"cursor": "é.é"},
        {"limit": "1; DROP TABLE x"}, {"limit": "201"}, {"limit": "0"},
    ],
)  # fmt: skip
def test_s33_no_parameter_reaches_sql_as_text(door: Door, params: dict[str, str]) -> None:
    posted(door)
    answer = door.client().get("/v1/traces", params=params)
    problem(answer, 404 if "cursor" in params else 422, answer.json()["code"])


def test_s33_a_value_full_of_sql_is_a_value(door: Door) -> None:
    url = posted(door)
    reader = door.client()
    for value in ("c-%", "c__", "'", "c-1'--", "%(tenant)s", ":x"):
        assert reader.get("/v1/traces", params={"filter": f"context:{value}"}).json()["items"] == []
    assert reader.get("/v1/traces", params={"filter": "context:c-1"}).json()["items"][0]["id"] == url.rpartition("/")[2]


def test_everything_under_a_trace_is_read_in_pages(door: Door) -> None:
    url = posted(door, WORK)
    door.lab.drain()
    reader = door.client("traces:read")
    known = door.mesh.trace(UUID(url.rpartition("/")[2]))

    def whole(part: str) -> list[dict[str, Any]]:
        found, path = [], f"{url}/{part}?limit=1"
        while path:
            page = reader.get(path).json()
            assert len(page["items"]) <= 1
            found += page["items"]
            path = page["next"]
        return found

    assert [one["name"] for one in whole("events")] == door.lab.events(known)
    assert [one["id"] for one in whole("steps")] == [str(one["id"]) for one in door.lab.steps(known)]
    (call,) = whole("calls")
    assert (call["tool"], call["args"], call["result"], call["status"]) == ("work", {"n": 1}, 2, "done")
    attempts = whole("attempts")
    assert {one["kind"] for one in attempts} >= {"tool", "reason"}
    assert {one["outcome"] for one in attempts} == {"won"}
    remembered = {f"{one['type']}:{one['key']}": one["value"] for one in whole("memory")}
    assert remembered == memory.newest(door.mesh.db, "default", "c-1", known.id) != {}


@pytest.mark.parametrize("path", ["", "/steps", "/calls", "/attempts", "/events", "/memory"])
def test_what_does_not_exist_is_not_found(door: Door, path: str) -> None:
    reader = door.client("traces:read")
    problem(reader.get(f"/v1/traces/01900000-0000-7000-8000-000000000000{path}"), 404, "E_TRACE_UNKNOWN")
    problem(reader.get(f"/v1/traces/not-an-id{path}"), 404, "E_PAGE_UNKNOWN")


def test_pause_resume_and_cancel_tell_what_they_changed_and_who_said_so(door: Door) -> None:
    url = posted(door)
    boss = door.client("traces:steer", "traces:read", owner="boss")
    said = [
        boss.post(f"{url}/{verb}", json={"reason": "why not"}).json()
        for verb in ("pause", "pause", "resume", "cancel", "cancel")
    ]
    assert [(one["changed"], one["status"], one["paused"]) for one in said] == [
        (True, "queued", True), (False, "queued", True), (True, "queued", False), (True, "cancelled", False),
        (False, "cancelled", False),
    ]  # fmt: skip
    events = boss.get(f"{url}/events").json()["items"]
    assert [one["name"] for one in events] == ["BIR_DISPATCH", "EXEC_PAUSE", "EXEC_RESUME", "EXEC_CANCEL"]
    said_by = {"by": "boss", "reason": "why not", "permission": "traces:steer"}
    assert all(one["body"] == said_by | {"key": one["body"]["key"]} for one in events[1:])
    assert all(one["body"]["key"].startswith("api:") for one in events[1:])
    told = problem(boss.post(f"{url}/pause"), 409, "E_TOO_LATE")
    assert told["value"] == "cancelled"


def test_a_resumed_trace_is_rung_and_runs(door: Door) -> None:
    url = posted(door, WORK)
    boss = door.client()
    boss.post(f"{url}/pause")
    door.lab.drain()
    assert boss.get(url).json()["status"] == "queued"
    boss.post(f"{url}/resume")
    door.lab.drain()
    assert boss.get(url).json()["status"] == "done"


def test_a_failed_trace_is_retried_and_no_other(door: Door) -> None:
    url = posted(door, BOOM, policy={"on_fail": "fail"})
    boss = door.client()
    problem(boss.post(f"{url}/retry"), 409, "E_NOT_RETRYABLE")
    door.lab.drain()
    assert boss.get(url).json()["status"] == "failed"
    assert boss.post(f"{url}/retry").json() == {
        "id": url.rpartition("/")[2], "changed": True, "status": "running", "paused": False
    }  # fmt: skip
    door.lab.drain()
    assert boss.get(url).json()["status"] == "failed"
    assert [one["n"] for one in boss.get(f"{url}/attempts").json()["items"] if one["kind"] == "tool"] == [1, 2]


@pytest.mark.parametrize("order", [{"reason": 1}, {"surplus": 1}, [], {"reason": "x" * 2001}])
def test_an_order_that_is_not_understood_changes_nothing(door: Door, order: Any) -> None:
    url = posted(door)
    boss = door.client()
    problem(boss.post(f"{url}/cancel", json=order), 422, "E_REQUEST")
    assert boss.get(url).json()["status"] == "queued"


def test_reading_and_steering_want_grants_of_their_own(door: Door) -> None:
    url = posted(door)
    producer, reader = door.client("data:read", owner="p"), door.client("traces:read", owner="r")
    for path in ("/v1/traces", url, f"{url}/events", f"/v1/stream?trace={url.rpartition('/')[2]}"):
        told = problem(producer.get(path), 403, "E_FORBIDDEN")
        assert "traces:read" in told["expected"]
    problem(reader.post(f"{url}/cancel"), 403, "E_FORBIDDEN")
    assert reader.get(url).json()["status"] == "queued"
