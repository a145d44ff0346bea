"""Where a gateway may listen: beyond loopback only where somebody can be told from a stranger and nobody listens in."""

from __future__ import annotations

from collections.abc import Iterator

from agentmesh.communication.flower import is_loopback
from agentmesh.errors import Unsafe
from agentmesh.infrastructure.settings import GatewaySection


def check_open(section: GatewaySection, *, keys: int) -> None:
    """Raises Unsafe where this gateway would be open to strangers. `keys`: how many keys of others are in force."""
    host = section.address.rpartition(":")[0].strip("[]")
    if is_loopback(host):
        return
    if section.issuer is None and not keys:
        raise Unsafe("nobody could be told from a stranger", value=section.address,
                     expected="an API key, a producer's key or an issuer of tokens", next="agentmesh keys issue")  # fmt: skip
    if section.certificate is None and not section.insecure:
        raise Unsafe("tokens would cross the network in clear", value=section.address,
                     expected="gateway.certificate, or gateway.insecure where a proxy in front ends TLS",
                     next="agentmesh config show")  # fmt: skip


def lacks(section: GatewaySection, *, shared_rates: bool) -> Iterator[str]:
    """What a gateway that strangers reach should have besides; nothing on loopback."""
    if is_loopback(section.address.rpartition(":")[0].strip("[]")):
        return
    if not section.hosts:
        yield "it answers to any name: list its own in gateway.hosts"
    if not shared_rates:
        yield "requests are counted in each gateway alone: name a Redis in gateway.rates_url"
