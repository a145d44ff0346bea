"""DataAdapters: tools that a file declares, which ask another system instead of running code of the user's.

    tool: find_customer
    needs: ["crm:read"]
    arguments: {number: {type: integer}}
    result: {type: object}
    http: {url: "https://crm.example.com/customers/{number}", auth: {bearer: crm_token}}

A file is configuration: where it leads is its author's word, where its arguments lead is not. They fill the path and
the query, escaped; what no {hole} takes goes into the query of a GET or DELETE and the JSON body of the others. A secret
is named and never written. Every call goes through infrastructure/outbound.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import quote, urlencode

import httpx
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from agentmesh.errors import BadArguments, BadTool, BadToolFile, MeshError, Permanent, Retry
from agentmesh.execution.schemas import Declared
from agentmesh.execution.tools import Tool, ToolContext, make_tool
from agentmesh.infrastructure import jsontext, outbound, yamlfiles
from agentmesh.infrastructure.outbound import Network, Reach
from agentmesh.infrastructure.secrets import Secrets
from agentmesh.infrastructure.settings import Bytes, Seconds
from agentmesh.infrastructure.yamltext import YamlText
from agentmesh.records import Backoff, Effect, Json, Name, Record

URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.{}_-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
    r"(?P<path>/[^?#\s]*)?(?:\?(?P<query>[^#\s]*))?\Z"
)
HOLE = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
SAFE = frozenset({"GET", "PUT", "DELETE"})
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_SAID = 300


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


class Auth(Record):
    """How a call shows who asks: the name of the secret, never the secret."""

    bearer: Name | None = None
    basic: Name | None = None
    """A secret of the form user:password."""
    header: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")] | None = None
    secret: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [bool(self.bearer), bool(self.basic), bool(self.header and self.secret)].count(True) != 1:
            raise ValueError("bearer, basic, or header and secret")
        return self

    def headers(self, secrets: Secrets) -> dict[str, str]:
        if self.bearer:
            return {"authorization": f"Bearer {secrets(self.bearer)}"}
        if self.basic:
            return {"authorization": f"Basic {base64.b64encode(secrets(self.basic).encode()).decode()}"}
        return {str(self.header): secrets(str(self.secret))}


class Endpoint(Record):
    """Where a tool calls, and what it may reach there."""

    url: Annotated[str, StringConstraints(max_length=2048)]
    auth: Auth | None = None
    headers: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")],
                  Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]{0,1024}$")]] = Field(default_factory=dict)  # fmt: skip
    hosts: tuple[str, ...] = ()
    """The hosts that a url with a hole in its host may lead to."""
    private: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Networks ("10.2.0.0/16") that may be reached although they are not public."""
    answer: Bytes = 1 << 20


class Http(Endpoint):
    """One HTTP request; its answer's JSON, or text, is the result."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"


class ToolFile(Record):
    """A tool as a file declares it: what `register_tool` takes, its schemas, and one adapter."""

    tool: Name
    description: Annotated[str, StringConstraints(max_length=500)] = ""
    needs: tuple[str, ...] = ()
    timeout: Seconds = 60.0
    attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    effect: Effect | None = None
    inline: bool = False
    queue: Name = "tools"
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")] = "1"
    backoff: Backoff = Backoff()
    arguments: dict[Name, dict[str, Json]] = Field(default_factory=dict)
    """A JSON Schema for each; one with a default may be left out."""
    result: dict[str, Json] = Field(default_factory=dict)
    http: Http | None = None

    def arguments_schema(self) -> dict[str, Json]:
        required = [name for name, one in self.arguments.items() if "default" not in one]
        properties = dict(self.arguments)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@dataclass(frozen=True)
class DataAdapter:
    """What runs for a declared tool. Two of one declaration are the same tool."""

    kind: ClassVar[str]

    declared: ToolFile
    secrets: Secrets = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError for a declaration that cannot work."""

    def __call__(self, ctx: ToolContext, **args: Json) -> Json:
        raise NotImplementedError

    @property
    def effect(self) -> Effect:
        return self.declared.effect or "repeatable"


class HttpAdapter(DataAdapter):
    kind = "http"

    def __post_init__(self) -> None:
        http = self._http
        self._url = UrlTemplate(http.url, self.declared.arguments, http.hosts)
        if http.method not in SAFE and self.declared.effect is None:
            raise ValueError(f"a {http.method} says what doing it again means: effect: repeatable, keyed or once")

    @property
    def _http(self) -> Http:
        if self.declared.http is None:
            raise ValueError("http: is missing")
        return self.declared.http

    def __call__(self, ctx: ToolContext, **args: Json) -> Json:
        http = self._http
        rest = {name: value for name, value in args.items() if name not in self._url.holes and value is not None}
        headers: dict[str, str] = {}
        if self.declared.effect == "keyed":
            headers["idempotency-key"] = ctx.idempotency_key
        if http.method in {"GET", "DELETE"}:
            response = self.ask(http, http.method, self._url.filled(args, rest), headers)
        else:
            body = jsontext.dumps(rest, what="a request").encode()
            headers["content-type"] = "application/json"
            response = self.ask(http, http.method, self._url.filled(args, {}), headers, body)
        return _said(response)

    def ask(self, at: Endpoint, method: str, url: str, headers: dict[str, str], body: bytes = b"") -> httpx.Response:
        """A successful answer. Raises Permanent where asking again cannot help, else Retry."""
        auth = at.auth.headers(self.secrets) if at.auth else {}
        reach = self._url.reach(at.private)
        try:
            with outbound.client(reach, within_s=self.declared.timeout, most_bytes=at.answer) as client:
                response = client.request(method, url, headers={**at.headers, **headers, **auth}, content=body)
        except httpx.InvalidURL as exc:
            raise Permanent(f"this is no URL: {exc}") from exc
        except httpx.HTTPError as exc:
            raise Retry(f"{self._url.host} did not answer: {type(exc).__name__}: {exc}") from exc
        if response.is_success:
            return response
        said = f"{method} {self._url.host} answered {response.status_code}: {_excerpt(response, auth.values())}"
        if response.status_code in AGAIN:
            raise Retry(said, after=outbound.retry_after_s(response))
        raise Permanent(said)


class UrlTemplate:
    """A URL with holes for arguments. Raises ValueError for one that arguments could lead astray."""

    def __init__(self, url: str, arguments: Mapping[str, Mapping[str, Json]], hosts: tuple[str, ...]) -> None:
        found = URL.match(url)
        if found is None:
            raise ValueError("url: an http(s):// URL without a user, its holes written {argument}")
        self._scheme, self.host, self._path, self._query = (
            found["scheme"],
            found["host"],
            found["path"] or "/",
            found["query"],
        )
        self._port = int(found["port"] or {"http": 80, "https": 443}[self._scheme])
        self._netloc = found["host"] + (f":{found['port']}" if found["port"] else "")
        self.holes = frozenset(HOLE.findall(url))
        for name in self.holes:
            if arguments.get(name, {}).get("type") not in {"string", "integer", "number", "boolean"}:
                raise ValueError(f"url: {{{name}}} is no argument of type string, integer, number or boolean")
        if HOLE.search(self.host) and not hosts:
            raise ValueError("hosts: a url with a hole in its host lists the hosts it may lead to")
        self._hosts = tuple(host.lower() for host in hosts) or (self.host.strip("[]").lower(),)

    def reach(self, private: Iterable[str]) -> Reach:
        networks: tuple[Network, ...] = tuple(map(ipaddress.ip_network, private))
        return Reach(self._hosts, (self._port,), networks)

    def filled(self, args: Mapping[str, Json], rest: Mapping[str, Json]) -> str:
        """The URL of a call; `rest` joins its query. Raises BadArguments where a value would leave its place."""

        def put(found: re.Match[str]) -> str:
            return quote(_text(args[found[1]]), safe="")

        path = HOLE.sub(put, self._path)
        if any(part in {"", ".", ".."} for part, made in zip(path.split("/"), self._path.split("/"), strict=True)
               if HOLE.search(made)):  # fmt: skip
            raise BadArguments("an argument would lead to another path", value=path, expected="a value that is a name")
        netloc = HOLE.sub(lambda found: _label(_text(args[found[1]])), self._netloc)
        query = "&".join(filter(None, [HOLE.sub(put, self._query or ""), urlencode(_flat(rest), doseq=True)]))
        return f"{self._scheme}://{netloc}{path}" + (f"?{query}" if query else "")


KINDS: dict[str, type[DataAdapter]] = {one.kind: one for one in (HttpAdapter,)}


def load_tools(paths: Iterable[str | Path], secrets: Secrets) -> list[Tool]:
    """The tools of these files, and of the *.yaml files in these directories. Raises BadToolFile with file:line."""
    return [_made(yamlfiles.read(path, BadToolFile), secrets) for path in yamlfiles.listed(paths, BadToolFile)]


def _made(text: YamlText, secrets: Secrets) -> Tool:
    declared = yamlfiles.record(ToolFile, text, BadToolFile)
    kinds = [name for name in KINDS if getattr(declared, name) is not None]
    if len(kinds) != 1:
        raise BadToolFile(f"{text.where()}: {declared.tool} needs one adapter", value=", ".join(kinds) or None,
                          expected=f"one of {', '.join(KINDS)}")  # fmt: skip
    try:
        adapter = KINDS[kinds[0]](declared, secrets)
        return make_tool(
            declared.tool, adapter, needs=declared.needs, timeout_s=declared.timeout, attempts=declared.attempts,
            effect=adapter.effect, inline=declared.inline, group=declared.queue, version=declared.version,
            backoff=declared.backoff, description=declared.description,
            arguments=Declared(declared.arguments_schema(), what=f"{declared.tool}: arguments"),
            returns=Declared(declared.result, what=f"{declared.tool}: result"),
        )  # fmt: skip
    except ValueError as exc:
        raise BadToolFile(f"{text.where(kinds[0])}: {exc}", value=declared.tool) from exc
    except MeshError as exc:
        where = "result" if isinstance(exc, BadTool) and "result" in exc.what else "tool"
        raise BadToolFile(f"{text.where(where)}: {exc.what}", value=exc.value, expected=exc.expected) from exc


def _said(response: httpx.Response) -> Json:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not response.content:
        return None
    if kind == "application/json" or kind.endswith("+json"):
        return jsontext.loads(response.content, what="an answer")
    try:
        return response.text
    except (LookupError, UnicodeError) as exc:
        raise Permanent(f"the answer is no text: {kind}") from exc


def _excerpt(response: httpx.Response, secrets: Iterable[str]) -> str:
    """The beginning of an answer, without the secrets that it may echo."""
    text = response.content[: 4 * MAX_SAID].decode("utf-8", "replace")
    for one in secrets:
        for part in {one, one.rpartition(" ")[2]}:
            text = text.replace(part, "***")
    return " ".join(text.split())[:MAX_SAID]


def _text(value: Json) -> str:
    return value if isinstance(value, str) else jsontext.dumps(value, what="an argument")


def _label(text: str) -> str:
    if not LABEL.match(text):
        raise BadArguments("an argument is no part of a host", value=text, expected="letters, digits and hyphens")
    return text


def _flat(rest: Mapping[str, Json]) -> dict[str, Any]:
    return {
        name: [_text(one) for one in value] if isinstance(value, list) else _text(value) for name, value in rest.items()
    }
