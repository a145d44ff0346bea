"""F26: the worker that sends a webhook is killed before or after the POST. Another sends it, under the same webhook-id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook

from agentmesh.testing import until
from tests.faults.bench import Bench
from tests.sites import Site

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.mark.parametrize(("point", "times"), [
    pytest.param("webhook.before_post", 1, marks=pytest.mark.faults), ("webhook.after_post", 2),
])  # fmt: skip
def test_f26_a_courier_killed_at_its_post_leaves_a_delivery_that_arrives(
    make_bench: Any, site: Site, point: str, times: int
) -> None:
    bench: Bench = make_bench("embedded")
    bench.env |= {
        "AGENTMESH_SECRET_HOOKS": SECRET, "AGENTMESH_WEBHOOKS_PORTS": str(site.port),
        "AGENTMESH_WEBHOOKS_PRIVATE": "127.0.0.1/32", "AGENTMESH_WEBHOOKS_TIMEOUT": "1s",
    }  # fmt: skip
    doomed = bench.armed("agents", f"{point}=kill")
    trace = bench.dispatch("worker", {"n": 3}, policy={"webhook": {"url": site.url, "secret": "hooks"}})
    until(lambda: not doomed.running, what="the armed death")
    assert trace.status() == "done"  # it waited for nobody
    bench.worker("agents")
    until(lambda: bench.value("SELECT status FROM mesh.deliveries") == "done", within=30, what="the delivery")
    assert len(site.seen) == times
    assert len({one.headers["webhook-id"] for one in site.seen}) == 1
    for one in site.seen:
        assert Webhook(SECRET).verify(one.body, one.headers)["data"]["trace"] == str(trace.id)
    bench.settle()
