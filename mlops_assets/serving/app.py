"""The HTTP server: one process, one channel (`champion`, or `candidate` for staging), every system that the ledger names.

Belongs here: what a server consists of, start and stop. Does not belong here: routes (`routes.py`), which model answers (`models.py`).
The web framework is imported late: the first models load while Python reads it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mlops_assets.serving import feedback
from mlops_assets.serving.answers import AnswerLog
from mlops_assets.serving.batching import Batcher
from mlops_assets.serving.loading import LOAD_SECONDS
from mlops_assets.serving.metrics import ServerMetrics
from mlops_assets.serving.models import Follower
from mlops_assets.serving.otp import Otp
from mlops_assets.store import ObjectStore
from mlops_assets.supervise import PortTaken, listen

__all__ = ["PortTaken", "Server", "create_app", "serve"]

if TYPE_CHECKING:
    from fastapi import FastAPI
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.promotion import Channel
    from mlops_assets.settings import Settings


#: glibc's mallopt parameter of that name.
M_ARENA_MAX = -8
#: So long an engine thread may keep the interpreter while the event loop has answers to send. With Python's 5 ms each of the few steps of
#: a request may wait for so long.
SWITCH_SECONDS = 0.0005
#: How often live accuracy is read: as often as Prometheus asks.
TRUTHS_SECONDS = 10.0


class Server:
    """What the routes share."""

    def __init__(self, settings: Settings, channel: Channel, load_seconds: float = LOAD_SECONDS) -> None:
        self.settings = settings
        self.channel: Channel = channel
        self.metrics = ServerMetrics(channel)
        self._database_url = settings.require("database_url")
        self._engine: Engine | None = None
        self._engine_lock = threading.Lock()
        self.batcher = Batcher(settings.threads, on_round=self.metrics.round)
        self.answers = AnswerLog(self.engine, settings.home / "serving" / channel / "answers.jsonl", on_lost=self.metrics.lost)
        self.otp = Otp(settings, self.engine, lambda: ObjectStore.of(settings), self.metrics)
        self.follower = Follower(
            settings,
            channel,
            self.engine,
            load_seconds=load_seconds,
            on_swap=self.metrics.swapped,
            on_refusal=lambda system, refusal: self.metrics.refused(system, refusal.code),
            on_look=self._read_truths,
        )
        self._truths_read = 0.0

    def engine(self) -> Engine:
        """The ledger's database. Made on first use: its driver is read while what was served before answers already."""
        from mlops_assets import database

        with self._engine_lock:
            if self._engine is None:
                self._engine = database.connect(self._database_url)
            return self._engine

    def _read_truths(self, connection: Connection) -> None:
        """Live accuracy of what is served: truths are told to any replica, or to another one."""
        if time.monotonic() - self._truths_read < TRUTHS_SECONDS:
            return
        for system, host in self.follower.hosts().items():
            if host.current is not None:
                accuracy, truths = feedback.live_accuracy(connection, system, host.current.version)
                self.metrics.live(system, host.current.version, accuracy, truths)
        self._truths_read = time.monotonic()

    def start(self) -> None:
        self.follower.start()
        self.answers.start()

    def stop(self) -> None:
        self.follower.stop()
        self.batcher.close()
        self.answers.stop()
        self.engine().dispose()


def create_app(settings: Settings, channel: Channel = "champion", *, load_seconds: float = LOAD_SECONDS) -> FastAPI:
    """The ASGI application; its lifespan starts and stops the follower and the recorder."""
    from mlops_assets.serving.routes import build

    return build(Server(settings, channel, load_seconds))


def serve(settings: Settings, channel: Channel = "champion") -> None:
    """Run until SIGINT or SIGTERM; requests in flight are finished.

    Raises:
        PortTaken
        SettingsError: the database is reached through a pooler of transactions.
    """
    name, port = ("MLOPS_SERVE_PORT", settings.serve_port) if channel == "champion" else ("MLOPS_STAGING_PORT", settings.staging_port)
    listener = listen(settings.host, port, name)
    _few_heaps()
    sys.setswitchinterval(SWITCH_SECONDS)
    server = Server(settings, channel)
    server.follower.restore()
    from mlops_assets import database, limits
    from mlops_assets.guard import Guard
    from mlops_assets.serving.routes import build

    database.refuse_transaction_pooling(settings.database_url, "database_url", patience=2)
    limits.run(Guard(build(server), settings), listener, limits.Limits.of(settings), ws="none")


def _few_heaps() -> None:
    """glibc gives nearly every thread a heap of its own, and each keeps what was freed in it: tens of megabytes with our few threads."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
