"""The courier: sends what is due to the targets of webhooks, signed as Standard Webhooks asks, at least once.

It runs in every worker and works where the rescuer leads. Targets wait for themselves only: each has a turn of its own
on a few threads, and a breaker that leaves one alone for a while that fails again and again. A delivery keeps its
webhook-id over all its tries; where it leads is checked when it is sent.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import psycopg
import structlog
from pybreaker import CircuitBreaker, CircuitBreakerError
from standardwebhooks import Webhook
from standardwebhooks.webhooks import EmptyWebhookSecretError

from agentmesh.errors import MeshError, SecretMissing, TargetRefused
from agentmesh.execution.failures import AWAY
from agentmesh.infrastructure import jsontext, outbound
from agentmesh.infrastructure.database import Database, Row
from agentmesh.infrastructure.faults import point
from agentmesh.infrastructure.logging import redact
from agentmesh.infrastructure.outbound import Reach
from agentmesh.infrastructure.secrets import Secrets
from agentmesh.records import Failure
from agentmesh.state import deliveries
from agentmesh.state.blobs import BlobStore

log = structlog.get_logger("agentmesh.courier")

PLAN_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 28_800.0, 28_800.0)
"""The pauses between the tries of a delivery: eight over 24 hours."""
LONGEST_S = 86_400.0
"""What a target may ask us to wait, and how long a delivery is due to one that rests before it is given up."""
TARGETS = 500
TURN = 100  # deliveries to one target before it queues up again
MOST_BYTES = 65_536
PREFIX = "whsec_"


@dataclass(frozen=True, slots=True)
class Manner:
    """How deliveries are sent: where they may lead, what they may take, how often they are tried."""

    reach: Reach
    secrets: Secrets
    now_s: Callable[[], int]
    within_s: float = 15.0
    plan_s: tuple[float, ...] = PLAN_S
    trips: int = 5
    rest_s: float = 60.0
    look_s: float = 1.0
    threads: int = 16


class Undelivered(Exception):
    """The target did not take it, and may take it later."""

    def __init__(self, failure: Failure, after_s: float | None = None) -> None:
        super().__init__(failure.message)
        self.failure, self.after_s = failure, after_s


class Courier:
    """Looks once a second for due deliveries while `leads()`."""

    def __init__(self, db: Database, blobs: BlobStore, manner: Manner, *, leads: Callable[[], bool]) -> None:
        self._db, self._blobs, self._manner, self._leads = db, blobs, manner, leads
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="courier", daemon=True)
        self._pool = ThreadPoolExecutor(manner.threads, thread_name_prefix="webhook")
        self._busy: set[tuple[str, str]] = set()
        self._breakers: dict[tuple[str, str], CircuitBreaker] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is begun afterwards; what is being sent ends within its time."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def look(self) -> None:
        """Begin a turn for every target that something is due for, and that has none."""
        for place in deliveries.due(self._db, batch=TARGETS):
            if place not in self._busy:
                self._busy.add(place)
                self._pool.submit(self._turn, *place)

    def _loop(self) -> None:
        while not self._stop.wait(self._manner.look_s):
            try:
                if self._leads():
                    self.look()
            except (psycopg.Error, MeshError) as exc:
                log.warning("nothing is delivered; trying again", error=str(exc).splitlines()[0])
            except Exception:
                log.exception("nothing is delivered; trying again")

    def _turn(self, tenant: str, target: str) -> None:
        place = (tenant, target)
        breaker = self._breakers.setdefault(place, self._breaker())
        try:
            for _ in range(TURN):
                if self._stop.is_set() or not breaker.call(self._one, tenant, target):
                    break
        except Undelivered:
            pass  # its row says when it is due again
        except CircuitBreakerError:
            deliveries.give_up(self._db, tenant, target, age_s=LONGEST_S)
        except (psycopg.Error, MeshError) as exc:
            log.warning("a delivery is kept; trying again", target=_host(target), error=str(exc).splitlines()[0])
        except Exception:
            log.exception("a delivery is kept; trying again", target=_host(target))
        finally:
            if breaker.fail_counter == 0:
                self._breakers.pop(place, None)
            self._busy.discard(place)

    def _breaker(self) -> CircuitBreaker:
        return CircuitBreaker(
            self._manner.trips, self._manner.rest_s, exclude=[lambda exc: not isinstance(exc, Undelivered)],
            throw_new_error_on_trip=False,
        )  # fmt: skip

    def _one(self, tenant: str, target: str) -> bool:
        """Send the oldest delivery that is due there; False when there is none. Raises Undelivered."""
        row = deliveries.take(self._db, tenant, target, lease_s=self._manner.within_s + 5)
        if row is None:
            return False
        try:
            self._post(row)
        except Undelivered as exc:
            self._again(row, exc)
            raise
        except AWAY:
            raise
        except SecretMissing as exc:
            self._again(row, Undelivered(_failure(exc)))
        except MeshError as exc:  # no try would be another: it may not be called
            deliveries.settle(self._db, row, "failed", failure=_failure(exc))
            log.warning("webhook refused", delivery=str(row["id"]), target=_host(target), error=exc.what)
        else:
            deliveries.settle(self._db, row, "done")
            log.info("webhook delivered", delivery=str(row["id"]), target=_host(target), tries=row["tries"])
        return True

    def _again(self, row: Row, exc: Undelivered) -> None:
        plan, tries = self._manner.plan_s, row["tries"]
        if tries > len(plan):
            deliveries.settle(self._db, row, "failed", failure=exc.failure)
            log.warning(
                "webhook given up", delivery=str(row["id"]), target=_host(row["target"]), error=exc.failure.message
            )
            return
        pause = plan[tries - 1] * random.uniform(0.9, 1.1)  # noqa: S311 - spreads retries, guards nothing
        after_s = min(LONGEST_S, max(pause, exc.after_s or 0.0))
        deliveries.settle(self._db, row, "ready", failure=exc.failure, after_s=after_s)

    def _post(self, row: Row) -> None:
        """Raises Undelivered, or the MeshError that makes every try of this delivery the same."""
        manner, said = self._manner, row["body"]
        data = {name: self._blobs.expand(row["tenant_id"], value) for name, value in said["data"].items()}
        message = {"type": said["type"], "timestamp": row["created_at"].astimezone(UTC).isoformat(), "data": data}
        body = jsontext.dumps(message, what="a delivery")
        now, webhook_id = manner.now_s(), f"msg_{row['id'].hex}"
        headers = {
            "content-type": "application/json", "webhook-id": webhook_id, "webhook-timestamp": str(now),
            "webhook-signature": self._signer(said["secret"]).sign(webhook_id, datetime.fromtimestamp(now, UTC), body),
        }  # fmt: skip
        point("webhook.before_post")
        try:
            with (
                outbound.client(manner.reach, within_s=manner.within_s, most_bytes=MOST_BYTES) as client,
                client.stream("POST", row["target"], content=body.encode(), headers=headers) as response,
            ):
                answered = response  # its status is all we want of it
        except httpx.InvalidURL as exc:
            raise TargetRefused("this is no URL to call", value=str(exc)) from exc
        except httpx.HTTPError as exc:
            raise Undelivered(Failure("E_WEBHOOK", redact(f"no answer: {type(exc).__name__}: {exc}"))) from exc
        point("webhook.after_post")
        if answered.status_code == httpx.codes.GONE:
            raise TargetRefused("the target wants no more deliveries", value=410, expected="an answer of 2xx")
        if not answered.is_success:
            failure = Failure("E_WEBHOOK", f"the target answered {answered.status_code}")
            raise Undelivered(failure, outbound.retry_after_s(answered))

    def _signer(self, name: str) -> Webhook:
        value = self._manner.secrets(name)
        if not value.startswith(PREFIX):  # any secret of ours could be named by whoever sends an intent
            raise SecretMissing(f"secret {name} is no webhook secret", expected=f"a secret that begins with {PREFIX}")
        try:
            return Webhook(value)
        except (ValueError, EmptyWebhookSecretError) as exc:
            raise SecretMissing(f"secret {name} is no webhook secret", expected=f"{PREFIX} and base64") from exc


def _failure(exc: MeshError) -> Failure:
    return Failure(exc.code, exc.what, detail={"value": exc.value, "expected": exc.expected})


def _host(target: str) -> str:
    """What of a target is no secret."""
    try:
        return httpx.URL(target).host
    except httpx.InvalidURL:
        return "?"
