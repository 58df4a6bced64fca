"""A real server (uvicorn on a free port, in a thread) over a real ledger, and the world that writes to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from sqlalchemy import make_url, text

from mlops_assets import database
from mlops_assets.lifecycle.promotion import Channel, Promotion
from mlops_assets.serving.app import Server
from mlops_assets.serving.routes import build
from mlops_assets.settings import Settings, SystemConfig
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.serving.bundles import make_bundle

MANUAL = config_of("sentiment", mode="manual")


def until(condition: Callable[[], Any], seconds: float = 30, what: str = "") -> Any:
    """The first true value of `condition`; AssertionError after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what or condition} did not come true within {seconds} s"
        time.sleep(0.01)


def register(world: World, folder: Path, **bundle: Any) -> int:
    """Register a new version with a bundle made by `make_bundle`; returns its number."""
    return register_folder(world, make_bundle(folder, **bundle))


def register_folder(world: World, folder: Path, config: SystemConfig = MANUAL) -> int:
    found = world.registered("v1", folder=folder, config=config)
    assert found.receipt is not None, found.verdict
    return found.receipt.version


def promote(world: World, version: int, config: SystemConfig = MANUAL) -> Promotion:
    return world.registrar(config).produce(version=version, reason="test")


@dataclass
class Running:
    """A server that answers on `client`."""

    server: Server
    client: httpx.Client
    url: str

    def predict(self, *texts: str, system: str = "sentiment", **parameters: Any) -> httpx.Response:
        return self.client.post(f"/predict/{system}", json={"inputs": list(texts)}, params=parameters)

    def version(self, system: str = "sentiment") -> int | None:
        host = self.server.follower.host(system)
        return host.current.version if host is not None and host.current is not None else None

    def serves(self, version: int) -> None:
        until(lambda: self.version() == version, what=f"v{version} served (now {self.models()})")

    def models(self, system: str = "sentiment") -> dict[str, Any]:
        return dict(self.client.get(f"/models/{system}").json())

    def refused(self, code: str) -> dict[str, Any]:
        """The refusal with that code, as GET /models/{system} shows it, once it is there."""

        def find() -> Any:
            return next((r for r in self.models().get("refused", []) if r["code"] == code), None)

        return dict(until(find, what=f"refusal {code}"))


@contextmanager
def running(settings: Settings, channel: Channel = "champion", *, load_seconds: float = 60, start: bool = True) -> Iterator[Running]:
    settings = settings.model_copy(update={"poll_seconds": 0.1, "threads": 1})
    server = Server(settings, channel, load_seconds)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    uvicorn_server = uvicorn.Server(uvicorn.Config(build(server), log_config=None, access_log=False))
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: uvicorn_server.started)
        if start:
            assert server.follower.has_looked(60)
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Running(server, client, url)
    finally:
        uvicorn_server.should_exit = True
        thread.join(30)
        listener.close()


@contextmanager
def database_away(url: str) -> Iterator[Callable[[], None]]:
    """The database refuses connections and has lost those it had, until the yielded function (or the end) brings it back."""
    parsed = make_url(url)
    admin = database.connect(parsed.set(database="postgres").render_as_string(hide_password=False))

    def allow(yes: bool) -> None:
        with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"ALTER DATABASE {parsed.database} ALLOW_CONNECTIONS {'true' if yes else 'false'}"))
            if not yes:
                kill = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
                connection.execute(kill, {"name": parsed.database})

    allow(False)
    try:
        yield lambda: allow(True)
    finally:
        allow(True)
        admin.dispose()
