"""TensorBoard behind the guard and with limits: `mlops web tensorboard`, over the folder `tensorboard` of the home.

TensorBoard is a WSGI application with a threaded development server of its own; here uvicorn answers for it, as for the others.
Belongs here: that adapter and how it is started. Does not belong here: what is written there (`training/`).
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from mlops_assets.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from starlette.types import Receive, Scope, Send

#: TensorBoard is asked for series by POST: lists of tags.
MAX_BODY_BYTES = 1024 * 1024


class Wsgi:
    """A WSGI application as an ASGI one; each request is answered whole, on a thread."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import Request

        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = await Request(scope, receive).body()
        status, headers, content = await asyncio.to_thread(self._answer, scope, body)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _answer(self, scope: Scope, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        from werkzeug.datastructures import Headers
        from werkzeug.test import EnvironBuilder, run_wsgi_app

        given = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]])
        query = scope["query_string"].decode("latin-1")
        environ: dict[str, Any] = EnvironBuilder(
            path=scope["path"], query_string=query, method=scope["method"], headers=given, data=body
        ).get_environ()
        pieces, status, headers = run_wsgi_app(self.app, environ, buffered=True)
        content = b"".join(pieces)
        return int(status.split()[0]), [(name.lower().encode(), value.encode("latin-1")) for name, value in headers], content


def run(settings: Settings, listener: socket.socket) -> None:
    """Answer until a signal."""
    from tensorboard import default, program

    from mlops_assets import limits
    from mlops_assets.guard import Guard

    class Server(program.TensorBoardServer):  # type: ignore[misc]
        def __init__(self, app: WSGIApplication, flags: Any) -> None:
            self.app = app

        def serve_forever(self) -> None:
            limits.run(Guard(Wsgi(self.app), settings), listener, limits.Limits.of(settings, MAX_BODY_BYTES), ws="none")

        def get_url(self) -> str:
            return f"http://{settings.reached_at}:{settings.tensorboard_port}/"

    folder = settings.home / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    board = program.TensorBoard(plugins=default.get_plugins(), server_class=Server)
    board.configure(logdir=str(folder), load_fast="false")
    board.main()
