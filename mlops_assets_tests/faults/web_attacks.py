"""What a web page, a hostile name server or a client that never ends can do to a web server, written out. Each attack says whether it got
through; which servers it is tried on is the tests' business. Used on single services and on a running platform."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

EVIL = "http://evil.example"


@dataclass(frozen=True)
class Answer:
    status: int
    body: str

    @property
    def refused(self) -> bool:
        """By the guard: with the fix."""
        return self.status == 403 and ("MLOPS_ALLOWED" in self.body or "POST it as JSON" in self.body)


def ask(url: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Answer:
    """One request with exactly these headers; the true Host unless it is among them."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        given = {name.lower(): value for name, value in (headers or {}).items()}
        connection.putrequest(method, path, skip_host="host" in given, skip_accept_encoding=True)
        if body is not None:
            given["content-length"] = str(len(body))
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        reply = connection.getresponse()
        return Answer(reply.status, reply.read().decode(errors="replace"))
    finally:
        connection.close()


def handshake(url: str, path: str, protocol: str, headers: Mapping[str, str]) -> int:
    """The status that a websocket's handshake is answered with; 101: the page talks to the server."""
    parts = urlsplit(url)
    key = base64.b64encode(b"0123456789abcdef").decode()
    lines = {"Host": parts.netloc, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    lines |= {"Sec-WebSocket-Key": key, "Sec-WebSocket-Protocol": protocol} | dict(headers)
    text = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    with socket.create_connection((parts.hostname or "", parts.port), timeout=60) as connection:
        connection.sendall(text.encode())
        return int(connection.recv(4096).split()[1])


# --- any web page ---------------------------------------------------------------------------------------------------------------------

LAUNCH = """mutation {{ launchRun(executionParams: {{selector: {{repositoryLocationName: "{location}", repositoryName: "__repository__",
    jobName: "{job}"}}, runConfigData: "{config}", executionMetadata: {{tags: [{{key: "mlops/actor", value: "{actor}"}}]}}}}) {{ __typename
    ... on LaunchRunSuccess {{ run {{ runId }} }} ... on Error {{ message }} }} }}"""


def launching(job: str, config: Mapping[str, Any] | None = None, *, location: str = "mlops_assets", actor: str = "the CEO") -> str:
    """The mutation of the attack, with a name of the page's choice."""
    text = json.dumps(dict(config or {})).replace('"', '\\"')
    return LAUNCH.format(location=location, job=job, config=text, actor=actor)


def image(url: str, mutation: str, headers: Mapping[str, str] | None = None) -> Answer:
    """`<img src="http://localhost:3000/graphql?query=mutation...">` in any page. An old browser, or one that reaches the platform by an
    address without TLS, says nothing of where the image stands."""
    return ask(url, "GET", f"/graphql?query={quote(mutation)}", {"accept": "image/*"} | dict(headers or {}))


def form(url: str, mutation: str, origin: str = EVIL) -> Answer:
    """`<form method=post enctype=text/plain>` that submits itself: no preflight, and Dagster reads the address's query then."""
    return ask(url, "POST", f"/graphql?query={quote(mutation)}", {"origin": origin, "content-type": "text/plain"}, b"x=y")


def simple_fetch(url: str, mutation: str, origin: str = EVIL) -> Answer:
    """`fetch(..., {mode: "no-cors"})` with a body that Dagster takes for JSON because of a parameter of its type."""
    body = json.dumps({"query": mutation}).encode()
    return ask(url, "POST", "/graphql", {"origin": origin, "content-type": "text/plain; a=application/json"}, body)


def rebound(url: str, path: str, host: str = "evil.example", method: str = "GET") -> Answer:
    """The page's own name now points at this machine: for the browser everything is same-origin."""
    parts = urlsplit(url)
    named = f"{host}:{parts.port}"
    return ask(url, method, path, {"host": named, "origin": f"http://{named}", "sec-fetch-site": "same-origin"})


#: Cross-site requests of a current browser, by how a page makes them.
CROSS_SITE: dict[str, dict[str, str]] = {
    "img": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    "iframe": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    "fetch": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty", "origin": EVIL},
    "another port of this machine": {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
    "another port, by its origin": {"origin": "http://127.0.0.1:9"},
    "a sandboxed frame": {"origin": "null"},
    "an origin that begins like ours": {"origin": "http://127.0.0.1.evil.example"},
    "two origins": {"origin": f"{EVIL} http://127.0.0.1"},
}

#: Host headers under which nobody of ours asks.
FOREIGN_HOSTS = (
    "evil.example",
    "evil.example:80",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "10.evil.example",
    "192.168.evil.example",
    "127.0.0.1@evil.example",
    "evil.example#localhost",
    "evil.example, localhost",
    "10.1.2.3",
    "xn--9n2bp8q.example",
    "",
)

LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-user": "?1"}


# --- clients that never end -----------------------------------------------------------------------------------------------------------


def endless_headers(url: str, megabytes: int = 200, line: bytes = b"X-%d: " + b"a" * 8000 + b"\r\n") -> int:
    """Send headers until hung up on; how many bytes were taken."""
    parts, sent = urlsplit(url), 0
    with socket.create_connection((parts.hostname or "", parts.port), timeout=60) as connection, suppress(OSError):
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode())
        number = 0
        while sent < megabytes * 1024**2:
            piece = line % number if b"%d" in line else line
            connection.sendall(piece)
            sent, number = sent + len(piece), number + 1
    return sent


@contextmanager
def half_sent(url: str, count: int, request: bytes) -> Iterator[list[socket.socket]]:
    """So many connections whose requests never end."""
    parts = urlsplit(url)
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            connection = socket.create_connection((parts.hostname or "", parts.port), timeout=30)
            connection.sendall(request)
            held.append(connection)
        yield held
    finally:
        for connection in held:
            connection.close()


def half_body(url: str, path: str, size: int = 1000) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + b'{"inputs": ["'


def leave(url: str, path: str, then: Callable[[], object] = lambda: None) -> None:
    """Send half a body, and hang up."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port), timeout=30) as connection:
        connection.sendall(half_body(url, path))
        then()
