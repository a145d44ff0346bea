"""Flower against our broker, for people who watch: read-only always, open to the network only behind a password.

Flower's own environment variables and its configuration file (which is Python) are not read.
"""

from __future__ import annotations

import ipaddress
import os

from celery import Celery

from agentmesh.communication.broker import make_app
from agentmesh.communication.hardening import harden
from agentmesh.errors import Mistake, Unsafe

OPEN_PAGES = r"/(?:metrics|healthcheck)"  # Flower serves these without asking for the password


def run_flower(
    broker_url: str,
    *,
    address: str = "127.0.0.1",
    port: int = 5555,
    basic_auth: str | None = None,
    key_prefix: str = "agentmesh:",
) -> None:
    """Flower has run until it was interrupted. `basic_auth` is "user:password"; without it only a loopback address
    is allowed. Raises Unsafe before anything listens."""
    check_address(address, basic_auth)
    app = make_app(broker_url=broker_url, backend="disabled://", key_prefix=key_prefix)
    harden(app)
    _without_open_pages(address)
    _start(app, address, port, basic_auth)


def check_address(address: str, basic_auth: str | None) -> None:
    """Raises Unsafe where strangers could reach a Flower that asks for nothing."""
    if basic_auth is not None:
        user, _, password = basic_auth.partition(":")
        if not user or not password or "," in basic_auth:
            raise Mistake("the password for Flower is not well formed", expected="user:password, without a comma")
    elif not is_loopback(address):
        raise Unsafe("Flower would be open to the network", value=address or "every address")


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _without_open_pages(address: str) -> None:
    from flower import urls  # noqa: PLC0415 - flower is heavy, and only this verb needs it
    from flower.views.error import NotFoundErrorHandler  # noqa: PLC0415

    if not is_loopback(address):
        urls.handlers.insert(0, (OPEN_PAGES, NotFoundErrorHandler))


def _start(app: Celery, address: str, port: int, basic_auth: str | None) -> None:
    for name in [known for known in os.environ if known.startswith("FLOWER_")]:
        del os.environ[name]
    arguments = [
        "flower", f"--address={address}", f"--port={port}", "--read_only=true", "--enable_events=true",
        f"--conf={os.devnull}",
    ]  # fmt: skip
    if basic_auth is not None:
        arguments.append(f"--basic_auth={basic_auth}")  # of this call, not of the process: ps does not show it
    app.start(argv=arguments)
