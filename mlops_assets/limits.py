"""An HTTP server that nobody can wear down: uvicorn with limits on the size of headers and bodies, on the time until they are there, and on
connections. uvicorn itself has none of them (a peer that says nothing is waited for for ever, headers are collected without end).

Belongs here: how connections are read. Does not belong here: who may ask (`guard.py`), what is answered. Importing this imports uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlops_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

#: A body may take a second more for each so many bytes of it that have come.
SLOWEST_BYTES_PER_SECOND = 16 * 1024


@dataclass(frozen=True)
class Limits:
    """`body_bytes`: of servers that do not look at it themselves."""

    header_bytes: int
    header_seconds: float
    body_seconds: float
    connections: int
    body_bytes: int | None = None

    @classmethod
    def of(cls, settings: Settings, body_bytes: int | None = None) -> Limits:
        return cls(settings.max_header_bytes, settings.header_seconds, settings.body_seconds, settings.max_connections, body_bytes)


class Config(uvicorn.Config):
    def __init__(self, app: ASGIApp, limits: Limits, **more: Any) -> None:
        super().__init__(app, http=Protocol, loop="uvloop", access_log=False, log_config=None, timeout_graceful_shutdown=10, **more)
        self.limits = limits


@cache
def _own_limits() -> Limits:
    return Limits.of(load_settings())


class _TooMuch(ValueError):
    """Raised inside the parser, which then stops."""


class Protocol(HttpToolsProtocol):
    """One connection.

    While it waits for its client, `waits_since` is the time since when; None while the client waits for us. When there are too many
    connections, the one that waits longest makes room: half-sent requests never keep a whole one out.
    """

    def __init__(self, config: uvicorn.Config, *given: Any, **more: Any) -> None:
        super().__init__(config, *given, **more)
        self.limits: Limits = getattr(config, "limits", None) or _own_limits()
        self.waits_since: float | None = None
        self._part: Literal["head", "body", "none"] = "head"
        self._begun = self.loop.time()
        self._head_bytes = self._body_bytes = self._unparsed = 0
        self._refused: tuple[int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- the connection ---------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect("head")
        self._look_at_the_clock()
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        self._unparsed += len(data)
        super().data_received(data)
        if self.parser is None or self.transport.is_closing():
            return
        if self._unparsed > self.limits.header_bytes:  # a line that never ends: the parser collects it without a word
            self.refuse(431, "the headers are too large")
            return
        if self._part == "none" and self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self._expect("head")  # something came that begins no request
        if self._part != "none" and self._timer is None:
            self._look_at_the_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_the_clock()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._stop_the_clock()
        super().handle_websocket_upgrade()

    # --- the parser's words -----------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._body_bytes = 0
        self._expect("head")

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._expect("body")
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._unparsed = 0

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        self._body_bytes += len(body)
        if self.limits.body_bytes is not None and self._body_bytes > self.limits.body_bytes:
            self._give_up(413, f"the body is larger than {self.limits.body_bytes} bytes")
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._expect("none")
        self._stop_the_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._part == "none":
            self.waits_since = self.loop.time()  # for the next request; uvicorn's own clock runs
        super().on_response_complete()

    # --- limits -----------------------------------------------------------------------------------------------------------------------

    def _expect(self, part: Literal["head", "body", "none"]) -> None:
        self._part, self._begun, self._unparsed = part, self.loop.time(), 0
        self.waits_since = None if part == "none" else self._begun

    def _count(self, size: int) -> None:
        self._unparsed = 0
        self._head_bytes += size
        if self._head_bytes > self.limits.header_bytes:
            self._give_up(431, "the headers are too large")

    def _give_up(self, status: int, message: str) -> None:
        self._refused = status, message
        raise _TooMuch(message)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn does when its parser stopped."""
        self.refuse(*(self._refused or (400, msg)))

    def refuse(self, status: int, message: str) -> None:
        """Say so, where nothing was said yet, and hang up."""
        self._stop_the_clock()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if self._part != "none" and (cycle is None or cycle.response_complete or not cycle.response_started):
            body = message.encode()
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if self._part == "none" or self.transport.is_closing():
            return
        now = self.loop.time()
        if self._part == "body" and self.flow.read_paused:
            self._begun = now  # it is we who do not read on
        allowed = self.limits.header_seconds if self._part == "head" else self.limits.body_seconds
        until = self._begun + allowed + self._body_bytes / SLOWEST_BYTES_PER_SECOND
        if now < until:
            self._timer = self.loop.call_later(until - now, self._look_at_the_clock)
        else:
            self.refuse(408, f"the {self._part} of the request did not come in time")

    def _stop_the_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> None:
        others = [one for one in self.connections if isinstance(one, Protocol) and one is not self and one.waits_since is not None]
        longest = min(others, key=lambda one: one.waits_since or 0.0, default=None)
        if longest is None:
            self.refuse(503, "there are too many connections")
        else:
            self.connections.discard(longest)
            longest.refuse(408, "there are too many connections, and this one waited longest")


class Guarded(Protocol):
    """Behind the guard, for a server whose application others start: `uvicorn --http mlops_assets.limits:Guarded` (MLflow)."""

    def __init__(self, config: uvicorn.Config, *given: Any, **more: Any) -> None:
        super().__init__(config, *given, **more)
        self.app = _guarded(self.app)


@cache
def _guarded(app: Any) -> Any:
    from mlops_assets.guard import Guard

    return Guard(app, load_settings())


def run(app: ASGIApp, listener: socket.socket, limits: Limits, **more: Any) -> None:
    """Answer on `listener` until SIGINT or SIGTERM; requests in flight are finished."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))  # a connection each
    # uvicorn shuts down on both signals and then raises them again: that second time must end the process cleanly, not kill it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(Config(app, limits, **more)).run(sockets=[listener])
