"""S36-S39: whatever a URL, a resolver, a server or the environment says, we go nowhere but where we may."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.errors import AnswerRefused, TargetRefused
from agentmesh.infrastructure.outbound import CLOSED_V4, Reach, client, is_public
from tests.sites import Site, quietly, saying

LOOP = ipaddress.ip_network("127.0.0.1/32")


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def reach(*sites: Site) -> Reach:
    return Reach(ports=tuple(site.port for site in sites), private=(LOOP,))


def get(url: str, to: Reach, *, within_s: float = 5, most_bytes: int = 65_536, **more: Any) -> httpx.Response:
    with client(to, within_s=within_s, most_bytes=most_bytes, **more) as ours:
        return ours.get(url)


@pytest.mark.parametrize("host", [
    "127.0.0.1", "localhost", "0.0.0.0", "127.1", "0x7f.1", "2130706433", "017700000001", "①②⑦.⓪.⓪.①", "10.0.0.1",
    "172.16.0.1", "192.168.1.1", "169.254.169.254", "168.63.129.16", "100.64.0.1", "192.0.0.8", "198.18.0.1",
    "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::1]", "[2002:a9fe:a9fe::1]", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[fec0::1]", "[fc00::1]",
    "[fe80::1]", "[ff02::1]", "user@127.0.0.1", "user:password@127.0.0.1",
])  # fmt: skip
def test_s36_no_spelling_of_a_closed_address_is_called(site: Site, host: str) -> None:
    with pytest.raises((TargetRefused, httpx.InvalidURL, httpx.UnsupportedProtocol)):
        get(f"http://{host}:{site.port}/", Reach(ports=(site.port,)))
    assert site.seen == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://user:password@127.0.0.1:{port}/"])
def test_s36_only_plain_http_urls_are_called(site: Site, url: str) -> None:
    with pytest.raises((TargetRefused, httpx.UnsupportedProtocol)):
        get(url.format(port=site.port), reach(site))
    assert site.seen == []


def test_s36_a_port_or_host_outside_the_list_is_not_called(site: Site) -> None:
    with pytest.raises(TargetRefused, match="port"):
        get(f"{site.url}/", Reach(private=(LOOP,)))
    with pytest.raises(TargetRefused, match="host"):
        get(f"{site.url}/", Reach(("api.example",), (site.port,), (LOOP,)))
    assert site.seen == []
    assert get(f"{site.url}/", Reach(("127.0.0.1",), (site.port,), (LOOP,))).text == "hello"


@given(st.sampled_from(CLOSED_V4), st.integers(0, 2**32 - 1))
def test_s36_an_embedded_private_address_is_never_public(network: ipaddress.IPv4Network, host: int) -> None:
    inner = int(network.network_address) | host & int(network.hostmask)
    assert not is_public(ipaddress.IPv4Address(inner))
    for high in (0, 0xFFFF << 32, 0x64FF9B << 96):  # compatible, mapped, NAT64
        assert not is_public(ipaddress.IPv6Address(high | inner))
    assert not is_public(ipaddress.IPv6Address(0x2002 << 112 | inner << 80))  # 6to4


def test_s36_public_addresses_are_public() -> None:
    for text in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822", "::ffff:93.184.216.34"):
        assert is_public(ipaddress.ip_address(text))


def test_s37_a_redirect_is_an_answer_and_not_followed(site: Site) -> None:
    elsewhere = Site()
    site.answer = saying("", status=302, location=f"{elsewhere.url}/")
    with client(reach(site, elsewhere), within_s=5, most_bytes=65_536) as ours:
        answer = ours.get(f"{site.url}/", headers={"authorization": "Bearer canary"})
    elsewhere.close()
    assert (answer.status_code, elsewhere.seen) == (302, [])


def test_s38_the_connection_goes_to_the_address_that_was_checked(site: Site) -> None:
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    assert get(f"http://tool.invalid:{site.port}/", reach(site), resolve=rebinding).text == "hello"
    assert asked == ["tool.invalid"]  # once: to look again is to be told otherwise
    assert site.seen[0].headers["host"] == f"tool.invalid:{site.port}"
    with pytest.raises(TargetRefused):
        get(f"http://tool.invalid:{site.port}/", reach(site), resolve=rebinding)


def test_s38_one_closed_address_among_several_closes_the_host(site: Site) -> None:
    with pytest.raises(TargetRefused):
        get(f"http://tool.invalid:{site.port}/", reach(site), resolve=lambda *_: ["127.0.0.1", "169.254.169.254"])
    assert site.seen == []


def test_s38_tls_still_asks_for_the_host_by_name(tmp_path: Path) -> None:
    ours, theirs = certified(tmp_path, "tool.invalid")
    site = Site(tls=theirs)
    try:
        to = reach(site)
        local: Any = {"resolve": lambda *_: ["127.0.0.1"], "tls": ours}
        assert get(f"https://tool.invalid:{site.port}/", to, **local).text == "hello"
        with pytest.raises(httpx.ConnectError, match="certificate"):
            get(f"https://other.invalid:{site.port}/", to, **local)
    finally:
        site.close()


def test_s39_proxies_and_netrc_of_the_environment_are_not_read(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Site()
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    answer = get(f"{site.url}/", reach(site))
    proxy.close()
    assert (answer.text, proxy.seen) == ("hello", [])
    assert "authorization" not in site.seen[0].headers


def test_s57_no_url_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        logging.getLogger("httpx").info("heard")
        get(f"{site.url}/hooks/canary?key=canary", reach(site))
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.INFO]
    assert [one for one in said if "canary" in one or "heard" in one] == []


def test_an_endless_answer_ends_at_the_limit(site: Site) -> None:
    def endless(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.end_headers()
        while True:
            to.wfile.write(b"x" * 65_536)

    site.answer = quietly(endless)
    with pytest.raises(AnswerRefused, match="too large"):
        get(f"{site.url}/", reach(site))


@pytest.mark.parametrize("drip", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["headers", "body"])
def test_an_answer_that_drips_ends_in_time(site: Site, drip: bytes) -> None:
    over = threading.Event()

    def slow(to: BaseHTTPRequestHandler) -> None:
        to.wfile.write(drip)
        while not over.wait(0.05):
            to.wfile.write(b"x")
            to.wfile.flush()

    site.answer = quietly(slow)
    with pytest.raises(httpx.TimeoutException):
        get(f"{site.url}/", reach(site), within_s=0.5)
    over.set()


def test_a_resolver_that_hangs_is_not_waited_for(site: Site) -> None:
    over = threading.Event()
    with pytest.raises(httpx.ConnectTimeout):
        get(f"http://tool.invalid:{site.port}/", reach(site), within_s=0.3, resolve=lambda *_: [str(over.wait(20))])
    over.set()


def test_a_host_that_nobody_knows_is_an_error_of_the_call(site: Site) -> None:
    with pytest.raises(httpx.ConnectError, match="not known"):
        get(f"http://tool.invalid:{site.port}/", reach(site))


def test_s32_a_compressed_answer_is_refused_unread(site: Site) -> None:
    def bomb(to: BaseHTTPRequestHandler) -> None:
        assert to.headers["accept-encoding"] == "identity"
        to.send_response(200)
        to.send_header("content-encoding", "gzip")
        to.end_headers()

    site.answer = bomb
    with pytest.raises(AnswerRefused, match="encoded"):
        get(f"{site.url}/", reach(site))


def certified(folder: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client that trusts, and a server that has, a certificate for `host`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)  # noqa: TID251 - a certificate is valid by the wall clock
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return ssl.create_default_context(cafile=str(folder / "cert.pem")), theirs
