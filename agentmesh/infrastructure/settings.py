"""Settings: what one process is told from outside, checked once, with the origin of every value.

Precedence: flag > AGENTMESH_* (and AGENTMESH_*_FILE for secrets) > --config file > agentmesh.toml,
else config/agentmesh.toml > default. Unknown keys are errors. Nothing here connects to anything.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    PrivateAttr,
    SecretStr,
    ValidationError,
)

from agentmesh.errors import BadSettings
from agentmesh.records import Name

PREFIX = "AGENTMESH_"
# Not settings of a process: the test servers, a producer's token, where binaries lie, secrets that declarations name,
# and what Kubernetes sets in every pod for a service of this name.
FOREIGN = re.compile(r"AGENTMESH_(SECRET_\w+|TEST_\w+|ALONE|PG_BIN|GATEWAY_TOKEN|SERVICE_\w+|PORT(_\w+)?)\Z")
SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
MASK = "***"


def _measured(value: object, units: Mapping[str, float], example: str) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not found or (found[2] and found[2] not in units):
        raise ValueError(f"a number with one of the units {', '.join(units)}, such as {example!r}")
    return float(found[1]) * units.get(found[2], 1.0)


def _seconds(value: object) -> object:
    return _measured(value, SECONDS, "30s")


def _bytes(value: object) -> object:
    size = _measured(value, BYTES, "64KiB")
    return int(size) if isinstance(size, float) else size


def _cores(value: object) -> object:
    return len(os.sched_getaffinity(0)) if value == "cores" else value


def _listed(value: object) -> object:
    return [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=366 * 86400, allow_inf_nan=False)]
"""Written "500ms", "30s", "5min", "1h", or as a number of seconds."""
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
"""Written "64KiB", "16MiB", or as a number of bytes."""
Strings = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Pool = Literal["threads", "prefork", "solo"]
Rate = Annotated[str, Field(pattern=r"^[1-9]\d{0,8}/(second|minute|hour)$")]
"""Written "600/minute"."""
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]_-]+:\d{1,5}$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DatabaseSection(Section):
    url: SecretStr | None = None
    """None: the embedded PostgreSQL under mesh.home."""
    pool_size: Annotated[int, Field(ge=1, le=1000)] = 5
    max_overflow: Annotated[int, Field(ge=0, le=1000)] = 5


class BrokerSection(Section):
    url: SecretStr | None = None
    """None: doorbells in the embedded PostgreSQL."""


class MeshSection(Section):
    name: Name = "mesh"
    environment: Literal["development", "production"] = "development"
    home: Path = Path(".agentmesh")
    tenant: Name = "default"
    accepted: Strings = ()
    """What this mesh lacks for production by intention: names that `agentmesh doctor` gives."""


class LeaseSection(Section):
    lease: Seconds = 10.0
    beat: Seconds = 1.0
    rescue: Seconds = 1.0
    ring_again: Seconds = 2.0
    ring_again_cap: Seconds = 10.0


class LimitsSection(Section):
    inline_payload: Bytes = 64 * 1024
    blob: Bytes = 16 * 1024 * 1024
    fan_out: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    no_worker_after: Seconds = 86_400.0
    backlog: Annotated[int, Field(ge=1, le=100_000_000)] = 100_000
    """Traces of one tenant that may wait to begin; counted now and then, so about so many."""
    delegation_depth: Annotated[int, Field(ge=1, le=64)] = 16
    chain_depth: Annotated[int, Field(ge=1, le=1000)] = 256
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """The most a trace may take, whatever its policy says."""


class KeysSection(Section):
    private: Path | None = None
    """The file of the private Ed25519 key. None: made on first use, in development only."""


class AgentsSection(Section):
    paths: Strings = ("config/agents",)
    policies: Strings = ("config/policies",)
    chains: Strings = ("config/chains",)


class LlmSection(Section):
    """The model of agents whose files name none of their own."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")] | None = None
    model: str | None = None
    key: Name | None = None
    """The name of the secret that is its key: AGENTMESH_SECRET_<NAME>."""


class EmbeddingsSection(Section):
    """What makes memory found by meaning, for agents whose files name nothing of their own; nothing here: nothing does."""

    embedder: Name | None = None
    """"local", or one of the user's; None: the model below."""
    model: str | None = None
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")] | None = None
    """None: that of [llm], with its key."""
    key: Name | None = None
    dimensions: Annotated[int, Field(ge=1, le=16_000)] | None = None


class ToolsSection(Section):
    paths: Strings = ("config/tools",)
    """Tool files, and directories of them."""
    plugins: Strings = ()
    """Distributions ("dist==version") whose entry points of group agentmesh.plugins are loaded."""
    imports: Strings = ()
    """Modules of the user's own project that a worker imports at its start."""


class WorkerSection(Section):
    agents_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    tools_concurrency: Annotated[int, BeforeValidator(_cores), Field(ge=1, le=10_000)] = "cores"  # type: ignore[assignment]
    agents_pool: Pool = "threads"
    tools_pool: Pool = "prefork"
    drain: Seconds = 30.0
    grace: Seconds = 10.0


class WebhooksSection(Section):
    """Whom deliveries may reach, whatever the policy of a trace says."""

    ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65_535)], ...], BeforeValidator(_listed)] = (443,)
    private: Annotated[tuple[IPvAnyNetwork, ...], BeforeValidator(_listed)] = ()
    """Networks that may be reached although they are not public."""
    timeout: Seconds = 15.0


class FlowerSection(Section):
    address: Address = "127.0.0.1:5555"
    basic_auth: SecretStr | None = None
    """user:password; without it Flower listens on loopback only."""


class GatewaySection(Section):
    address: Address = "127.0.0.1:8700"
    url: str | None = None
    """Where others reach it, as callback URLs say; None: http:// and the address."""
    hosts: Strings = ()
    origins: Strings = ()
    proxies: Strings = ()
    certificate: Path | None = None
    certificate_key: Path | None = None
    insecure: bool = False
    """True: listens beyond loopback without TLS."""
    issuer: str | None = None
    """Who signs the JWTs that are believed; None: none are."""
    audience: str | None = None
    jwks: str | None = None
    token_types: Strings = ("at+jwt",)
    tenant_claim: str = "tenant"
    permissions_claim: str = "permissions"
    tenants: Strings = ()
    """Values of the tenant claim, each "value" or "value=tenant"; none: only mesh.tenant."""
    rate: Rate = "600/minute"
    tenant_rate: Rate = "6000/minute"
    failures: Rate = "60/minute"
    rates_url: SecretStr | None = None
    """Redis where requests are counted. None: the broker's, where it is Redis, else this process."""
    body: Bytes = 1024 * 1024
    streams: Annotated[int, Field(ge=1, le=10_000)] = 20
    tenant_streams: Annotated[int, Field(ge=1, le=100_000)] = 200
    connections: Annotated[int, Field(ge=1, le=100_000)] = 1000
    timeout: Seconds = 5.0


class AuditSection(Section):
    anchors: Path | None = None
    """The file that agent workers append signed heads of the audit to, on another disk than the database's. None: none."""
    anchor_every: Seconds = 60.0


class LogSection(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class Settings(BaseModel):
    """Every setting of one process. Made by `load`; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mesh: MeshSection = MeshSection()
    database: DatabaseSection = DatabaseSection()
    broker: BrokerSection = BrokerSection()
    lease: LeaseSection = LeaseSection()
    limits: LimitsSection = LimitsSection()
    keys: KeysSection = KeysSection()
    agents: AgentsSection = AgentsSection()
    tools: ToolsSection = ToolsSection()
    llm: LlmSection = LlmSection()
    embeddings: EmbeddingsSection = EmbeddingsSection()
    worker: WorkerSection = WorkerSection()
    webhooks: WebhooksSection = WebhooksSection()
    flower: FlowerSection = FlowerSection()
    gateway: GatewaySection = GatewaySection()
    audit: AuditSection = AuditSection()
    log: LogSection = LogSection()

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def database_url(self) -> str | None:
        """In clear; None means the embedded database."""
        return self.database.url.get_secret_value() if self.database.url else None

    @property
    def broker_url(self) -> str | None:
        """In clear; None means the embedded broker."""
        return self.broker.url.get_secret_value() if self.broker.url else None

    def origin(self, name: str) -> str:
        """Where the value of "lease.beat" comes from: flag, $VARIABLE, file:line, or default."""
        if name not in KNOWN:
            raise _unknown(name, "this process")
        return self._origins.get(name, "default")


class Row(TypedDict):
    """One line of `config show`."""

    name: str
    value: str
    origin: str


class _Given(NamedTuple):
    value: object
    origin: str


KNOWN: dict[str, tuple[str, str]] = {
    f"{section}.{key}": (section, key)
    for section, field in Settings.model_fields.items()
    for key in field.annotation.model_fields  # type: ignore[union-attr]
}
IN_BYTES = frozenset({"limits.inline_payload", "limits.blob", "gateway.body"})
SECRET = frozenset({"database.url", "broker.url", "flower.basic_auth", "gateway.rates_url"})


def variable(name: str) -> str:
    """The variable of a setting: AGENTMESH_DATABASE_URL; those of [mesh] need no MESH_."""
    section, key = KNOWN[name]
    return PREFIX + (key if section == "mesh" else f"{section}_{key}").upper()


def load(
    *,
    config: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """The settings of this process. Flags are named as in the file ("mesh.home"), None: not given.

    Raises BadSettings, which names the key, where it stands, what was expected and may be meant.
    """
    given: dict[str, _Given] = {}
    file = config or _default_file(cwd or Path.cwd())
    if file is not None:
        given |= _from_file(file)
    given |= dict(_from_environ(os.environ if environ is None else environ))
    given |= dict(_from_flags(flags or {}))
    nested: dict[str, dict[str, object]] = {}
    for name, (value, _) in given.items():
        section, key = KNOWN[name]
        nested.setdefault(section, {})[key] = value
    try:
        settings = Settings.model_validate(nested)
    except ValidationError as exc:
        raise _refused(exc, given) from None
    settings._origins.update({name: one.origin for name, one in given.items()})
    return settings


def describe(settings: Settings) -> list[Row]:
    """Every setting in the order of the file, secrets as ***, with the origin of its value."""
    rows: list[Row] = []
    for name, (section, key) in KNOWN.items():
        value = getattr(getattr(settings, section), key)
        rows.append(Row(name=name, value=_shown(name, value), origin=settings.origin(name)))
    return rows


def _shown(name: str, value: object) -> str:
    """As it would be written in the file."""
    match value:
        case float():
            return f"{value:g}s"
        case int() if name in IN_BYTES:
            unit = next((u for u in ("MiB", "KiB") if value % BYTES[u] == 0), "B")
            return f"{value // BYTES[unit]}{unit}"
        case None:
            return "-"
        case SecretStr():
            return MASK
        case tuple():
            return ", ".join(str(one) for one in value) or "-"
        case _:
            return str(value).lower() if isinstance(value, bool) else str(value)


def _default_file(cwd: Path) -> Path | None:
    return next((p for p in (cwd / "agentmesh.toml", cwd / "config/agentmesh.toml") if p.is_file()), None)


def _from_file(path: Path) -> dict[str, _Given]:
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as exc:
        raise BadSettings("the settings file cannot be read", value=f"{path}: {exc}") from None
    except tomllib.TOMLDecodeError as exc:
        raise BadSettings(f"{path} is not TOML: {exc}", expected="a TOML file") from None
    given: dict[str, _Given] = {}
    for section, entries in data.items():
        if not isinstance(entries, dict):
            raise BadSettings(
                "a setting stands outside a [section]",
                value=section,
                expected="[mesh] and others above it",
            )
        for key, value in entries.items():
            where = f"{path}:{_line(text, section, key)}"
            if f"{section}.{key}" not in KNOWN:
                raise _unknown(f"{section}.{key}", where)
            given[f"{section}.{key}"] = _Given(value, where)
    return given


def _line(text: str, section: str, key: str) -> int:
    """The line of a key, which tomllib does not keep; 1 where it is spelled in an unusual way."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([\w.\"-]+)\s*\]", line)
        current = header[1].strip('"') if header else current
        entry = re.match(r"\s*([\w.\"-]+)\s*=", line)
        if entry and (current, entry[1].strip('"')) in {(section, key), ("", f"{section}.{key}")}:
            return number
    return 1


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, _Given]]:
    for var, value in environ.items():
        if not var.startswith(PREFIX) or FOREIGN.match(var):
            continue
        if var in VARIABLES:
            yield VARIABLES[var], _Given(value, f"${var}")
        elif VARIABLES.get(var.removesuffix("_FILE")) in SECRET:
            if var.removesuffix("_FILE") not in environ:
                yield (
                    VARIABLES[var.removesuffix("_FILE")],
                    _Given(_read_secret(var, value), f"${var}"),
                )
        else:
            near = _near(var, VARIABLES)
            raise BadSettings(
                "a variable names no setting",
                value=var,
                expected=near or "AGENTMESH_<SECTION>_<KEY>",
            )


def _read_secret(var: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise BadSettings(f"the file that {var} names cannot be read", value=f"{path}: {exc}") from None


def _from_flags(flags: Mapping[str, object]) -> Iterator[tuple[str, _Given]]:
    for name, value in flags.items():
        if name not in KNOWN:
            raise _unknown(name, "a flag")
        if value is not None:
            yield name, _Given(value, "flag")


VARIABLES: dict[str, str] = {variable(name): name for name in KNOWN} | {
    f"{PREFIX}{section}_{key}".upper(): f"{section}.{key}" for section, key in KNOWN.values()
}


def _near(word: str, known: Mapping[str, object]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"one of those listed · did you mean {found[0]}?" if found else ""


def _unknown(name: str, where: str) -> BadSettings:
    section = name.split(".", maxsplit=1)[0]
    near = _near(name, KNOWN)
    listed = ", ".join(known.split(".")[1] for known in KNOWN if known.startswith(section + "."))
    expected = near or (f"one of {listed}" if listed else None)
    return BadSettings(f"{where} names a setting that does not exist", value=name, expected=expected)


def _refused(exc: ValidationError, given: Mapping[str, _Given]) -> BadSettings:
    first = exc.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"][:2])
    where = given[name].origin if name in given else "default"
    value: Any = MASK if name in SECRET else first["input"]
    return BadSettings(f"{name} ({where}) has a value that is not allowed", value=value, expected=first["msg"])
