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
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self
from urllib.parse import quote, urlencode

import httpx
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from agentmesh.errors import BadArguments, Permanent, Retry
from agentmesh.execution.tools import ToolContext
from agentmesh.infrastructure import jsontext, outbound
from agentmesh.infrastructure.outbound import Network, Reach
from agentmesh.infrastructure.secrets import Secrets
from agentmesh.infrastructure.settings import Bytes
from agentmesh.records import Effect, Json, Name, Record

URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.{}_-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
    r"(?P<path>/[^?#\s]*)?(?:\?(?P<query>[^#\s]*))?\Z"
)
HOLE = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
SAFE = frozenset({"GET", "PUT", "DELETE"})
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_SAID = 300
JSON = {"content-type": "application/json"}


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


class Rpc(Endpoint):
    """One JSON-RPC 2.0 call; the arguments are its params."""

    method: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]


class Declaration(Protocol):
    """What an adapter must know of the tool it runs for."""

    @property
    def tool(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def effect(self) -> Effect | None: ...
    @property
    def arguments(self) -> Mapping[str, dict[str, Json]]: ...
    @property
    def result(self) -> Mapping[str, Json]: ...


@dataclass(frozen=True)
class DataAdapter(ABC):
    """What runs for a declared tool: `spec` is its part of the file. Two of one declaration are the same tool.

    A subclass may have many(ctx, inputs), for a call that is `for` many inputs.
    """

    kind: ClassVar[str]

    declared: Declaration
    spec: Any
    secrets: Secrets = field(repr=False, compare=False)

    def __post_init__(self) -> None:  # noqa: B027 - a subclass that has nothing to check has none
        """Raises ValueError for a declaration that cannot work."""

    @abstractmethod
    def __call__(self, ctx: ToolContext, **args: Json) -> Json:
        """The result of one call. Raises what fails it."""

    @property
    def tx(self) -> bool:
        return False


class EndpointAdapter(DataAdapter):
    """An adapter that asks over HTTP."""

    spec: Endpoint

    def __post_init__(self) -> None:
        self._url = UrlTemplate(self.spec.url, self.declared.arguments, self.spec.hosts)

    def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> httpx.Response:
        """A successful answer. Raises Permanent where asking again cannot help, else Retry."""
        spec = self.spec
        auth = spec.auth.headers(self.secrets) if spec.auth else {}
        reach, seconds = self._url.reach(spec.private), self.declared.seconds
        try:
            with outbound.client(reach, within_s=seconds, most_bytes=spec.answer) as client:
                response = client.request(method, url, headers={**spec.headers, **headers, **auth}, content=body)
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

    def _must_say_effect(self, what: str) -> None:
        if self.declared.effect is None:
            raise ValueError(f"{what} says what doing it again means: effect: repeatable, keyed or once")


class HttpAdapter(EndpointAdapter):
    kind = "http"
    spec: Http

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spec.method not in SAFE:
            self._must_say_effect(f"a {self.spec.method}")

    def __call__(self, ctx: ToolContext, **args: Json) -> Json:
        method = self.spec.method
        rest = {name: value for name, value in args.items() if name not in self._url.holes and value is not None}
        headers: dict[str, str] = {}
        if self.declared.effect == "keyed":
            headers["idempotency-key"] = ctx.idempotency_key
        if method in {"GET", "DELETE"}:
            return _said(self.ask(method, self._url.filled(args, rest), headers))
        body = jsontext.dumps(rest, what="a request").encode()
        return _said(self.ask(method, self._url.filled(args, {}), headers | JSON, body))


class RpcAdapter(EndpointAdapter):
    """JSON-RPC 2.0; a call for many inputs is one batch."""

    kind = "rpc"
    spec: Rpc

    def __post_init__(self) -> None:
        super().__post_init__()
        self._must_say_effect("a JSON-RPC method")
        if self._url.holes:
            raise ValueError("url: of JSON-RPC it has no holes, the arguments are params")

    def __call__(self, ctx: ToolContext, **args: Json) -> Json:
        return self._result(self._exchange(self._request(ctx.idempotency_key, args)), ctx.idempotency_key)

    def many(self, ctx: ToolContext, inputs: Sequence[Mapping[str, Json]]) -> list[Json]:
        if not inputs:
            return []
        keys = [f"{ctx.idempotency_key}.{n}" for n in range(len(inputs))]
        said = self._exchange([self._request(key, one) for key, one in zip(keys, inputs, strict=True)])
        if not isinstance(said, list):  # a batch that is refused as a whole
            return [self._result(said, keys[0])]
        by_key = {one.get("id"): one for one in said if isinstance(one, dict)}
        return [self._result(by_key.get(key), key) for key in keys]

    def _request(self, key: str, params: Mapping[str, Json]) -> dict[str, Json]:
        return {"jsonrpc": "2.0", "id": key, "method": self.spec.method, "params": params}

    def _exchange(self, said: Json) -> Json:
        body = jsontext.dumps(said, what="a request").encode()
        return jsontext.loads(self.ask("POST", self._url.filled({}, {}), JSON, body).content, what="an answer")

    def _result(self, said: Json, key: str) -> Json:
        """Raises Permanent for an error of the method or of ours, Retry for one of the server."""
        if not isinstance(said, dict) or ("error" not in said and (said.get("id") != key or "result" not in said)):
            raise Retry(f"{self._url.host} answered what is no JSON-RPC")
        error = said.get("error")
        if error is None:
            return said["result"]
        code = error.get("code") if isinstance(error, dict) else None
        text = f"{self.spec.method} failed: {jsontext.dumps(error, what='an error')[:MAX_SAID]}"
        raise (Retry if code == -32603 or (isinstance(code, int) and -32099 <= code <= -32000) else Permanent)(text)


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
