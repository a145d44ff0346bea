"""How this process calls other systems: one HTTP client that goes nowhere but where its caller may.

A name is resolved once, every address is checked, and the connection goes to a checked one (TLS still names the host).
Redirects and what the environment says of proxies are not followed. What is read is bounded in bytes and in time, from
the first byte of the headers on; an answer with a Content-Encoding is refused, so that the bytes counted are all.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import httpcore
import httpx

from agentmesh.errors import AnswerRefused, TargetRefused

logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells whole URLs, and some hold a secret

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], list[str]]

# `ipaddress.is_global` lets through NAT64 and 6to4 forms of private addresses, multicast and a cloud's metadata.
CLOSED_V4 = tuple(map(ipaddress.IPv4Network, (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
    "203.0.113.0/24", "224.0.0.0/3",
)))  # fmt: skip
OPEN_V6 = ipaddress.IPv6Network("2000::/3")
CLOSED_V6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
ANYWHERE = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Reach:
    """Where one caller may go; by default to any host with public addresses, at the ports of HTTP."""

    hosts: tuple[str, ...] = ()
    """No other host than these; empty: any."""
    ports: tuple[int, ...] = (80, 443)
    private: tuple[Network, ...] = ()
    """Networks that may be reached although they are not public."""

    def allows(self, address: Address) -> bool:
        plain = _plain(address)
        return is_public(plain) or any(plain in network for network in self.private)


def configured(url: str) -> Reach:
    """The reach of a call to a URL that configuration alone names: its host and port, wherever they are."""
    made = httpx.URL(url)
    return Reach((made.host.lower(),), (made.port or (443 if made.scheme == "https" else 80),), ANYWHERE)


def is_public(address: Address) -> bool:
    """Whether the whole internet sees the same host there; an IPv4 address inside an IPv6 one counts as itself."""
    match _plain(address):
        case ipaddress.IPv4Address() as v4:
            return not any(v4 in network for network in CLOSED_V4)
        case v6:
            return v6 in OPEN_V6 and not any(v6 in network for network in CLOSED_V6)


def _plain(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def client(
    reach: Reach, *, within_s: float, most_bytes: int, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
) -> httpx.Client:
    """A client for one exchange: everything it does ends `within_s` from now and after `most_bytes` read.

    Its calls raise TargetRefused, AnswerRefused or an httpx.HTTPError.
    """
    transport = _Transport(reach, _Bounds(within_s, most_bytes), resolve or addresses, tls or _tls())
    return httpx.Client(
        transport=transport, trust_env=False, follow_redirects=False, timeout=within_s,
        headers={"accept-encoding": "identity", "user-agent": "agentmesh"},
    )  # fmt: skip


def addresses(host: str, port: int) -> list[str]:
    """Every address of `host`, once each. Raises OSError when it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[4][0]) for place in found))


def retry_after_s(response: httpx.Response) -> float | None:
    """The seconds that Retry-After asks for, or that are left until its date; None where it says nothing."""
    said = response.headers.get("retry-after", "")
    if said.isascii() and said.isdigit():
        return float(said[:9])
    try:
        then, now = parsedate_to_datetime(said), parsedate_to_datetime(response.headers["date"])
        return max(0.0, (then - now).total_seconds())
    except (KeyError, ValueError, TypeError):
        return None


def _resolved(look: Callable[[], list[str]], within_s: float) -> list[str] | None:
    """What `look()` returns or raises; None when it takes too long, for a resolver cannot be told to stop."""
    answer: Future[list[str]] = Future()

    def run() -> None:
        try:
            answer.set_result(look())
        except Exception as exc:  # noqa: BLE001 - raised below, by whoever waits
            answer.set_exception(exc)

    threading.Thread(target=run, name="resolver", daemon=True).start()
    try:
        return answer.result(within_s)
    except TimeoutError:
        return None


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


class _Bounds:
    """What is left of one exchange's time and bytes."""

    def __init__(self, within_s: float, most_bytes: int) -> None:
        self._end = time.monotonic() + within_s
        self._most = self._left = most_bytes

    def time_s(self, asked: float | None) -> float:
        """At most `asked`. Raises httpcore.ReadTimeout at the end."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the exchange took too long")
        return left if asked is None else min(left, asked)

    def count(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise AnswerRefused("the answer is too large", expected=f"at most {self._most} bytes")
        return data


class _Transport(httpx.HTTPTransport):
    def __init__(self, reach: Reach, bounds: _Bounds, resolve: Resolve, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls, trust_env=False)
        self._reach = reach
        self._pool = httpcore.ConnectionPool(ssl_context=tls, network_backend=_Backend(reach, bounds, resolve))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if url.scheme not in {"http", "https"} or url.userinfo or not url.host:
            raise TargetRefused("this is no URL to call", value=url.host, expected="http(s)://host/… without a user")
        response = super().handle_request(request)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            response.close()
            raise AnswerRefused("the answer is encoded", value=encoding, expected="no Content-Encoding")
        return response


class _Backend(httpcore.NetworkBackend):
    """Connects to checked addresses only, and to no unix socket."""

    def __init__(self, reach: Reach, bounds: _Bounds, resolve: Resolve) -> None:
        self._reach, self._bounds, self._resolve = reach, bounds, resolve
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        failed: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for address in self._checked(host, port, self._bounds.time_s(timeout)):
            try:
                made = self._sockets.connect_tcp(
                    address, port, self._bounds.time_s(timeout), local_address, socket_options
                )
                return _Stream(made, self._bounds)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failed = exc
        raise failed or httpcore.ConnectError("the host has no address")

    def _checked(self, host: str, port: int, within_s: float) -> list[str]:
        """Its addresses, all of them allowed: of several, the caller cannot know which one would be used."""
        reach = self._reach
        if reach.hosts and host.lower() not in reach.hosts:
            raise TargetRefused("this host may not be called", value=host, expected=f"one of {', '.join(reach.hosts)}")
        if port not in reach.ports:
            listed = ", ".join(map(str, reach.ports))
            raise TargetRefused("this port may not be called", value=f"{host}:{port}", expected=f"one of {listed}")
        try:
            found = _resolved(lambda: self._resolve(host, port), within_s)
        except (OSError, UnicodeError) as exc:
            raise httpcore.ConnectError(f"{host} is not known here") from exc
        if found is None:
            raise httpcore.ConnectTimeout(f"nobody said in time where {host} is")
        if not all(reach.allows(ipaddress.ip_address(one)) for one in found):
            raise TargetRefused("this host has an address that may not be called", value=host)
        return found


class _Stream(httpcore.NetworkStream):
    """A socket whose every use is counted."""

    def __init__(self, stream: httpcore.NetworkStream, bounds: _Bounds) -> None:
        self._stream, self._bounds = stream, bounds

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._bounds.count(self._stream.read(max_bytes, self._bounds.time_s(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._bounds.time_s(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        made = self._stream.start_tls(ssl_context, server_hostname, self._bounds.time_s(timeout))
        return _Stream(made, self._bounds)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
