"""Who may ask the platform's web servers: people who opened them under a name of theirs, and programs; never a page of somebody else's.

A browser sends what any page tells it to send, from inside the network and to the address that the page chose. Refused is what
- names a host that is none of ours: the page's own name was pointed at this machine (DNS rebinding);
- comes from a page of another origin, unless it only opens a page of ours in the browser's window (a link);
- asks for a GraphQL mutation by GET: an `<img>` needs no more, and no browser says of every image where it stands.
Programs (curl, the platform itself) send neither Origin nor Sec-Fetch-Site; their Host must be right.

One guard before each server: Dagster, the model servers, the dashboard, TensorBoard, MLflow, the one-time-code demo, websockets too. A
connection that a browser gave up is no error either. Belongs here: that decision and its refusal. Does not belong here: tokens (each
server's own), sizes and times (`limits.py`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mlops_assets.settings import Settings

log = logging.getLogger("mlops.guard")

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
#: Nobody else's page may show one of ours inside itself, where a person's click would be the page's.
_HEADERS = [(b"x-frame-options", b"SAMEORIGIN")]


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: a stable code, what is wrong, and the setting that allows it."""

    code: str
    message: str
    message_ko: str
    fix: str

    def body(self) -> bytes:
        shown = {"code": self.code, "message": self.message, "message_ko": self.message_ko, "field": None, "limit": None, "fix": self.fix}
        return json.dumps(shown, ensure_ascii=False).encode()


class Rules:
    """What counts as ours, by the settings.

    Args:
        origins: further origins whose pages may ask, beside those of the settings.
    """

    def __init__(self, settings: Settings, origins: Iterable[str] = ()) -> None:
        urls = (settings.dagster_url, settings.serve_url, settings.staging_url, settings.mlflow_tracking_uri)
        ours = {urlsplit(url).hostname or "" for url in urls if url} | {settings.host}
        self.hosts = {*LOOPBACK, *(_in_brackets(name.lower()) for name in ours if name not in ("", "0.0.0.0", "::"))}
        self.patterns = [one.lower() for one in listed(settings.allowed_hosts)]
        self.origins = {one.rstrip("/").lower() for one in (*listed(settings.allowed_origins), *origins)}

    def refusal(
        self, method: str, path: str, query: str, headers: Mapping[str, list[str]], local: str | None, *, websocket: bool = False
    ) -> Refusal | None:
        """Why this request is refused; None when it may pass.

        Args:
            headers: values by lower-case name.
            local: the address of this machine at which the connection arrived.
        """
        hosts = headers.get("host", [])
        host = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if host is None or not self._is_ours(host, local):
            return _foreign_host(", ".join(hosts) or "none")
        if (foreign := self._foreign_page(method, headers, host, websocket)) is not None:
            return foreign
        return _get_mutation() if method == "GET" and not websocket and _mutates(path, query) else None

    def _is_ours(self, host: re.Match[str], local: str | None) -> bool:
        name, port = host["name"], host["port"]
        if name in self.hosts or (local is not None and name == _in_brackets(local.removeprefix("::ffff:").lower())):
            return True
        named = {name, f"{name}:{port}"}
        return any(p in named or (p.startswith("*.") and any(n.endswith(p[1:]) for n in named)) for p in self.patterns)

    def _foreign_page(self, method: str, headers: Mapping[str, list[str]], host: re.Match[str], websocket: bool) -> Refusal | None:
        origins, sites = headers.get("origin", []), headers.get("sec-fetch-site", [])
        if origins:
            if len(origins) > 1 or not (origins[0].lower() in self.origins or _same(origins[0].lower(), host)):
                return _cross_site(", ".join(origins))
            if origins[0].lower() in self.origins:
                return None
        if all(site in ("same-origin", "none") for site in sites):
            return None
        mode, shown_in = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest", ["document"])
        a_link = method in ("GET", "HEAD") and not websocket and not origins and mode == ["navigate"] and shown_in == ["document"]
        return None if a_link else _cross_site(", ".join(origins) or f"another site ({', '.join(sites)})")


def listed(value: str) -> list[str]:
    """The entries of a setting whose parts are separated by commas."""
    return [one.strip() for one in value.split(",") if one.strip()]


def _in_brackets(name: str) -> str:
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def _same(origin: str, host: re.Match[str]) -> bool:
    """Whether a page of that origin was itself loaded from `host`. A proxy in between may have taken the TLS away."""
    try:
        parts = urlsplit(origin)
        port = str(parts.port or _DEFAULT_PORTS.get(parts.scheme, ""))
    except ValueError:
        return False
    if parts.scheme not in _DEFAULT_PORTS or _in_brackets((parts.hostname or "").rstrip(".")) != host["name"]:
        return False
    return port == host["port"] if host["port"] else port in _DEFAULT_PORTS.values()


def _mutates(path: str, query: str) -> bool:
    """Whether a GraphQL endpoint would execute a mutation that stands in the address. Decided by the parser that executes it."""
    if not path.rstrip("/").endswith("/graphql"):
        return False
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

    for text in parse_qs(query, keep_blank_values=True).get("query", []):
        try:
            definitions = parse(text).definitions
        except GraphQLError:
            continue  # nor will it be executed
        if any(isinstance(one, OperationDefinitionNode) and one.operation is OperationType.MUTATION for one in definitions):
            return True
    return False


def _foreign_host(host: str) -> Refusal:
    return Refusal(
        "foreign_host",
        f"this server is not reached under the name {host[:200]!r}",
        "이 서버의 주소가 아닌 이름으로 보낸 요청입니다.",
        "Behind a proxy or under another name: set MLOPS_ALLOWED_HOSTS to the names that people use, such as "
        "MLOPS_ALLOWED_HOSTS=mlops.example.com (several separated by commas, *.example.com for all below), and start again.",
    )


def _cross_site(origin: str) -> Refusal:
    return Refusal(
        "cross_site",
        f"a page of {origin[:200]!r} may not ask this server",
        "다른 사이트의 페이지가 보낸 요청입니다.",
        "If that page is yours, or a proxy changes the Host header: set MLOPS_ALLOWED_ORIGINS to its origin, such as "
        "MLOPS_ALLOWED_ORIGINS=https://mlops.example.com, and start again.",
    )


def _get_mutation() -> Refusal:
    return Refusal(
        "get_mutation",
        "a mutation is sent by POST: an address that changes something could stand in any page",
        "변경 요청은 POST로 보내야 합니다.",
        'POST it as JSON: {"query": "mutation ..."} to the same address. No setting allows it by GET.',
    )


class Guard:
    """The rules before an ASGI application."""

    def __init__(self, app: ASGIApp, settings: Settings, origins: Iterable[str] = ()) -> None:
        self.app = app
        self.rules = Rules(settings, origins)
        self._said: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        query = scope.get("query_string", b"").decode("latin-1")
        local, websocket = (scope.get("server") or (None,))[0], scope["type"] == "websocket"
        refusal = self.rules.refusal(scope.get("method", "GET"), scope["path"], query, headers, local, websocket=websocket)
        if refusal is not None:
            self._say(refusal)
            await _refuse(refusal, scope, send)
            return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import ClientDisconnect

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            log.debug("a client left before its request was complete")

    def _say(self, refusal: Refusal) -> None:
        """Once for each: what a page sends a thousand times is one line."""
        key = (refusal.code, refusal.message)
        if key not in self._said and len(self._said) < 1000:
            self._said.add(key)
            log.warning("refused: %s. %s", refusal.message, refusal.fix)


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    body: Any = refusal.body()
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})
            return
        kind = "websocket.http.response"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": f"{kind}.start", "status": 403, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
