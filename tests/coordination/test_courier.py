"""F26 and S40: deliveries reach real targets at least once, whatever these do, and nobody waits for another's target."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from agentmesh.coordination.courier import PLAN_S, Courier, Manner
from agentmesh.errors import SecretMissing
from agentmesh.infrastructure import faults
from agentmesh.infrastructure.outbound import Reach
from agentmesh.state import deliveries
from agentmesh.testing import until
from agentmesh.wiring import now_s
from tests.sites import Site, quietly, saying

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
DAY_S = 86_400.0


def secrets(name: str) -> str:
    known = {"hooks": SECRET, "crm": "a-token-of-ours", "empty": "whsec_", "odd": "whsec_!"}
    if name not in known:
        raise SecretMissing(f"no secret {name}")
    return known[name]


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture
def make_courier(lab: Any) -> Iterator[Callable[..., Courier]]:
    """make_courier(*ports, **manner): one that may reach these ports of this machine."""
    made: list[Courier] = []

    def make(*ports: int, private: str = "127.0.0.0/8", **more: Any) -> Courier:
        reach = Reach(ports=ports, private=(ipaddress.ip_network(private),))
        manner = Manner(reach, secrets, now_s, within_s=0.5, **more)
        made.append(Courier(lab.mesh.db, lab.mesh.blobs, manner, leads=lambda: True))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    faults.disarm()


def due(lab: Any, url: str, n: int = 1, **more: Any) -> list[Any]:
    traces = [lab.start({"answer": n}, policy={"webhook": {"url": url, "secret": "hooks"} | more}) for _ in range(n)]
    lab.drain()
    return traces


def rows(lab: Any) -> list[dict[str, Any]]:
    return lab.rows("SELECT * FROM mesh.deliveries ORDER BY id")


def send(courier: Courier) -> None:
    """One look, and everything it began has ended."""
    courier.look()
    until(lambda: not courier._busy, what="the end of every turn")


def wait_s(lab: Any) -> float:
    return lab.rows("SELECT extract(epoch FROM wake_at - mesh.mesh_now())::float8 AS s FROM mesh.deliveries")[0]["s"]


def test_a_delivery_is_signed_as_standard_webhooks_asks(lab: Any, site: Site, make_courier: Any) -> None:
    [trace] = due(lab, f"{site.url}/in")
    send(make_courier(site.port))
    [asked], [row] = site.seen, rows(lab)
    assert (asked.method, asked.path, row["status"], row["tries"]) == ("POST", "/in", "done", 1)
    said = Webhook(SECRET).verify(asked.body, asked.headers)
    assert (said["type"], said["data"]["trace"], said["data"]["result"]) == ("trace.done", str(trace.id), 1)
    assert asked.headers["webhook-id"] == f"msg_{row['id'].hex}"
    send(make_courier(site.port))
    assert len(site.seen) == 1


@pytest.mark.parametrize("change", ["body", "webhook-id", "webhook-timestamp", "old"])
def test_s40_what_was_changed_or_kept_too_long_is_not_believed(
    lab: Any, site: Site, make_courier: Any, change: str
) -> None:
    due(lab, site.url)
    courier = make_courier(site.port)
    if change == "old":
        courier._manner = replace(courier._manner, now_s=lambda: now_s() - 301)
    send(courier)
    [asked] = site.seen
    headers = dict(asked.headers)
    if change.startswith("webhook"):
        headers[change] = headers[change][:-1] + ("1" if headers[change][-1] == "0" else "0")
    body = asked.body.replace(b"trace.done", b"trace.evil") if change == "body" else asked.body
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)


def test_s40_a_big_result_is_sent_whole(lab: Any, site: Site, make_courier: Any) -> None:
    lab.start({"answer": "x" * 200_000}, policy={"webhook": {"url": site.url, "secret": "hooks"}})
    lab.drain()
    send(make_courier(site.port))
    assert Webhook(SECRET).verify(site.seen[0].body, site.seen[0].headers)["data"]["result"] == "x" * 200_000


def hang(to: BaseHTTPRequestHandler) -> None:
    to.connection.settimeout(5)
    to.rfile.read(1)  # until the other side gives up


def hang_up(to: BaseHTTPRequestHandler) -> None:
    to.close_connection = True


@pytest.mark.parametrize("answer", [
    quietly(hang), hang_up, saying("", status=500), saying("", status=429), saying("", status=404),
    saying("", status=301, location="/again"),
], ids=["hangs", "dies after reading", "500", "429", "404", "301 loop"])  # fmt: skip
def test_f26_a_target_that_does_not_take_it_is_told_again_under_the_same_id(
    lab: Any, site: Site, make_courier: Any, answer: Any
) -> None:
    due(lab, site.url)
    site.answer = answer
    courier = make_courier(site.port)
    send(courier)
    [row] = rows(lab)
    assert (row["status"], row["tries"], row["error"]["code"]) == ("ready", 1, "E_WEBHOOK")
    assert PLAN_S[0] * 0.8 < wait_s(lab) < PLAN_S[0] * 1.1
    send(courier)
    assert len(site.seen) == 1  # not before its time
    site.answer = saying("")
    lab.shift(PLAN_S[0] * 1.2)
    send(courier)
    assert [row["status"] for row in rows(lab)] == ["done"]
    assert len({one.headers["webhook-id"] for one in site.seen}) == 1
    for one in site.seen:
        Webhook(SECRET).verify(one.body, one.headers)


def test_f26_a_target_that_refuses_connections_is_tried_again(lab: Any, make_courier: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        due(lab, f"http://127.0.0.1:{port}/")
        send(make_courier(port))
    assert [(row["status"], row["error"]["code"]) for row in rows(lab)] == [("ready", "E_WEBHOOK")]


def test_f26_retry_after_is_honoured(lab: Any, site: Site, make_courier: Any) -> None:
    due(lab, site.url)
    site.answer = saying("", status=429, retry_after="120")
    send(make_courier(site.port))
    assert 110 < wait_s(lab) <= 120


def test_f26_after_eight_tries_it_is_given_up_and_says_why(lab: Any, site: Site, make_courier: Any) -> None:
    due(lab, site.url)
    site.answer = saying("", status=500)
    courier = make_courier(site.port, trips=99)
    for n in range(8):
        lab.shift(n * 32_000)
        send(courier)
    [row] = rows(lab)
    assert (row["status"], row["tries"], len(site.seen)) == ("failed", 8, 8)
    assert row["error"]["message"] == "the target answered 500"
    lab.shift(9 * 32_000)
    send(courier)
    assert len(site.seen) == 8


def test_f26_what_a_resting_target_did_not_take_for_a_day_is_given_up(lab: Any, site: Site, make_courier: Any) -> None:
    due(lab, site.url, 2)
    site.answer = saying("", status=500)
    courier = make_courier(site.port, trips=1)
    send(courier)
    lab.shift(25 * 3600)
    send(courier)
    assert [(row["status"], row["tries"]) for row in rows(lab)] == [("failed", 1), ("failed", 0)]
    assert [row["error"]["code"] for row in rows(lab)] == ["E_WEBHOOK", "E_TIMEOUT"]


def test_f26_what_nobody_could_send_for_days_is_sent(lab: Any, site: Site, make_courier: Any) -> None:
    due(lab, site.url)
    lab.shift(3 * 86_400)
    send(make_courier(site.port))
    assert [row["status"] for row in rows(lab)] == ["done"]


def test_f26_a_failed_delivery_is_sent_again_by_hand_under_its_id(lab: Any, site: Site, make_courier: Any) -> None:
    due(lab, site.url)
    site.answer = saying("", status=410)
    courier = make_courier(site.port)
    send(courier)
    assert deliveries.again(lab.mesh.db, "acme", by="desk") == 0
    assert deliveries.again(lab.mesh.db, "default", rows(lab)[0]["id"], by="desk") == 1
    site.answer = saying("")
    send(courier)
    assert [row["status"] for row in rows(lab)] == ["done"]
    assert len({one.headers["webhook-id"] for one in site.seen}) == 1


def test_f26_the_breaker_of_a_target_rests_it_and_lets_one_try(lab: Any, site: Site, make_courier: Any) -> None:
    due(lab, site.url, 9)
    site.answer = saying("", status=500)
    courier = make_courier(site.port, trips=3, rest_s=0.3)
    for n in range(3):
        send(courier)
        assert len(site.seen) == n + 1  # a failure ends the turn
    send(courier)
    assert len(site.seen) == 3
    assert [row["tries"] for row in rows(lab)].count(0) == 6  # and no try is spent
    site.answer = saying("")
    until(lambda: [send(courier), len(site.seen) > 3][1], within=5, what="the end of the rest")
    assert [row["status"] for row in rows(lab)].count("done") == 6


def test_f26_a_target_that_hangs_delays_no_other(lab: Any, site: Site, make_courier: Any) -> None:
    other = Site()
    due(lab, site.url, 3)
    due(lab, other.url, 20)
    let_go = threading.Event()
    site.answer = quietly(lambda _: let_go.wait(10))
    courier = make_courier(site.port, other.port)
    courier.look()
    until(lambda: len(other.seen) == 20, within=5, what="everything for the other target")
    assert len(site.seen) == 1
    let_go.set()
    until(lambda: not courier._busy, what="the end of every turn")
    other.close()


@pytest.mark.parametrize(("url", "code"), [
    ("http://127.0.0.1:{port}/", "E_TARGET"), ("http://localhost:{port}/", "E_TARGET"),
    ("http://169.254.169.254:{port}/latest", "E_TARGET"), ("http://[::ffff:127.0.0.1]:{port}/", "E_TARGET"),
    ("http://127.0.0.1:22/", "E_TARGET"), ("http://2130706433:{port}/", "E_TARGET"),
])  # fmt: skip
def test_s40_where_it_leads_is_checked_when_it_is_sent(
    lab: Any, site: Site, make_courier: Any, url: str, code: str
) -> None:
    url = url.format(port=site.port)
    due(lab, url)
    send(make_courier(site.port, private="10.0.0.0/8"))
    assert [(row["status"], row["error"]["code"], row["tries"]) for row in rows(lab)] == [("failed", code, 1)]
    assert site.seen == []


def test_s40_an_endless_answer_is_not_read(lab: Any, site: Site, make_courier: Any) -> None:
    def endless(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.send_header("content-length", str(1 << 30))
        to.end_headers()
        while True:
            to.wfile.write(b"x" * 65_536)

    site.answer = quietly(endless)
    due(lab, site.url)
    send(make_courier(site.port))
    assert [row["status"] for row in rows(lab)] == ["done"]


@pytest.mark.parametrize("name", ["crm", "empty", "odd", "unknown"])
def test_s40_only_a_webhook_secret_signs(lab: Any, site: Site, make_courier: Any, name: str) -> None:
    due(lab, site.url, secret=name)
    send(make_courier(site.port))
    assert [(row["status"], row["error"]["code"]) for row in rows(lab)] == [("ready", "E_SECRET")]
    assert site.seen == []


def test_a_target_that_is_gone_is_told_nothing_more(lab: Any, site: Site, make_courier: Any) -> None:
    due(lab, site.url)
    site.answer = saying("", status=410)
    send(make_courier(site.port))
    assert [row["status"] for row in rows(lab)] == ["failed"]


def test_a_sender_that_comes_late_changes_nothing(lab: Any, site: Site) -> None:
    due(lab, site.url)
    db = lab.mesh.db
    first = deliveries.take(db, "default", site.url, lease_s=5)
    assert first is not None
    assert deliveries.take(db, "default", site.url, lease_s=5) is None
    lab.shift(6)
    second = deliveries.take(db, "default", site.url, lease_s=5)
    assert second is not None
    assert not deliveries.settle(db, first, "failed")
    assert deliveries.settle(db, second, "done")
    assert not deliveries.settle(db, second, "ready", after_s=1)
