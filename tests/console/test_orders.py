"""Orders, decisions and what an operator keeps in order, over HTTP: who may, what it does, and what the audit says of it."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.behavior.agents import define_agent
from agentmesh.records import new_id
from agentmesh.state import audit
from tests.console.doors import Door, intent, problem

BOOM = {"do": [{"tools": [{"tool": "boom"}]}]}
STEPS = [{"approval": {"pay": {"=": "payload.cents"}}, "who": ["boss", "shop"], "on_fail": "kept"}, {"signal": "paid"},
         {"finish": "shipped"}, {"finish": "kept", "id": "kept"}]  # fmt: skip


@pytest.fixture
def door(make_door: Any) -> Door:
    """With an agent `clerk`, whose chain asks for an approval, waits for a signal, and ends."""
    clerk = define_agent("clerk", chain={"chain": "c", "steps": STEPS}, tenants=["default", "acme"])
    made: Door = make_door(clerk)
    return made


def waiting(door: Door, cents: int = 5) -> str:
    """The path of a trace that shop has asked for, and that waits for its approval."""
    shop = door.client(owner="shop")
    url = str(shop.post("/v1/intents", json=intent({"cents": cents}, to="clerk")).headers["location"])
    door.lab.drain()
    return url


def asked(door: Door) -> dict[str, Any]:
    [one] = door.client("traces:read").get("/v1/approvals").json()["items"]
    return dict(one)


def orders(door: Door) -> list[tuple[str, str, str | None]]:
    """Action, name and permission of every sealed order that a permission let in, oldest first."""
    while audit.seal(door.mesh.db):
        pass
    rows = door.client("audit:read").get("/v1/audit", params={"limit": 200}).json()["items"]
    return [(one["action"], one["by"], one["permission"]) for one in reversed(rows) if one["permission"]]


def test_a_trace_is_approved_told_and_ends(door: Door) -> None:
    url, boss = waiting(door), door.client("traces:approve", "traces:signal", "traces:read", owner="boss")
    seen = asked(door)
    assert (seen["asked"]["ask"], url.endswith(seen["trace_id"])) == ({"pay": 5}, True)
    made = boss.post(f"{url}/approvals", json={"digest": seen["digest"], "reason": "fair"}).json()
    assert (made["choice"], made["by"]) == ("approve", "boss")
    door.lab.drain()
    assert boss.post(f"{url}/signals", json={"name": "paid", "payload": {"n": 1}, "key": "k"}).json()["heard"]
    assert boss.post(f"{url}/signals", json={"name": "paid", "key": "k"}).json()["repeated"]
    door.lab.drain()
    assert boss.get(url).json()["result"] == "shipped"
    problem(boss.post(f"{url}/signals", json={"name": "paid"}), 409, "E_ENDED")
    assert orders(door) == [("EXEC_SIGNAL", "boss", "traces:approve"), ("EXEC_SIGNAL", "boss", "traces:signal")]


def test_s17_an_approval_is_given_once_by_who_may_for_what_was_seen_and_never_by_reading(door: Door) -> None:
    url, grants = waiting(door), ("traces:approve", "traces:read", "traces:steer")
    boss, shop, stranger = (door.client(*grants, owner=name) for name in ("boss", "shop", "mallory"))
    seen = asked(door)["digest"]
    problem(stranger.post(f"{url}/approvals", json={"digest": seen}), 403, "E_NOT_ASKED")
    problem(shop.post(f"{url}/approvals", json={"digest": seen}), 403, "E_NOT_ASKED")  # it has asked for the trace
    problem(
        door.client("traces:read", owner="boss").post(f"{url}/approvals", json={"digest": seen}), 403, "E_FORBIDDEN"
    )
    problem(boss.post(f"{url}/approvals", json={"digest": "0" * 64}), 409, "E_DECIDED")
    problem(boss.post(f"{url}/approvals", json={}), 422, "E_REQUEST")
    problem(boss.post(f"{url}/approvals", json={"digest": seen, "choice": "other"}), 422, "E_CHOICE")
    for method in ("GET", "HEAD"):
        assert boss.request(method, f"{url}/approvals", params={"digest": seen}).status_code == 405
    other = waiting(door, cents=50_000)  # of another trace, for other arguments
    problem(boss.post(f"{other}/approvals", json={"digest": seen}), 409, "E_DECIDED")
    assert boss.post(f"{other}/rewind", json={"step": 1}).status_code == 200  # asked anew: another step
    door.lab.drain()
    assert len(door.client().get("/v1/approvals").json()["items"]) == 2
    assert boss.get(url).json()["status"] == "waiting"
    assert boss.post(f"{url}/approvals", json={"digest": seen, "reject": True}).json()["choice"] == "reject"
    problem(boss.post(f"{url}/approvals", json={"digest": seen}), 409, "E_DECIDED")
    door.lab.drain()
    assert boss.get(url).json()["result"] == "kept"


def test_a_trace_goes_back_and_a_fork_may_do_no_more_than_its_maker(door: Door) -> None:
    work = {"do": [{"tools": [{"tool": "work", "args": {"n": 1}}]}]}
    url = door.client().post("/v1/intents", json=intent(work)).headers["location"]
    door.lab.drain()
    desk = door.client("traces:steer", "traces:read", owner="desk")
    made = desk.post(f"{url}/fork", json={"step": 1, "changes": {"do": []}})
    assert (made.status_code, made.headers["location"]) == (201, made.json()["url"])
    assert desk.get(made.json()["url"]).json()["permissions"] == []  # S12: desk has no data:read
    back = desk.post(f"{url}/rewind", json={"step": 1, "reason": "again"}).json()
    assert (back["node"], back["restored"], back["parked"]) == ("reason", ["short_term:result:tools"], [])
    door.lab.drain()
    assert desk.get(url).json()["status"] == "done"
    problem(desk.post(f"{url}/fork", json={"step": 999}), 409, "E_NOT_REWINDABLE")
    assert [one for one in orders(door) if one[1] == "desk"] == [
        ("EXEC_START", "desk", "traces:steer"), ("EXEC_ROLLBACK", "desk", "traces:steer"),
    ]  # fmt: skip


def test_one_order_reaches_all_that_match_and_goes_on_where_it_ended(door: Door) -> None:
    boss = door.client("traces:steer", "traces:read", owner="boss")
    urls = [door.client().post("/v1/intents", json=intent(context_id="mine")).headers["location"] for _ in range(3)]
    other = door.client().post("/v1/intents", json=intent(context_id="theirs")).headers["location"]
    order = {"action": "cancel", "filter": "context:mine status:queued", "limit": 2}
    first = boss.post("/v1/bulk", json=order).json()
    assert (first["changed"], first["next"]) == (2, urls[1].rpartition("/")[2])
    second = boss.post("/v1/bulk", json=order | {"before": first["next"]}).json()
    assert (second["changed"], second["next"]) == (1, None)
    assert {boss.get(url).json()["status"] for url in urls} == {"cancelled"}
    assert boss.get(other).json()["status"] == "queued"
    for wrong in ({"filter": ""}, {"filter": "nonsense"}, {"action": "delete"}):
        problem(boss.post("/v1/bulk", json=order | wrong), 422, "E_REQUEST")


def test_an_agent_is_paused_and_resumed(door: Door) -> None:
    desk = door.client("agents:steer", "traces:read", owner="desk")
    changed = [desk.post(f"/v1/agents/puppet/{verb}").json()["changed"] for verb in ("pause", "pause", "resume")]
    assert changed == [True, False, True]
    assert {one["id"]: one["paused_at"] for one in desk.get("/v1/agents").json()["items"]}["puppet"] is None
    problem(desk.post("/v1/agents/nobody/pause"), 404, "E_AGENT_UNKNOWN")
    assert [one[0] for one in orders(door)] == ["AGENT_PAUSE", "AGENT_RESUME"]


def test_a_schedule_asks_with_no_more_than_its_makers_grants(door: Door) -> None:
    asked = {
        "agent": "puppet",
        "intent": "work",
        "cron": "0 9 * * 1-5",
        "timezone": "Europe/Berlin",
        "payload": {"n": 1},
    }
    clerk = door.client("schedules:write", "traces:read", owner="clerk")
    made = clerk.put("/v1/schedules/daily", json=asked).json()
    assert (made["id"], made["permissions"], made["declared"]) == ("daily", [], False)  # S12: it has no data:read
    problem(clerk.put("/v1/schedules/daily", json=asked | {"cron": "now and then"}), 400, "E_RULE")
    problem(clerk.put("/v1/schedules/daily", json=asked | {"agent": "nobody"}), 404, "E_AGENT_UNKNOWN")
    door.lab.rows("UPDATE mesh.schedules SET next_at = mesh.mesh_now()")
    door.mesh.timetable.fire()
    [row] = door.lab.rows("SELECT permissions FROM mesh.traces")
    assert row["permissions"] == []
    assert clerk.post("/v1/schedules/daily/remove").status_code == 204
    problem(clerk.post("/v1/schedules/daily/remove"), 404, "E_SCHEDULE_UNKNOWN")
    assert clerk.get("/v1/schedules").json()["items"] == []
    assert [one[0] for one in orders(door)] == ["SCHEDULE_ADD", "SCHEDULE_REMOVE"]


def test_dead_letters_are_retried_and_discarded(door: Door) -> None:
    desk = door.client("traces:steer", "traces:read", owner="desk")
    for n in range(2):
        url = door.client().post("/v1/intents", json=intent(BOOM)).headers["location"]
        door.lab.drain()
        door.lab.rows("INSERT INTO mesh.dead_letters (id, tenant_id, trace_id, code, fingerprint) VALUES"
                      " (%(id)s, 'default', %(trace)s, 'E_POISON', 'f')",
                      id=f"00000000-0000-7000-8000-00000000000{n}", trace=url.rpartition("/")[2])  # fmt: skip
    one, two = (row["id"] for row in desk.get("/v1/dlq").json()["items"])
    assert desk.post(f"/v1/dlq/{one}/retry").json()["settled_as"] == "retried"
    assert desk.post(f"/v1/dlq/{two}/discard").json()["settled_as"] == "discarded"
    assert desk.get("/v1/dlq").json()["items"] == []
    problem(desk.post(f"/v1/dlq/{two}/discard"), 404, "E_LETTER_UNKNOWN")
    assert [one[0] for one in orders(door)] == ["EXEC_RESUME", "LETTER_DISCARDED"]


def test_each_order_wants_its_own_permission(door: Door) -> None:
    url = waiting(door)
    reader = door.client("traces:read")
    for path in (
        f"{url}/signals",
        f"{url}/approvals",
        f"{url}/rewind",
        f"{url}/fork",
        "/v1/bulk",
        "/v1/agents/puppet/pause",
    ):
        problem(reader.post(path, json={}), 403, "E_FORBIDDEN")
    problem(reader.put("/v1/schedules/daily", json={}), 403, "E_FORBIDDEN")
    problem(reader.post("/v1/schedules/daily/remove"), 403, "E_FORBIDDEN")
    problem(reader.get("/v1/audit"), 403, "E_FORBIDDEN")


# --- lists in pages


def walked(client: Any, path: str, key: str) -> list[str]:
    """Every item's key, following `next` from page to page of one."""
    found: list[str] = []
    following: str | None = f"{path}?limit=1"
    while following:
        page = client.get(following).json()
        found += [one[key] for one in page["items"]]
        following = page["next"]
    return found


def test_every_list_is_walked_page_by_page_whatever_comes_and_goes(door: Door) -> None:
    reader, keeper = door.client("traces:read"), door.client()
    for n in range(3):
        waiting(door, cents=n)
        keeper.put(f"/v1/schedules/s{n}", json={"agent": "puppet", "intent": "work", "cron": "0 9 * * *"})
        url = keeper.post("/v1/intents", json=intent(BOOM)).headers["location"]
        door.lab.drain()
        door.lab.rows("INSERT INTO mesh.dead_letters (id, tenant_id, trace_id, code, fingerprint) VALUES"
                      " (%(id)s, 'default', %(trace)s, 'E_POISON', 'f')", id=new_id(), trace=url.rpartition("/")[2])  # fmt: skip
    for path, key in (("/v1/approvals", "step_id"), ("/v1/schedules", "id"), ("/v1/dlq", "id"), ("/v1/agents", "id")):
        every = [one[key] for one in reader.get(path).json()["items"]]
        assert len(every) == (2 if key == "id" and path == "/v1/agents" else 3)
        assert walked(reader, path, key) == every == sorted(every)
        following = reader.get(path, params={"limit": 1}).json()["next"]
        problem(door.client(tenant="acme").get(following), 404, "E_PAGE_UNKNOWN")  # a cursor is its tenant's
        problem(reader.get(following.replace(path, "/v1/traces")), 404, "E_PAGE_UNKNOWN")  # and its list's
    first = reader.get("/v1/schedules", params={"limit": 1}).json()
    keeper.post("/v1/schedules/s0/remove")
    keeper.put("/v1/schedules/a", json={"agent": "puppet", "intent": "work", "cron": "0 9 * * *"})
    assert [one["id"] for one in reader.get(first["next"]).json()["items"]] == ["s1"]


def test_a_dump_wants_a_grant_of_its_own_and_holds_no_secret(door: Door) -> None:
    shop = door.client(owner="shop")
    payload = {"cents": 5, "password": "canary-1", "note": "Authorization: Bearer canary-2-0123456789"}
    url = str(shop.post("/v1/intents", json=intent(payload, to="clerk")).headers["location"])
    door.lab.drain()
    problem(door.client("traces:read", "traces:steer").get(f"{url}/dump"), 403, "E_FORBIDDEN")
    told = door.client("traces:debug").get(f"{url}/dump")
    said = told.json()
    assert (said["trace"]["status"], said["next"][0]["node"]) == ("waiting", "approval")
    assert [one["node"] for one in said["open_steps"]] == ["approval"]
    assert {"plan", "events", "memory", "calls", "attempts", "children"} <= said.keys()
    assert "canary" not in told.text
