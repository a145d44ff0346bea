"""What a mesh lacks for production, each with its cure: settings, files, and what its services say of themselves.

A lack has a name. The ones that are `open` are defaults that strangers could use: a process that listens beyond loopback
does not start with one of them, unless `mesh.accepted` (or `--insecure`) names it. Nothing here changes anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from agentmesh.communication.flower import is_loopback
from agentmesh.errors import Mistake, Unsafe
from agentmesh.observation import health

if TYPE_CHECKING:
    from agentmesh.infrastructure.database import Row
    from agentmesh.infrastructure.settings import Settings
    from agentmesh.wiring import Mesh

NAMES = (
    "environment", "database", "database-tls", "database-login", "database-trust", "database-role", "database-disk",
    "broker", "broker-tls", "broker-login", "keys", "key-files", "config-files", "root", "debug", "gateway-origins",
    "gateway-proxies", "flower-login", "webhooks", "model-tls", "audit", "export", "backup", "retention",
)  # fmt: skip
"""Every check; what each looks at, docs/production.md says."""

WIDE = 8
"""A proxy's network is one, not a continent: no prefix is shorter than this."""


@dataclass(frozen=True, slots=True)
class Lack:
    """What is not as production wants it, and what cures it. `open`: strangers could use it."""

    name: str
    says: str
    cure: str
    open: bool = False


def lacks(mesh: Mesh) -> Iterator[Lack]:
    """Everything that is lacking and was not accepted by name. Asks the database, which must be migrated."""
    settings = mesh.settings
    _known(settings.mesh.accepted)
    row, with_password = health.server(mesh.db)
    server = of_server(settings.database_url, row, with_password=with_password)
    for one in (*of_settings(settings), *of_files(settings, uid=os.geteuid()), *server):
        if one.name not in settings.mesh.accepted:
            yield one


def require_closed(mesh: Mesh, address: str) -> None:
    """Raises Unsafe where a process that listens at `address`, beyond loopback, would start with a default that is open."""
    if is_loopback(address.rpartition(":")[0].strip("[]")):
        return
    found = [one for one in lacks(mesh) if one.open]
    if found:
        raise Unsafe("this is no way to listen beyond loopback: " + "; ".join(one.says for one in found),
                     value=", ".join(dict.fromkeys(one.name for one in found)),
                     expected="; ".join(dict.fromkeys(one.cure for one in found)) + "; or --insecure with the names")  # fmt: skip


def _known(names: Sequence[str]) -> None:
    for one in names:
        if one not in NAMES:
            raise Mistake(
                "no check has this name", value=one, expected=f"of {', '.join(NAMES)}", next="agentmesh doctor"
            )


# --- settings


def of_settings(settings: Settings) -> Iterator[Lack]:
    """What the settings lack by themselves."""
    if settings.mesh.environment != "production":
        yield Lack("environment", "the environment is development: keys are made, and a gateway prints a token that opens"
                   " every door", 'mesh.environment = "production"', open=True)  # fmt: skip
    if settings.database_url is None:
        yield Lack(
            "database", "the database is the embedded one, of this machine alone", "database.url in the settings"
        )
    if settings.broker_url is None and settings.database_url is None:
        yield Lack("broker", "the broker is the embedded database", "broker.url in the settings")
    if settings.broker_url is not None:
        yield from _of_broker(urlsplit(settings.broker_url))
    if settings.keys.private is None:
        yield Lack("keys", "no signing key is configured", "agentmesh keys new PATH, then keys.private", open=True)
    if settings.log.level == "debug":
        yield Lack("debug", "the log is at debug", 'log.level = "info"', open=True)
    yield from _of_doors(settings)
    model = urlsplit(settings.llm.base_url or "")
    if settings.llm.key and model.scheme == "http" and _leaves_here(model):
        yield Lack("model-tls", "the model's key crosses the network in clear", "an https llm.base_url")
    if settings.audit.anchors is None:
        yield Lack("audit", "no anchors of the audit are kept outside the database", "audit.anchors in the settings")


def _of_broker(url: SplitResult) -> Iterator[Lack]:
    if url.scheme.startswith("postgres"):
        return
    user, password = unquote(url.username or ""), unquote(url.password or "")
    if not password or "guest" in {user, password}:
        yield Lack("broker-login", "the broker is entered as guest, or without a password",
                   "a user and a password of its own in broker.url", open=True)  # fmt: skip
    elif user == password:
        yield Lack(
            "broker-login", "the broker's password is its user's name", "another password in broker.url", open=True
        )
    if _leaves_here(url) and url.scheme not in {"amqps", "rediss", "redis+socket"}:
        yield Lack("broker-tls", "doorbells and the broker's password cross the network in clear",
                   "amqps:// or rediss:// in broker.url", open=True)  # fmt: skip


def _of_doors(settings: Settings) -> Iterator[Lack]:
    section = settings.gateway
    if "*" in section.origins:
        yield Lack("gateway-origins", "any web page may call the gateway", "a list in gateway.origins", open=True)
    if any(_width(one) < WIDE for one in section.proxies):
        yield Lack("gateway-proxies", "whoever says so is believed about where a request comes from",
                   "the proxies' own addresses in gateway.proxies", open=True)  # fmt: skip
    auth = settings.flower.basic_auth
    user, _, password = auth.get_secret_value().partition(":") if auth else ("", "", "")
    if auth and user == password:
        yield Lack("flower-login", "Flower's password is its user's name", "flower.basic_auth with another", open=True)
    inner = [
        str(one) for one in settings.webhooks.private if one.prefixlen < WIDE or one.is_loopback or one.is_link_local
    ]
    if inner:
        yield Lack("webhooks", f"deliveries may reach this machine, or a cloud's metadata: {', '.join(inner)}",
                   "only the networks of receivers in webhooks.private")  # fmt: skip


def _leaves_here(url: SplitResult) -> bool:
    return bool(url.hostname) and not is_loopback(str(url.hostname))


def _width(network: str) -> int:
    _, slash, length = network.partition("/")
    return int(length) if slash and length.isdigit() else 32


# --- files and this process


def of_files(settings: Settings, *, uid: int) -> Iterator[Lack]:
    """What is wrong with the files that the settings name or come from, and with who this process is (`uid`)."""
    if uid == 0:
        yield Lack(
            "root", "this process is root's", "a user of its own: User= of its unit, USER of its image", open=True
        )
    for path in (settings.keys.private, settings.gateway.certificate_key):
        if path is not None and _mode(path) & 0o077:
            yield Lack("key-files", f"others may read or write {path}", f"chmod 600 {path}", open=True)
    for path, secret in _sources(settings).items():
        if _mode(path) & (0o026 if secret else 0o022):
            yield Lack("config-files", f"others may {'read' if secret else 'write'} {path}"
                       f"{', which holds a password' if secret else ''}", f"chmod {'640' if secret else '644'} {path}",
                       open=True)  # fmt: skip


def _sources(settings: Settings) -> dict[Path, bool]:
    """The files these settings come from, and whether a secret stands in each."""
    from agentmesh.infrastructure.settings import KNOWN, SECRET

    found: dict[Path, bool] = {}
    for name in KNOWN:
        origin = settings.origin(name)
        file = Path(os.environ.get(origin[1:], "")) if origin.endswith("_FILE") else Path(origin.rpartition(":")[0])
        if file.is_file():
            found[file] = found.get(file, False) or name in SECRET
    return found


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0


# --- what the server says


def of_server(url: str | None, row: Row, *, with_password: bool) -> Iterator[Lack]:
    """What ASK_SERVER's answer lacks, of the server at `url` (None: the embedded one)."""
    if url is not None:
        yield from _of_login(urlsplit(url), with_password=with_password, tls=row["tls"])
    if row["powers"]:
        powers = " ".join(f"NO{one}" for one in row["powers"])
        yield Lack(
            "database-role",
            f"the role {row['role']} is {', '.join(row['powers'])}",
            f'ALTER ROLE "{row["role"]}" {powers}',
        )
    if "off" in {row["fsync"], row["pages"]}:
        yield Lack("database-disk", "the server does not wait for its disk: a power cut loses what was accepted",
                   "fsync = on and full_page_writes = on in postgresql.conf")  # fmt: skip
    if not row["exports"]:
        yield Lack(
            "export", "no event was ever told to another system", "agentmesh export, for as long as the mesh runs"
        )
    if row["archive"] == "off" and not row["standbys"]:
        yield Lack("backup", "nothing shows a backup: the server archives nothing and has no standby",
                   "archive_mode = on with pgBackRest, WAL-G or the like; or accept it where dumps are made")  # fmt: skip
    if row["old"]:
        yield Lack("retention", "traces that ended more than 90 days ago are still here",
                   "agentmesh prune --before 90d --archive DIR, every night")  # fmt: skip


def _of_login(url: SplitResult, *, with_password: bool, tls: bool) -> Iterator[Lack]:
    if url.password and unquote(url.password) == unquote(url.username or ""):
        yield Lack("database-login", "the database's password is its user's name", "another password", open=True)
    if url.hostname and not with_password and "sslcert" not in url.query:  # on a socket the account may be the proof
        yield Lack("database-trust", "the server lets this user in without a password",
                   "scram-sha-256 in pg_hba.conf, and a password in database.url", open=True)  # fmt: skip
    if not _leaves_here(url):
        return
    if not tls:
        yield Lack("database-tls", "payloads and the database's password cross the network in clear",
                   "sslmode=verify-full in database.url", open=True)  # fmt: skip
    elif "sslmode=verify-full" not in url.query:
        yield Lack("database-tls", "whoever answers in the database's place is believed",
                   "sslmode=verify-full in database.url", open=True)  # fmt: skip
