"""How often somebody may ask: a moving window for each principal, each tenant, and each address that fails to log in.

Counted in Redis where there is one, so that all gateways share it; while Redis is away each gateway counts by itself.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, TypeVar

import redis
import structlog
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter

from agentmesh.console.auth import Principal
from agentmesh.errors import BadSettings, RateLimited
from agentmesh.infrastructure.settings import GatewaySection

T = TypeVar("T")
log = structlog.get_logger("agentmesh.gateway")

PATIENCE_S, BREAK_S = 0.5, 5.0


class Rates:
    """Counts requests. `url` is a Redis, or None."""

    def __init__(self, section: GatewaySection, url: str | None, *, mesh: str) -> None:
        self._mesh = mesh
        self._one, self._tenant = parse(section.rate), parse(section.tenant_rate)
        self._failures = parse(section.failures)
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._shared = None if url is None else MovingWindowRateLimiter(_redis(url))
        self._broken_until = float("-inf")

    def count(self, who: Principal) -> None:
        """One request more. Raises RateLimited."""
        self._hit(self._one, "principal", who.tenant, who.name)
        self._hit(self._tenant, "tenant", who.tenant)

    def check_failures(self, address: str) -> None:
        """Raises RateLimited where too many credentials from this address were refused."""
        if not self._ask(lambda limiter: limiter.test(self._failures, self._mesh, "failures", _net(address))):
            raise self._limited(self._failures, "failures", _net(address))

    def count_failure(self, address: str) -> None:
        self._ask(lambda limiter: limiter.hit(self._failures, self._mesh, "failures", _net(address)))

    def _hit(self, rate: RateLimitItem, *who: str) -> None:
        if not self._ask(lambda limiter: limiter.hit(rate, self._mesh, *who)):
            raise self._limited(rate, *who)

    def _limited(self, rate: RateLimitItem, *who: str) -> RateLimited:
        stats = self._ask(lambda limiter: limiter.get_window_stats(rate, self._mesh, *who))
        return RateLimited("too many requests", value=f"over {rate.amount} of one {who[0]}",
                           expected=f"at most {rate}", after_s=max(0.0, stats.reset_time - time.time()))  # fmt: skip  # noqa: TID251

    def _ask(self, question: Callable[[MovingWindowRateLimiter], T]) -> T:
        if self._shared is not None and time.monotonic() > self._broken_until:
            try:
                return question(self._shared)
            except (redis.RedisError, OSError):
                self._broken_until = time.monotonic() + BREAK_S
                log.warning("requests are counted here alone: Redis does not answer")
        return question(self._own)


class Streams:
    """How many live streams are open, of each principal and each tenant, in this process."""

    def __init__(self, section: GatewaySection) -> None:
        self._section = section
        self._lock = threading.Lock()
        self._open: Counter[tuple[str, ...]] = Counter()

    @contextmanager
    def one(self, who: Principal) -> Iterator[None]:
        """A stream is open inside. Raises RateLimited."""
        limits = {(who.tenant, who.name): self._section.streams, (who.tenant,): self._section.tenant_streams}
        with self._lock:
            for key, limit in limits.items():
                if self._open[key] >= limit:
                    raise RateLimited("too many live streams are open", value=self._open[key],
                                      expected=f"at most {limit} of one {'principal' if len(key) > 1 else 'tenant'}",
                                      after_s=5.0)  # fmt: skip
            self._open.update(limits.keys())
        try:
            yield
        finally:
            with self._lock:
                self._open = +(self._open - Counter(limits.keys()))  # without those at zero


class Proxies:
    """The proxies in front of us. What others say about who they speak for is not read."""

    def __init__(self, listed: Sequence[str]) -> None:
        try:
            self._nets = [ip_network(one) for one in listed]
        except ValueError as exc:
            raise BadSettings("gateway.proxies has an entry that is no network", value=str(exc),
                              expected='addresses or networks, as "10.0.0.0/8"') from None  # fmt: skip

    def client(self, peer: str, forwarded: str) -> str:
        """The address a request comes from: the last one that no proxy of ours has added."""
        here = peer
        for said in reversed(forwarded.split(",")):
            if not self._is_ours(here) or not said.strip():
                break
            here = said.strip()
        return here

    def _is_ours(self, address: str) -> bool:
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in net for net in self._nets)


def _net(address: str) -> str:
    """An address as it is counted: whoever has one IPv6 address has the /64 around it."""
    try:
        found = ip_address(address)
    except ValueError:
        return "unknown"
    return str(ip_network((found, 64), strict=False)) if isinstance(found, IPv6Address) else str(found)


def _redis(url: str) -> Any:
    limits: dict[str, Any] = {"socket_timeout": PATIENCE_S, "socket_connect_timeout": PATIENCE_S, "retry": None}
    return RedisStorage(url, **limits)
